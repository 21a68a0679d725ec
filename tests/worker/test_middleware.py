"""Middleware: one shape, a generator with one yield, around each attempt of a sync or an async task."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pgqueue import Cancel, ConfigurationError, Context, DeadLetter, InvalidOption
from tests.helpers import eventually


@pytest.fixture(params=["a def task", "an async def task"])
def task(request, app):
    """Registers a task of either kind that calls the given function: `task(work, **options)`."""

    def register(work, **options):
        if request.param == "a def task":

            @app.task(name="test.work", **options)
            def in_a_thread() -> object:
                return work()

            return in_a_thread

        @app.task(name="test.work", **options)
        async def on_the_loop() -> object:
            return work()

        return on_the_loop

    return register


@pytest.fixture(params=["sync", "async"])
def middleware(request, app):
    """Registers a middleware of either kind: `middleware(before=, after=, error=)`."""

    def register(before=lambda ctx: None, after=lambda ctx, result: None, error=lambda ctx, error: None, on=None):
        if request.param == "sync":

            def around(ctx):
                before(ctx)
                try:
                    result = yield
                except BaseException as caught:
                    error(ctx, caught)
                    raise
                after(ctx, result)

        else:

            async def around(ctx):
                await asyncio.sleep(0)
                before(ctx)
                try:
                    result = yield
                except BaseException as caught:
                    await asyncio.sleep(0)
                    error(ctx, caught)
                    raise
                after(ctx, result)

        return around if on == "task" else app.middleware(around)

    return register


def jobs(connection):
    rows = connection.execute("select state, attempt, reason, errors from pgqueue.all_jobs order by id").fetchall()
    return [(state, attempt, reason, [one["error"] for one in errors or ()]) for state, attempt, reason, errors in rows]


def test_it_sees_before_after_and_the_result_the_apps_outside_the_tasks_own(app, connection, drain, task, middleware):
    told = []
    for name in ("outer", "inner"):
        middleware(
            before=lambda ctx, name=name: told.append(f"{name} before {ctx.job.task} {ctx.job.attempt}"),
            after=lambda ctx, result, name=name: told.append(f"{name} after {result}"),
        )
    own = middleware(lambda ctx: told.append("own before"), lambda ctx, result: told.append("own after"), on="task")
    work = task(lambda: told.append("work") or 7, middleware=[own])
    work.enqueue(connection)
    drain()
    assert told == [
        "outer before test.work 1",
        "inner before test.work 1",
        "own before",
        "work",
        "own after",
        "inner after 7",
        "outer after 7",
    ]
    assert connection.execute("select state, result from pgqueue.all_jobs").fetchone() == ("completed", 7)


def test_it_sees_each_attempts_error_and_may_raise_another_that_is_the_jobs(
    app, connection, drain, task, middleware, logged
):
    told = []
    middleware(error=lambda ctx, error: told.append((ctx.job.attempt, repr(error))))

    def replace(ctx, error):
        raise LookupError("no such plan")

    middleware(error=replace)
    task(lambda: 1 / 0, max_attempts=2, retry=lambda attempt, error: 0.0).enqueue(connection)
    drain()
    assert told == [(1, "LookupError('no such plan')"), (2, "LookupError('no such plan')")]
    ((state, attempt, reason, errors),) = jobs(connection)
    assert (state, attempt, reason) == ("dead", 2, "attempts")
    assert len(errors) == 2
    for error in errors:
        assert error.startswith("LookupError: no such plan (in middleware tests.worker.test_middleware.")
        assert error.endswith(", after the task had failed)")
    (trace,) = connection.execute("select errors[0] ->> 'traceback' from pgqueue.dead_jobs").fetchone()
    assert "division by zero" in trace  # the cause is kept
    assert "pgqueue/middleware.py" not in trace.split("LookupError")[0].split("\n")[0]


def test_an_error_that_it_swallows_is_the_jobs_all_the_same(app, connection, drain, task):
    @app.middleware
    def swallow(ctx):
        try:
            yield
        except ZeroDivisionError:
            ctx.log.info("seen")

    task(lambda: 1 / 0, max_attempts=1).enqueue(connection)
    drain()
    assert jobs(connection) == [("dead", 1, "attempts", ["ZeroDivisionError: division by zero"])]
    (trace,) = connection.execute("select errors[0] ->> 'traceback' from pgqueue.dead_jobs").fetchone()
    assert "1 / 0" in trace
    assert "pgqueue/" not in trace  # of ours


def fail(*_):
    raise ValueError("no")


@pytest.mark.parametrize(("half", "when"), [("before", "before the task"), ("after", "after the task")])
def test_what_it_raises_itself_is_the_jobs_failure_and_says_where(app, connection, drain, task, middleware, half, when):
    told = []
    middleware(error=lambda ctx, error: told.append(type(error)))  # those outside see it
    middleware(**{half: fail})
    task(lambda: told.append("work"), max_attempts=1).enqueue(connection)
    drain()
    around = "middleware.<locals>.register.<locals>.around".rpartition("<locals>.")[2]
    assert jobs(connection) == [
        ("dead", 1, "attempts", [f"ValueError: no (in middleware tests.worker.test_middleware.{around}, {when})"])
    ]
    assert told == (["work", ValueError] if half == "after" else [ValueError])


@pytest.mark.parametrize(("steer", "state"), [(Cancel("not today"), "cancelled"), (DeadLetter("never"), "dead")])
def test_it_may_steer_a_job_without_running_it(app, connection, drain, task, middleware, steer, state):
    ran = []

    def refuse(ctx):
        raise steer

    middleware(before=refuse)
    task(lambda: ran.append(1)).enqueue(connection)
    drain()
    assert [one[0] for one in jobs(connection)] == [state]
    assert not ran


@pytest.mark.parametrize("yields", [0, 2])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_one_that_does_not_yield_once_fails_the_job_by_name(app, connection, drain, task, yields, kind):
    if kind == "sync":

        @app.middleware
        def odd(ctx):
            for _ in range(yields):
                yield
    else:

        @app.middleware
        async def odd(ctx):
            for _ in range(yields):
                yield

    task(lambda: None, max_attempts=1).enqueue(connection)
    drain()
    ((state, _, _, (error,)),) = jobs(connection)
    assert state == "dead"
    assert "middleware tests.worker.test_middleware.odd " + ("yielded twice" if yields else "did not yield") in error


def test_a_timeout_is_raised_at_the_yield_and_the_job_has_timed_out(app, connection, drain, middleware):
    told = []
    middleware(error=lambda ctx, error: told.append(type(error)))

    @app.task(timeout=0.05, max_attempts=1)
    async def slow() -> None:
        await asyncio.Event().wait()

    slow.enqueue(connection)
    drain()
    assert told == [asyncio.CancelledError]
    assert jobs(connection)[0][:3] == ("dead", 1, "timeout")


def test_sync_middleware_runs_where_the_task_runs_and_async_on_the_loop(app, connection, drain):
    told = {}

    @app.middleware
    def sync(ctx):
        told[ctx.job.task, "sync"] = threading.current_thread()
        yield

    @app.middleware
    async def loop(ctx):
        told[ctx.job.task, "async"] = threading.current_thread()
        yield

    @app.task(name="thread")
    def in_a_thread() -> None:
        told["thread", "task"] = threading.current_thread()

    @app.task(name="loop")
    async def on_the_loop() -> None:
        told["loop", "task"] = threading.current_thread()

    in_a_thread.enqueue(connection)
    on_the_loop.enqueue(connection)
    drain()
    main = threading.current_thread()
    assert told["thread", "sync"] is told["thread", "task"] is not main
    assert told["thread", "async"] is main
    assert {told["loop", name] for name in ("sync", "async", "task")} == {main}


def test_it_has_the_state_and_the_context_that_the_task_has(app, connection, drain, task, middleware):
    seen = []
    app.state.pool = "pool"
    middleware(before=lambda ctx: seen.append(ctx))

    @app.task
    def own(ctx: Context) -> None:
        seen.append(ctx)

    own.enqueue(connection)
    drain()
    assert seen[0] is seen[1]
    assert seen[0].state.pool == "pool"


def test_what_follows_a_transaction_that_completed_the_job_is_no_failure(app, connection, drain, logged, middleware):
    middleware(after=fail)

    @app.task
    def work(ctx: Context) -> None:
        with ctx.transaction() as session:
            del session

    work.enqueue(connection)
    drain()
    assert jobs(connection)[0][:2] == ("completed", 1)
    eventually(lambda: logged("after_completion"))


def test_a_system_exit_in_it_is_a_failure_and_takes_nobody_along(app, connection, drain, task, middleware):
    def leave(ctx):
        raise SystemExit("bye")

    middleware(before=leave)
    task(lambda: None, max_attempts=1).enqueue(connection)
    drain()
    ((state, _, _, (error,)),) = jobs(connection)
    assert state == "dead"
    assert error.startswith("SystemExit: bye (in middleware")


def test_a_task_without_any_is_called_as_it_is(app):
    @app.task
    def plain() -> None: ...

    @app.middleware
    def late(ctx):
        yield

    assert plain.body is not plain.function  # also when the middleware comes after the task
    assert plain.takes == ""
    app.around.clear()
    plain.forget_body()
    assert plain.body is plain.function
    assert plain.takes is None


def returns(ctx):
    return iter(())


def takes_nothing():
    yield


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (returns, "without @contextmanager, not a function without a yield"),
        (takes_nothing, "middleware tests.worker.test_middleware.takes_nothing must take one argument"),
        (7, "not int"),
    ],
)
def test_what_cannot_be_one_is_refused_in_one_line(app, given, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        app.middleware(given)
    assert "\n" not in str(refused.value)
    with pytest.raises(InvalidOption, match=sentence):
        app.task(middleware=[given])(lambda_like)
    with pytest.raises(InvalidOption, match="middleware must be a list of generator functions, not function"):
        app.task(middleware=lambda_like)(lambda_like)
    assert not app.tasks


def lambda_like() -> None: ...
