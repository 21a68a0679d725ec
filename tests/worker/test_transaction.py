"""ctx.transaction(): what a job writes and its completion are one commit, or nothing of either is there."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import dict_row

from pgqueue import ClaimLost, Context, PgQueue, RetryLater, RetryPolicy, TransactionRefused
from pgqueue.events import Event
from pgqueue.failure import describe
from pgqueue.job import Job
from tests.helpers import eventually
from tests.life.workbench import ended

Look = psycopg.Connection[Any]
INSERT = "insert into effects (job_id) values (%s)"
KINDS = ["session", "async session", "psycopg", "async psycopg"]


@pytest.fixture(autouse=True)
def effects(connection: Look) -> Callable[[], list[int]]:
    """The ids of the jobs whose effects are there, one for each effect; nothing keeps a job from having two."""
    connection.execute("create table effects (job_id bigint)")
    return lambda: [row[0] for row in connection.execute("select job_id from effects order by job_id")]


def effect(on: Any, job: Job) -> Any:
    """One effect, on whatever ctx.transaction() gave; to be awaited where that is async."""
    if isinstance(on, psycopg.Connection | psycopg.AsyncConnection):
        return on.execute(INSERT, [job.id])
    return on.execute(sa.text("insert into effects (job_id) values (:id)"), {"id": job.id})


Body = Callable[[Context, Any], Any]


def transactional(app: PgQueue, kind: str, body: Body = lambda ctx, on: None, **options: Any) -> Any:
    """A task that has its effect in its transaction, then calls `body(ctx, on)`, still inside."""

    def sync_task(ctx: Context) -> None:
        with ctx.transaction(driver=kind == "psycopg") as on:
            effect(on, ctx.job)
            body(ctx, on)

    async def async_task(ctx: Context) -> None:
        async with ctx.transaction(driver=kind == "async psycopg") as on:
            await effect(on, ctx.job)
            body(ctx, on)

    return app.task(name="note", **options)(async_task if "async" in kind else sync_task)


def heard(app: PgQueue) -> list[str]:
    """The events of the job, in the order of their calls: a plain `def` would hear each in a thread of its own."""
    told: list[str] = []

    async def hear(event: Event) -> None:
        told.append(event.name)

    for name in ("completed", "failed", "retried", "released", "dead_lettered", "claim_lost"):
        app.on(name)(hear)
    return told


def take(connection: Look, job: int) -> None:
    """The job is another worker's now, a living one's, as after a rescue and another claim."""
    other = uuid4()
    connection.execute(
        "insert into pgqueue.workers (id, host, pid, expires_at, tasks, concurrency, version)"
        " values (%s, 'elsewhere', 1, now() + interval '1 hour', '{}', 1, 'test')",
        [other],
    )
    connection.execute("update pgqueue.jobs set worker_id = %s, fence = fence + 1 where id = %s", [other, job])


@pytest.mark.parametrize("kind", KINDS)
def test_effects_and_completion_are_one_commit(app, connection, drain, effects, logged, kind):
    told = heard(app)
    seen: list[Any] = []

    def look(ctx: Context, on: Any) -> None:
        ctx.complete({"rows": 1})
        seen.append((effects(), ended(connection, ctx.job).state))

    job = transactional(app, kind, look).enqueue(connection)
    drain()
    assert seen == [([], "running")]
    assert effects() == [job.id]
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence, row.result) == ("completed", 1, 1, {"rows": 1})
    assert told == ["completed"]
    (line,) = logged("job_completed")
    assert line.job_id == job.id
    assert not logged("claim_lost")


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_was_taken_away_has_no_effect_and_says_so(app, connection, drain, effects, logged, kind):
    told = heard(app)

    def lose(ctx: Context, on: Any) -> None:
        take(connection, ctx.job.id)

    task = transactional(app, kind, lose)
    errors: list[Any] = []

    def watched(ctx: Context) -> None:
        try:
            task.function(ctx)
        except ClaimLost as error:
            errors.append((str(error), ctx.cancelled))

    async def watched_async(ctx: Context) -> None:
        try:
            await task.function(ctx)
        except ClaimLost as error:
            errors.append((str(error), ctx.cancelled))

    note = app.task(name="watched")(watched_async if "async" in kind else watched)
    job = note.enqueue(connection)
    before = "select state, attempt, fence from pgqueue.jobs where id = %s"
    counts = run_until(app, lambda: logged("claim_lost"))

    assert effects() == []
    ((message, cancelled),) = errors
    assert f"job {job.id}, attempt 1" in message
    assert "rolled back" in message
    assert cancelled
    state, attempt, fence = connection.execute(before, [job.id]).fetchone()
    assert (state, attempt, fence) == ("running", 1, 2)  # the other's, untouched
    assert told == ["claim_lost"]
    (line,) = logged("claim_lost")
    assert (line.job_id, line.fence) == (job.id, 1)
    assert counts == 1


def run_until(app: PgQueue, check: Callable[[], Any]) -> int:
    """Runs a worker until `check()`; how many lost claims it counted."""
    loops: list[Any] = []
    make = app.loop

    def keep(*args: Any, **more: Any) -> Any:
        loops.append(make(*args, **more))
        return loops[-1]

    app.loop = keep  # type: ignore[method-assign]
    worker = app.worker(poll_interval=0.05, grace=5.0)
    thread = threading.Thread(target=lambda: asyncio.run(worker.run_async()))
    thread.start()
    try:
        eventually(check)
    finally:
        worker.stop()
        thread.join(20)
    assert not thread.is_alive()
    return sum(loop.take_counts().claims_lost for loop in loops)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_inside_rolls_back_and_is_settled_as_any_failure(app, connection, drain, effects, kind):
    told = heard(app)

    def fail_once(ctx: Context, on: Any) -> None:
        if ctx.job.attempt == 1:
            raise ValueError("not yet")

    task = transactional(app, kind, fail_once, retry=RetryPolicy(delay=0.01, jitter=0), max_attempts=2)
    job = task.enqueue(connection)
    drain()
    assert effects() == [job.id]
    row = ended(connection, job)
    assert (row.state, row.attempt) == ("completed", 2)
    assert [error["error"] for error in row.errors] == ["ValueError: not yet"]
    assert told == ["failed", "retried", "completed"]


@pytest.mark.parametrize(
    "after", [RuntimeError("too late"), RetryLater(5), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_after_the_commit_the_job_is_completed_whatever_it_does(app, connection, drain, effects, logged, after):
    told = heard(app)

    @app.task
    def note(ctx: Context) -> None:
        with ctx.transaction() as session:
            effect(session, ctx.job)
        raise after

    @app.task
    def returns(ctx: Context) -> int:
        with ctx.transaction() as session:
            effect(session, ctx.job)
        return 42

    jobs = [note.enqueue(connection), returns.enqueue(connection)]
    drain()
    assert effects() == [job.id for job in jobs]
    assert [(row.state, row.attempt, row.result) for row in (ended(connection, job) for job in jobs)] == [
        ("completed", 1, None),
        ("completed", 1, None),
    ]
    assert told == ["completed", "completed"]
    lines = {line.job_id: line for line in logged("after_completion")}
    assert lines[jobs[0].id].error == describe(after)
    assert lines[jobs[0].id].traceback.endswith(describe(after))
    assert lines[jobs[0].id].exc_info is None  # which holds whatever a database said of the row
    assert "ctx.complete(result)" in lines[jobs[1].id].getMessage()


def test_a_second_transaction_is_refused_and_one_after_a_rollback_is_not(app, connection, drain, effects):
    messages: list[str] = []

    @app.task
    def note(ctx: Context) -> None:
        with pytest.raises(TransactionRefused, match="belongs inside"):
            ctx.complete(1)
        with suppress(ZeroDivisionError), ctx.transaction(driver=True) as raw:
            effect(raw, ctx.job)
            1 / 0
        with ctx.transaction(driver=True) as raw:
            effect(raw, ctx.job)
            with pytest.raises(TransactionRefused, match="open already"), ctx.transaction():
                pass
        with pytest.raises(TransactionRefused) as refused, ctx.transaction():
            pass
        messages.append(str(refused.value))

    job = note.enqueue(connection)
    drain()
    assert effects() == [job.id]
    assert messages == ["this job was completed by its ctx.transaction(): a second one is not possible"]


def test_with_and_async_with_are_not_to_be_confused_and_a_commit_of_ones_own_is_refused(
    app, connection, drain, effects
):
    refused: list[str] = []

    def fails(exceptions: Any, function: Callable[[], Any]) -> None:
        with pytest.raises(exceptions) as caught:
            function()
        refused.append(str(caught.value))

    @app.task
    async def asynchronous(ctx: Context) -> None:
        fails(TransactionRefused, lambda: ctx.transaction().__enter__())

    @app.task
    def sync(ctx: Context) -> None:
        fails(TransactionRefused, lambda: asyncio.run(ctx.transaction().__aenter__()))  # type: ignore[arg-type]

    @app.task(max_attempts=1)
    def commits(ctx: Context, driver: bool) -> None:
        with ctx.transaction(driver=driver) as on:
            effect(on, ctx.job)
            on.commit()

    @app.task(max_attempts=1)
    def sneaks(ctx: Context) -> None:
        with ctx.transaction(driver=True) as raw:
            raw.execute("commit")

    jobs = [asynchronous.enqueue(connection), sync.enqueue(connection)]
    bad = [commits.enqueue(connection, driver) for driver in (True, False)] + [sneaks.enqueue(connection)]
    drain()
    assert [ended(connection, job).state for job in jobs] == ["completed"] * 2
    assert sorted("async with" in text for text in refused) == [False, True]
    rows = [ended(connection, job) for job in bad]
    assert [row.state for row in rows] == ["dead"] * 3
    assert "effects and completion are one commit" in rows[0].error
    assert "effects and completion are one commit" in rows[1].error
    assert "a COMMIT or ROLLBACK of the job's own" in rows[2].error
    assert effects() == []


def test_parts_of_it_may_be_rolled_back_and_a_session_may_start_anew(app, connection, drain, effects):
    @app.task
    def note(ctx: Context) -> None:
        with ctx.transaction() as session:
            with suppress(ZeroDivisionError), session.begin_nested():
                effect(session, ctx.job)
                1 / 0
            with session.begin_nested():
                effect(session, ctx.job)
            session.rollback()
            effect(session, ctx.job)

    job = note.enqueue(connection)
    drain()
    assert effects() == [job.id]
    assert ended(connection, job).state == "completed"


def test_without_a_worker_it_says_what_is_missing(app):
    @app.task
    def note(ctx: Context) -> None:
        with ctx.transaction():
            pass

    ctx = Context(Job(id=1, task="note"), logging.getLogger("pgqueue"))  # type: ignore[arg-type]
    with pytest.raises(TransactionRefused, match=r"needs a worker.*app\.worker"):
        note.function(ctx)
    with pytest.raises(TransactionRefused, match="needs a worker"):
        ctx.complete(1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_enqueued_inside_is_there_only_with_the_commit_and_wakes_a_sleeper(app, connection, work, asleep, kind):
    ran: list[int] = []

    @app.task
    def follows(number: int) -> None:
        ran.append(number)

    def sync_task(ctx: Context) -> None:
        with ctx.transaction(driver=kind == "psycopg") as on:
            follows.enqueue(on, ctx.job.attempt)
            if ctx.job.attempt == 1:
                raise ValueError("not yet")

    async def async_task(ctx: Context) -> None:
        async with ctx.transaction(driver=kind == "async psycopg") as on:
            await follows.enqueue(on, ctx.job.attempt)
            if ctx.job.attempt == 1:
                raise ValueError("not yet")

    task = app.task(name="first", retry=RetryPolicy(delay=0.01, jitter=0))(async_task if "async" in kind else sync_task)
    work(poll_interval=30.0)  # nobody waits for a poll: only the wake-up starts what follows
    asleep()
    first = task.enqueue(connection)
    eventually(lambda: ended(connection, first).state == "completed")
    eventually(lambda: ran)
    assert ran == [2]


@pytest.mark.parametrize("kind", ["psycopg", "session", "async psycopg", "async session"])
def test_the_next_job_finds_a_clean_session(app, connection, drain, pgqueue_database, kind):
    """Whatever one sets for its session: role, search_path, temporary tables, advisory locks, LISTEN, isolation."""
    role = f"pgqueue_test_{uuid4().hex[:12]}"
    connection.execute(f"create role {role}")
    connection.execute(f"alter database {connection.info.dbname} set default_transaction_isolation = 'serializable'")
    connection.execute(f"alter database {connection.info.dbname} set statement_timeout = 60000")
    seen: list[Any] = []
    ASK = (
        "select pg_backend_pid(), current_user::text = session_user::text, current_setting('search_path'),"
        " to_regclass('pg_temp.mess')::text, (select count(*) from pg_locks where locktype = 'advisory'),"
        " (select count(*) from pg_listening_channels()), current_setting('transaction_isolation'),"
        " current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout')"
    )
    MESS = [
        "create temporary table mess ()",
        "select pg_advisory_lock(7)",
        "listen mess",
        "set search_path = pg_catalog",
        "set statement_timeout = 12345",
        f"set role {role}",
        "reset role",
        f"set session authorization {role}",
        "set session authorization default",
        f"grant usage on schema pgqueue to {role}",
        f"grant all on all tables in schema pgqueue to {role}",
        f"set role {role}",
    ]

    async def visit_async(on: Any) -> None:
        text: Any = (lambda s: s) if isinstance(on, psycopg.AsyncConnection) else sa.text
        seen.append(
            tuple(
                (await on.execute(text(ASK))).fetchone()
                if text is sa.text
                else await (await on.execute(ASK)).fetchone()
            )
        )
        for statement in MESS:
            await on.execute(text(statement))

    def visit(on: Any) -> None:
        text: Any = (lambda s: s) if isinstance(on, psycopg.Connection) else sa.text
        seen.append(tuple(on.execute(text(ASK)).fetchone()))
        if isinstance(on, psycopg.Connection):
            on.row_factory = dict_row
        for statement in MESS:
            on.execute(text(statement))

    async def async_task(ctx: Context) -> None:
        async with ctx.transaction(driver=kind == "async psycopg") as on:
            await visit_async(on)

    def sync_task(ctx: Context) -> None:
        with ctx.transaction(driver=kind == "psycopg") as on:
            visit(on)

    note = app.task(name="note")(async_task if "async" in kind else sync_task)
    jobs = note.enqueue_many(connection, [(), (), ()])
    try:
        drain(concurrency=1, lease=20.0)
        assert {ended(connection, job).state for job in jobs} == {"completed"}
        assert len({row[0] for row in seen}) == 1  # one connection, used three times
        assert {row[1:] for row in seen} == {(True, '"$user", public', None, 0, 0, "read committed", "0", "20s")}
    finally:
        connection.execute(f"drop owned by {role}")
        connection.execute(f"drop role {role}")


def test_connections_are_as_many_as_jobs_at_once_and_gone_with_the_worker(app, connection, work, effects):
    together = threading.Barrier(3)

    @app.task
    def note(ctx: Context, driver: bool, gather: bool) -> None:
        with ctx.transaction(driver=driver) as on:
            effect(on, ctx.job)
            if gather:
                together.wait(20)

    @app.task
    def plain() -> None:
        pass

    count = (
        "select count(*) from pg_stat_activity where application_name = 'pgqueue job' and datname = current_database()"
    )
    worker = work(concurrency=3)
    job = plain.enqueue(connection)
    eventually(lambda: ended(connection, job).state == "completed")
    assert connection.execute(count).fetchone() == (0,)  # nobody has asked for one
    for driver in (True, False, True):
        jobs = note.enqueue_many(connection, [(driver, True)] * 3)
        eventually(lambda jobs=jobs: {ended(connection, one).state for one in jobs} == {"completed"})
        assert connection.execute(count).fetchone() == (3,)
    worker.stop()
    eventually(lambda: connection.execute(count).fetchone() == (0,))
    assert len(effects()) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_restarted_server_or_an_ended_session_costs_no_attempt(app, connection, work, effects, kind):
    task = transactional(app, kind)
    work(concurrency=1)
    first = task.enqueue(connection)
    eventually(lambda: ended(connection, first).state == "completed")
    kill = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'pgqueue job' and datname = current_database()"
    )
    assert len(connection.execute(kill).fetchall()) == 1
    second = task.enqueue(connection)
    eventually(lambda: ended(connection, second).state == "completed")
    assert ended(connection, second).attempt == 1
    assert effects() == [first.id, second.id]


@pytest.mark.parametrize("kind", ["async session", "async psycopg"])
def test_cancelled_inside_at_a_shutdown_it_is_rolled_back_and_the_job_released(app, connection, work, effects, kind):
    inside = threading.Event()

    async def note(ctx: Context) -> None:
        async with ctx.transaction(driver=kind == "async psycopg") as on:
            await effect(on, ctx.job)
            inside.set()
            await asyncio.sleep(600)

    told = heard(app)
    job = app.task(name="note")(note).enqueue(connection)
    worker = work(grace=0.1)
    assert inside.wait(20)
    worker.stop()
    eventually(lambda: ended(connection, job).state == "queued")
    assert ended(connection, job).attempt == 0
    assert effects() == []
    eventually(lambda: told == ["released"])


@pytest.mark.parametrize("kind", ["psycopg", "async session"])
def test_an_attempt_whose_time_is_up_inside_is_rolled_back_and_timed_out(app, connection, drain, effects, kind):
    async def asynchronous(ctx: Context) -> None:
        async with ctx.transaction() as on:
            await effect(on, ctx.job)
            await asyncio.sleep(600)

    def sync(ctx: Context) -> None:
        with ctx.transaction(driver=True) as on:
            effect(on, ctx.job)
            eventually(lambda: ctx.cancelled)

    task = app.task(name="note", timeout=0.05, max_attempts=1)(asynchronous if "async" in kind else sync)
    job = task.enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.reason) == ("dead", "timeout")
    assert effects() == []


@pytest.mark.parametrize("kind", ["psycopg", "session", "async psycopg", "async session"])
def test_a_task_that_returns_with_its_transaction_open_has_failed_and_holds_no_lock(
    app, connection, drain, effects, kind
):
    async def asynchronous(ctx: Context) -> None:
        await effect(await ctx.transaction(driver=kind == "async psycopg").__aenter__(), ctx.job)

    def sync(ctx: Context) -> None:
        effect(ctx.transaction(driver=kind == "psycopg").__enter__(), ctx.job)

    task = app.task(name="note", max_attempts=1)(asynchronous if "async" in kind else sync)
    job = task.enqueue(connection)
    drain()
    row = ended(connection, job)
    assert row.state == "dead"
    assert "the task ended while its ctx.transaction() was open" in row.error
    with connection.transaction():
        connection.execute("set local lock_timeout = '5s'")
        connection.execute("lock table effects")
    assert effects() == []


# -- a COMMIT whose answer does not come ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_that_was_done_unheard_completes_the_job_once(proxy, connection, effects, logged, kind):
    app = PgQueue(proxy.url)
    told = heard(app)
    job = transactional(app, kind, lambda ctx, on: ctx.complete("kept")).enqueue(connection)
    proxy.lose_answer("pgqueue job", request=b"COMMIT\0")
    asyncio.run(app.worker(drain=True, poll_interval=0.05, grace=5.0).run_async())
    assert proxy.lost == 1
    assert effects() == [job.id]
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence, row.result) == ("completed", 1, 1, "kept")
    assert told == ["completed"]
    assert not logged("claim_lost")
    assert not logged("after_completion")


@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_that_the_database_refuses_is_a_failure_as_any_other(app, connection, drain, effects, kind):
    connection.execute(
        "create sequence tries;"
        "create function refuse_once() returns trigger language plpgsql as"
        " $$ begin if nextval('tries') = 1 then raise 'not today'; end if; return null; end $$;"
        "create constraint trigger refusal after insert on effects deferrable initially deferred"
        " for each row execute function refuse_once()"
    )
    told = heard(app)
    job = transactional(app, kind, retry=RetryPolicy(delay=0.01, jitter=0)).enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.attempt) == ("completed", 2)
    assert "not today" in row.errors[0]["error"]
    assert effects() == [job.id]
    assert told == ["failed", "retried", "completed"]


# -- what ends a block and is no doing of the job's -----------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was hindered runs again at once."""
    monkeypatch.setattr("pgqueue.worker.settle.HINDERED_DELAY", (0.01, 0.02))


def backend(on: Any) -> int:
    """The process of the server that serves what ctx.transaction() gave."""
    if hasattr(on, "info") and hasattr(on.info, "backend_pid"):
        return int(on.info.backend_pid)
    on = getattr(on, "sync_session", on)
    return int(on.connection().connection.driver_connection.info.backend_pid)


def terminate(connection: Look, on: Any) -> None:
    connection.execute("select pg_terminate_backend(%s, 5000)", [backend(on)])


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_whose_connection_breaks_inside_runs_again_and_no_attempt_is_used(
    app, connection, drain, effects, logged, kind
):
    told = heard(app)

    def cut_once(ctx: Context, on: Any) -> None:
        if ctx.job.fence == 1:
            terminate(connection, getattr(on, "sync_session", on))

    job = transactional(app, kind, cut_once, max_attempts=1).enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence) == ("completed", 1, 2)
    assert effects() == [job.id]
    assert told == ["released", "completed"]
    assert [error["error"].endswith("(no attempt used)") for error in row.errors] == [True]
    assert [line.job_id for line in logged("job_hindered")] == [job.id]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_that_the_server_did_not_do_and_cannot_say_so_uses_no_attempt(app, connection, drain, effects, kind):
    connection.execute(
        "create sequence tries;"
        "create function end_once() returns trigger language plpgsql as"
        " $$ begin if nextval('tries') = 1 then perform pg_terminate_backend(pg_backend_pid()); end if;"
        " perform pg_sleep(0.01); return null; end $$;"
        "create constraint trigger ending after insert on effects deferrable initially deferred"
        " for each row execute function end_once()"
    )
    told = heard(app)
    job = transactional(app, kind, max_attempts=1).enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence) == ("completed", 1, 2)
    assert effects() == [job.id]
    assert told == ["released", "completed"]


@pytest.mark.usefixtures("soon")
def test_a_neighbour_that_blocks_the_loop_until_the_session_is_idle_for_too_long_costs_no_attempt(
    app, connection, work, effects
):
    """It is our own limit, so that a frozen worker keeps no lock: nothing that the job has done."""
    inside, blocked = threading.Event(), threading.Event()

    @app.task(max_attempts=1)
    async def note(ctx: Context) -> None:
        async with ctx.transaction(driver=True) as raw:
            await effect(raw, ctx.job)
            inside.set()
            while not blocked.is_set():
                await asyncio.sleep(0.01)

    @app.task
    async def block(backend_gone: str) -> None:
        blocked.set()
        eventually(lambda: connection.execute(backend_gone).fetchone() == (0,))

    work(concurrency=2, lease=1.0)
    job = note.enqueue(connection)
    assert inside.wait(10)
    idle = "select count(*) from pg_stat_activity where state = 'idle in transaction' and datname = current_database()"
    block.enqueue(connection, idle)
    eventually(lambda: ended(connection, job).state == "completed")
    row = ended(connection, job)
    assert (row.attempt, row.fence, effects()) == (1, 2, [job.id])


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("max_attempts", [1, 2])
def test_a_job_that_takes_its_own_connection_down_does_so_ten_times_and_once_for_each_attempt(
    app, connection, drain, logged, max_attempts
):
    def take_down(ctx: Context) -> None:
        with ctx.transaction(driver=True) as raw:
            raw.execute("select pg_terminate_backend(pg_backend_pid())")

    note = app.task(name="note", max_attempts=max_attempts, retry=RetryPolicy(delay=0))(take_down)
    job = note.enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.reason, row.attempt) == ("dead", "attempts", max_attempts)
    assert row.fence == len(row.errors) == 10 + max_attempts
    free = [error["error"].endswith("(no attempt used)") for error in row.errors]
    assert free == [True] * 10 + [False] * max_attempts
    assert len(logged("job_hindered")) == 10


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("how", ["closes", "times out", "fails later", "caught"])
def test_what_a_job_does_to_its_connection_by_itself_is_its_own_failure(app, connection, drain, how):
    async def own(ctx: Context) -> None:
        if how == "closes":
            async with ctx.transaction(driver=True) as raw:
                await raw.close()
        elif how == "times out":
            async with ctx.transaction(driver=True) as raw, asyncio.timeout(0.05):
                await raw.execute("select pg_sleep(60)")
        with suppress(psycopg.OperationalError):
            async with ctx.transaction(driver=True) as raw:
                terminate(connection, raw)
                await raw.execute("select 1")
        if how == "fails later":
            raise ValueError("for another reason")

    job = app.task(name="note", max_attempts=1)(own).enqueue(connection)
    drain()
    row = ended(connection, job)
    assert row.fence == 1
    assert row.state == ("completed" if how == "caught" else "dead")


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("how", ["from", "from none", "group"])
def test_an_error_that_comes_of_a_broken_connection_is_not_the_jobs_either(app, connection, drain, how):
    async def inside(ctx: Context) -> None:
        async with ctx.transaction(driver=True) as raw:
            if ctx.job.fence == 1:
                terminate(connection, raw)
            await raw.execute("select 1")

    async def note(ctx: Context) -> None:
        if how == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(inside(ctx))
            return
        try:
            await inside(ctx)
        except psycopg.OperationalError as error:
            if how == "from":
                raise RuntimeError("no order") from error
            raise RuntimeError("no order") from None

    job = app.task(name="note", max_attempts=1)(note).enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence) == ("completed", 1, 2)
