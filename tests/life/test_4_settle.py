"""Step 4, settle: how an attempt ended decides what becomes of the job; only who holds the claim may write it down."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pgqueue import (
    Cancel,
    ConfigurationError,
    Context,
    DeadLetter,
    PgQueue,
    RetryLater,
    RetryPolicy,
    Snooze,
    Task,
    db,
)
from pgqueue.db import Claim
from pgqueue.drivers import Steps
from pgqueue.enqueue import NewJob, Options
from pgqueue.events import NAMES, Event
from pgqueue.maintenance.rescue import bury
from pgqueue.sql import Statements
from pgqueue.worker import loop, settle
from tests.helpers import eventually, job_in, run, worker_row
from tests.life.workbench import ended, everything, working

Look = psycopg.Connection[Any]
Drain = Callable[..., None]
NOW = datetime.now(UTC).replace(microsecond=0)


def claimed(app: PgQueue, connection: Look, *, fails: int = 0, **options: Any) -> tuple[UUID, Claim]:
    """A running job and its owner, after so many failed attempts."""
    app.enqueue_alone(NewJob("test.task", "{}", Options(**options)))
    worker = worker_row(app, connection, tasks=["test.task"])
    for n in range(fails + 1):
        (claim,) = run(connection, db.claim(app.statements, worker, ["test.task"], None, 1))
        if n < fails:
            args = ([claim.id], [claim.fence], [0.0], [f"error {n + 1}"], [f"trace {n + 1}"])
            run(connection, db.retry(app.statements, worker, *args))
    return worker, claim


# -- the statements -------------------------------------------------------------------------------------------------

Verb = Callable[[Statements, UUID, list[int], list[int]], Steps[set[int]]]


def _each(ids: list[int], value: Any) -> list[Any]:
    return [value] * len(ids)


VERBS: dict[str, tuple[Verb, str]] = {
    "complete": (lambda s, w, i, f: db.complete(s, w, i, f, _each(i, "{}")), "completed"),
    "retry": (lambda s, w, i, f: db.retry(s, w, i, f, _each(i, 1.0), _each(i, "no"), _each(i, None)), "queued"),
    "snooze": (lambda s, w, i, f: db.give_back(s, w, i, f, _each(i, 1.0)), "queued"),
    "release": (lambda s, w, i, f: db.give_back(s, w, i, f, _each(i, None)), "queued"),
    "dead_letter": (
        lambda s, w, i, f: db.dead_letter(s, w, i, f, _each(i, "never"), _each(i, "no"), _each(i, None)),
        "dead",
    ),
    "cancel": (lambda s, w, i, f: db.cancel_running(s, w, i, f, _each(i, "no")), "cancelled"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_whoever_is_not_the_owner_or_has_an_older_fence_changes_nothing_and_is_told(
    verb: str, app: PgQueue, connection: Look
) -> None:
    write, state = VERBS[verb]
    worker, claim = claimed(app, connection, fails=1)
    other = worker_row(app, connection, tasks=["test.task"])
    before = everything(connection)
    for who, fence in ((other, claim.fence), (uuid4(), claim.fence), (worker, claim.fence - 1), (worker, 3)):
        assert run(connection, write(app.statements, who, [claim.id], [fence])) == set()
        assert everything(connection) == before
    assert run(connection, write(app.statements, worker, [claim.id], [claim.fence])) == {claim.id}
    assert ended(connection, claim.id).state == state
    after = everything(connection)
    for again in VERBS.values():  # the claim is over: nothing more can be written with it
        assert run(connection, again[0](app.statements, worker, [claim.id], [claim.fence])) == set()
    assert everything(connection) == after


@pytest.mark.parametrize("verb", VERBS)
def test_a_batch_settles_those_that_are_still_ours_and_names_them(verb: str, app: PgQueue, connection: Look) -> None:
    write, state = VERBS[verb]
    worker = worker_row(app, connection, tasks=["test.task"])
    for _ in range(4):
        app.enqueue_alone(NewJob("test.task", "{}", Options()))
    claims = run(connection, db.claim(app.statements, worker, ["test.task"], None, 4))
    ids, fences = [claim.id for claim in claims], [claim.fence for claim in claims]
    fences[1] += 1
    connection.execute("update pgqueue.jobs set worker_id = %s where id = %s", [uuid4(), ids[2]])
    gone = [999_999, *ids]
    assert run(connection, write(app.statements, worker, gone[::-1], [1, *fences][::-1])) == {ids[0], ids[3]}
    assert [ended(connection, job_id).state for job_id in ids] == [state, "running", "running", state]


def test_retry_snooze_and_release_say_when_the_job_runs_again_by_the_statements_clock(
    app: PgQueue, connection: Look
) -> None:
    run_at = NOW - timedelta(hours=1)
    expected = {"retry": NOW + timedelta(seconds=90.5), "snooze": NOW + timedelta(seconds=90.5)}
    for verb, delay in (("retry", 90.5), ("snooze", 90.5), ("release", None)):
        worker, claim = claimed(app, connection)
        connection.execute("update pgqueue.jobs set run_at = %s where id = %s", [run_at, claim.id])
        mine: tuple[Any, ...] = (app.statements, worker, [claim.id], [claim.fence], [delay])
        run(connection, db.retry(*mine, ["no"], [None], NOW) if verb == "retry" else db.give_back(*mine, NOW))
        row = ended(connection, claim.id)
        assert (row.state, row.run_at, row.worker_id) == ("queued", expected.get(verb, run_at), None), verb
        assert (row.attempt, row.fence) == ((1, 1) if verb == "retry" else (0, 1)), verb
        connection.execute("delete from pgqueue.jobs")


def test_ended_jobs_keep_everything_and_their_failed_attempts_move_along(app: PgQueue, connection: Look) -> None:
    options = {"queue": "q", "priority": 7, "unique_key": "k", "tags": ["t"], "meta": {"m": 1}, "timeout": 9}
    columns = (
        "id, queue, task, priority, attempt, max_attempts, fence, args, unique_key, tags, meta, timeout, created_at"
    )
    for verb in ("complete", "cancel", "dead_letter"):
        worker, claim = claimed(app, connection, fails=2, **options)
        before = connection.execute(f"select {columns}, run_at, started_at, worker_id from pgqueue.jobs").fetchall()
        run(connection, VERBS[verb][0](app.statements, worker, [claim.id], [claim.fence]))
        table = "dead_jobs" if verb == "dead_letter" else "finished_jobs"
        after = f"delete from pgqueue.{table} returning {columns}, run_at, started_at, worker_id, errors"
        ((*kept, errors),) = connection.execute(after).fetchall()
        assert [tuple(kept)] == before, verb
        assert [(one["attempt"], one["fence"], one["error"], one["traceback"]) for one in errors[:2]] == [
            (1, 1, "error 1", "trace 1"),
            (2, 2, "error 2", "trace 2"),
        ]
        assert len(errors) == (3 if verb == "dead_letter" else 2)
        assert everything(connection) == [], verb


# -- through a worker -----------------------------------------------------------------------------------------------


@pytest.fixture
def delays(app: PgQueue, connection: Look) -> list[float]:
    """The stored delay of each retry, by the database's clock; and the job is made due at once, so nobody waits."""
    found: list[float] = []

    @app.on("retried")
    def step(event: Event) -> None:
        sql = (
            "select extract(epoch from run_at - at)::float8 from pgqueue.jobs join pgqueue.job_errors on job_id = id"
            " where id = %s order by job_errors.fence desc limit 1"
        )
        found.extend(row[0] for row in connection.execute(sql, [event.job.id]))
        connection.execute("update pgqueue.jobs set run_at = now() where id = %s and state = 'queued'", [event.job.id])

    return found


def test_a_job_that_keeps_failing_is_tried_4_times_after_2_4_and_8_seconds_and_then_dead_lettered(
    app: PgQueue, connection: Look, drain: Drain, delays: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[tuple[int, int]] = []

    @app.task(name="poison")
    def poison(order: int, ctx: Context) -> None:
        attempts.append((ctx.job.attempt, ctx.job.fence))
        raise LookupError(f"no order in attempt {ctx.job.attempt}")

    caplog.set_level(logging.INFO)
    job = poison.enqueue(connection, 7)
    drain()
    assert attempts == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert len(delays) == 3
    for delay, stated in zip(delays, (2, 4, 8), strict=True):
        assert stated <= delay <= stated * 1.1  # never earlier than stated; the jitter comes on top
    row = ended(connection, job)
    assert (row.state, row.reason, row.attempt, row.fence) == ("dead", "attempts", 4, 4)
    assert (row.error, row.args, row.died_at) == ("LookupError: no order in attempt 4", {"order": 7}, row.finished_at)
    assert [(one["attempt"], one["fence"], one["error"]) for one in row.errors] == [
        (n, n, f"LookupError: no order in attempt {n}") for n in (1, 2, 3, 4)
    ]
    assert all("in poison" in one["traceback"] and one["error"] in one["traceback"] for one in row.errors)
    moments = [datetime.fromisoformat(one["at"]) for one in row.errors]
    assert moments == sorted(moments)
    assert moments[-1] == row.died_at
    counts = "select (select count(*) from pgqueue.jobs), (select count(*) from pgqueue.job_errors)"
    assert connection.execute(counts).fetchone() == (0, 0)
    levels = [(record.levelname, vars(record)["event"]) for record in caplog.records if "job_id" in vars(record)]
    assert levels == [("WARNING", "job_retried")] * 3 + [("ERROR", "job_dead_lettered")]
    assert all("no order" not in str(vars(record)) for record in caplog.records)  # an error's text may hold secrets


def test_a_job_that_succeeds_later_keeps_the_errors_of_its_failed_attempts(
    app: PgQueue, connection: Look, drain: Drain, delays: list[float]
) -> None:
    @app.task(name="flaky")
    async def flaky(ctx: Context) -> str:
        if ctx.job.attempt < 3:
            raise ConnectionError(f"refused {ctx.job.attempt}")
        return "done"

    job = flaky.enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.result, row.error, row.attempt) == ("completed", "done", None, 3)
    assert [(one["attempt"], one["error"]) for one in row.errors] == [
        (1, "ConnectionError: refused 1"),
        (2, "ConnectionError: refused 2"),
    ]
    assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)


def _breaks(attempt: int, error: BaseException) -> float:
    raise RuntimeError("a bug in the backoff")


POLICIES: dict[str, tuple[Any, list[float]]] = {
    "capped": (RetryPolicy(delay=1, factor=10, max_delay=5, jitter=0), [1, 5, 5]),
    "constant": (RetryPolicy(delay=3, factor=1, jitter=0), [3, 3, 3]),
    "a function": (lambda attempt, error: attempt * 10 + len(str(error)), [14, 24, 34]),
    "a function that gives up": (lambda attempt, error: 7 if attempt < 2 else None, [7]),
    "a function that breaks": (RetryPolicy(delay=1, factor=2, jitter=0, backoff=_breaks), [1, 2, 4]),
    "a function that gives nonsense": (RetryPolicy(delay=1, factor=3, jitter=0, backoff=lambda a, e: -1), [1, 3, 9]),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_delays_are_those_of_the_tasks_policy(
    policy: str, app: PgQueue, connection: Look, drain: Drain, delays: list[float]
) -> None:
    retry, expected = POLICIES[policy]

    @app.task(name="fails", retry=retry)
    def fails() -> None:
        raise ValueError("1234")

    job = fails.enqueue(connection)
    drain()
    assert delays == expected
    row = ended(connection, job)
    assert (row.state, row.reason, row.attempt) == ("dead", "attempts", len(expected) + 1)


def test_a_jobs_own_policy_and_max_attempts_go_before_the_tasks(
    app: PgQueue, connection: Look, drain: Drain, delays: list[float]
) -> None:
    @app.task(name="fails", max_attempts=9, retry=RetryPolicy(delay=100, never=(OSError,)))
    def fails() -> None:
        raise ConnectionError("x")

    own = RetryPolicy(delay=1, factor=2, jitter=0)
    job = fails.options(retry=own, max_attempts=3).enqueue(connection)
    drain()
    assert delays == [1, 2]
    row = ended(connection, job)
    assert (row.reason, row.attempt) == ("attempts", 3)


class Declined(Exception): ...


@pytest.mark.parametrize("where", ["task", "job"])
@pytest.mark.parametrize(
    ("rule", "error", "retried"),
    [
        ({"never": (ValueError,)}, ValueError, False),
        ({"never": (ValueError,)}, UnicodeError, False),  # of the same family
        ({"never": (ValueError,)}, KeyError, True),
        ({"on": (OSError, Declined)}, ConnectionResetError, True),
        ({"on": (OSError, Declined)}, Declined, True),
        ({"on": (OSError, Declined)}, KeyError, False),
        ({"on": (OSError,), "never": (TimeoutError,)}, TimeoutError, False),
        ({}, SystemExit, True),
        ({"on": (OSError,)}, SystemExit, False),
        ({"never": (SystemExit,)}, SystemExit, False),
    ],
)
def test_errors_are_retried_as_on_and_never_say(
    where: str,
    rule: dict[str, Any],
    error: type[BaseException],
    retried: bool,
    app: PgQueue,
    connection: Look,
    drain: Drain,
) -> None:
    policy = RetryPolicy(delay=0, **rule)

    @app.task(name="fails", max_attempts=2, retry=policy if where == "task" else None)
    def fails() -> None:
        raise error("no")

    task: Task[..., Any] = fails if where == "task" else fails.options(retry=policy)
    job = task.enqueue(connection)
    drain()
    row = ended(connection, job)
    expected = ("attempts", 2) if retried else ("never", 1)
    assert (row.state, row.reason, row.attempt, len(row.errors)) == ("dead", *expected, expected[1])


def test_a_job_may_ask_to_be_retried_later_and_that_uses_an_attempt(
    app: PgQueue, connection: Look, drain: Drain, delays: list[float]
) -> None:
    @app.task(name="later", retry=RetryPolicy(delay=3, factor=1, jitter=0))
    async def later(ctx: Context) -> None:
        raise [RetryLater(600, "busy"), RetryLater(), RetryLater(60), RetryLater(5)][ctx.job.attempt - 1]

    job = later.enqueue(connection)
    drain()
    assert delays == [600, 3, 60]
    row = ended(connection, job)
    assert (row.reason, row.attempt, row.errors[0]["error"], row.errors[0]["traceback"]) == (
        "attempts",
        4,
        "busy",
        None,
    )


def test_a_snoozed_job_runs_again_in_the_same_attempt(app: PgQueue, connection: Look, drain: Drain) -> None:
    asked: list[tuple[float | None, timedelta]] = []

    @app.on("snoozed")
    def step(event: Event) -> None:
        left = connection.execute("select run_at - now() from pgqueue.jobs where id = %s", [event.job.id])
        asked.extend((event.delay, row[0]) for row in left)
        connection.execute("update pgqueue.jobs set run_at = now() where id = %s", [event.job.id])

    @app.task(name="sleepy")
    def sleepy(ctx: Context) -> list[int]:
        if ctx.job.fence < 4:
            raise Snooze(3600)
        return [ctx.job.attempt, ctx.job.fence]

    job = sleepy.enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.result, row.attempt, row.errors) == ("completed", [1, 4], 1, None)
    assert [delay for delay, _ in asked] == [3600] * 3
    assert all(timedelta(minutes=59) < left <= timedelta(hours=1) for _, left in asked)


@pytest.mark.parametrize(
    ("steer", "state", "reason", "error"),
    [
        (Cancel("the order was cancelled"), "cancelled", None, "the order was cancelled"),
        (Cancel(), "cancelled", None, "the job cancelled itself"),
        (Cancel("a\0b\ud800"), "cancelled", None, "a\\x00b\\ud800"),
        (DeadLetter("by hand, please"), "dead", "dead_letter", "by hand, please"),
        (DeadLetter(), "dead", "dead_letter", "the job asked for the dead-letter table"),
    ],
)
def test_a_job_may_cancel_or_dead_letter_itself_whatever_attempts_are_left(
    steer: BaseException, state: str, reason: str | None, error: str, app: PgQueue, connection: Look, drain: Drain
) -> None:
    @app.task(name="steers")
    def steers() -> None:
        raise steer

    job = steers.enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.reason, row.error, row.attempt, row.result) == (state, reason, error, 1, None)


def test_a_timeout_is_retried_like_any_failure_and_the_last_one_is_the_reason(
    app: PgQueue, connection: Look, drain: Drain, delays: list[float]
) -> None:
    @app.task(name="slow", max_attempts=2, timeout=0.02, retry=RetryPolicy(delay=5, jitter=0))
    async def slow() -> None:
        await asyncio.sleep(60)

    job = slow.enqueue(connection)
    drain()
    assert delays == [5]
    row = ended(connection, job)
    assert (row.reason, row.attempt, len(row.errors)) == ("timeout", 2, 2)


# -- what is told ---------------------------------------------------------------------------------------------------


@pytest.fixture
def told(app: PgQueue) -> dict[str, list[Event]]:
    """Every event, heard by a sync and by an async handler: both must have heard the same."""
    heard: dict[str, list[Event]] = {name: [] for name in NAMES}
    lock = threading.Lock()

    def sync(event: Event) -> None:
        with lock:
            heard[event.name].append(event)

    async def awaited(event: Event) -> None:
        await asyncio.sleep(0)
        sync(event)

    for name in NAMES:
        app.on(name)(sync)
        app.on(name)(awaited)
    return heard


def both(events: list[Event]) -> list[Event]:
    """Each event once, after it was seen to have reached both handlers; ordered by fence."""
    events = sorted(events, key=lambda event: (event.job.id, event.job.fence))
    assert events[::2] == events[1::2]
    return events[::2]


def test_every_transition_is_told_to_sync_and_async_handlers(
    app: PgQueue, connection: Look, drain: Drain, told: dict[str, list[Event]]
) -> None:
    @app.task(name="play", queue="q", max_attempts=2, retry=RetryPolicy(delay=0))
    def play(ctx: Context, *, ends: list[str]) -> str:
        end = ends[ctx.job.fence - 1]
        if end == "fail":
            raise ValueError(f"failed {ctx.job.attempt}")
        if end == "return":
            return "done"
        raise {"snooze": Snooze(0), "cancel": Cancel("enough"), "dead": DeadLetter("give up")}[end]

    scripts = [["return"], ["fail", "snooze", "return"], ["fail", "fail"], ["cancel"], ["dead"]]
    jobs = [play.enqueue(connection, ends=ends).id for ends in scripts]
    drain(concurrency=1)

    def heard(name: str) -> list[tuple[Any, ...]]:
        return [(e.job.id, e.job.attempt, e.job.fence, e.job.state, e.error, e.delay) for e in both(told[name])]

    one, two, three, four, five = jobs
    assert [row[:4] for row in heard("started")] == [
        (one, 1, 1, "running"),
        *((two, 1, 1, "running"), (two, 2, 2, "running"), (two, 2, 3, "running")),
        *((three, 1, 1, "running"), (three, 2, 2, "running")),
        *((four, 1, 1, "running"), (five, 1, 1, "running")),
    ]
    assert heard("completed") == [(one, 1, 1, "completed", None, None), (two, 2, 3, "completed", None, None)]
    assert heard("failed") == [
        (two, 1, 1, "running", "ValueError: failed 1", None),
        (three, 1, 1, "running", "ValueError: failed 1", None),
        (three, 2, 2, "running", "ValueError: failed 2", None),
        (five, 1, 1, "running", "give up", None),
    ]
    assert heard("retried") == [
        (two, 1, 1, "queued", "ValueError: failed 1", 0.0),
        (three, 1, 1, "queued", "ValueError: failed 1", 0.0),
    ]
    assert heard("snoozed") == [(two, 2, 2, "queued", None, 0.0)]
    assert heard("cancelled") == [(four, 1, 1, "cancelled", "enough", None)]
    assert heard("dead_lettered") == [
        (three, 2, 2, "dead", "ValueError: failed 2", None),
        (five, 1, 1, "dead", "give up", None),
    ]
    assert {event.job.queue for events in told.values() for event in events} == {"q"}
    assert not any(told[name] for name in ("released", "rescued", "claim_lost"))


def test_a_job_taken_back_from_a_dead_worker_is_told_as_rescued(
    app: PgQueue, connection: Look, drain: Drain, told: dict[str, list[Event]], caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="test.task")
    def task() -> None: ...

    job_id = job_in(app, connection, "running")
    connection.execute("update pgqueue.workers set expires_at = now()")
    drain()
    (event,) = both(told["rescued"])
    assert (event.job.id, event.job.task, event.job.state, event.job.attempt) == (job_id, "test.task", "queued", 0)
    assert ended(connection, job_id).state == "completed"
    assert [vars(r)["job_id"] for r in caplog.records if vars(r).get("event") == "job_rescued"] == [job_id]


def test_a_job_interrupted_by_a_stopping_worker_is_released_without_using_an_attempt(
    app: PgQueue, connection: Look, told: dict[str, list[Event]]
) -> None:
    @app.task(name="long")
    async def long() -> None:
        worker.stop()
        await asyncio.sleep(3600)

    job = long.enqueue(connection)
    worker = app.worker(poll_interval=0.05, grace=0.05)
    asyncio.run(worker.run_async())
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence, row.worker_id, row.run_at) == ("queued", 0, 1, None, job.run_at)
    assert [event.job.id for event in both(told["released"])] == [job.id]
    assert not told["failed"]


def test_a_lost_claim_is_logged_and_told_and_its_result_is_dropped(
    app: PgQueue, connection: Look, drain: Drain, told: dict[str, list[Event]], caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="zombie")
    def zombie(ctx: Context) -> str:
        if ctx.job.fence == 1:  # somebody believes this worker dead while it runs the job
            assert ctx.job.worker_id is not None
            with connection.transaction():
                run(connection, bury(app.statements, [ctx.job.worker_id], "it seemed dead", crashed=False))
        return f"run {ctx.job.fence}"

    job = zombie.enqueue(connection)
    drain(lease=1.5)
    row = ended(connection, job)
    assert (row.state, row.result, row.fence, row.attempt) == ("completed", "run 2", 2, 1)
    (event,) = both(told["claim_lost"])
    assert (event.job.id, event.job.fence) == (job.id, 1)
    assert [e.job.fence for e in both(told["completed"])] == [2]
    (line,) = [record for record in caplog.records if vars(record).get("event") == "claim_lost"]
    assert (line.levelname, vars(line)["job_id"], vars(line)["fence"]) == ("ERROR", job.id, 1)


def test_a_handler_that_fails_harms_neither_the_job_nor_the_other_handlers(
    app: PgQueue, connection: Look, drain: Drain, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    @app.on("completed")
    def breaks(event: Event) -> None:
        raise RuntimeError("handler")

    @app.on("completed")
    async def breaks_too(event: Event) -> None:
        raise RuntimeError("handler")

    @app.on("completed")
    def exits(event: Event) -> None:
        raise SystemExit(3)

    @app.on("completed")
    async def hears(event: Event) -> None:
        heard.append(event.job.task)

    @app.task(name="fine")
    def fine() -> None: ...

    fine.enqueue_many(connection, [(), ()])
    drain(concurrency=1)
    assert heard == ["fine", "fine"]
    assert connection.execute("select count(*) from pgqueue.finished_jobs").fetchone() == (2,)
    failed = [record for record in caplog.records if vars(record).get("event") == "handler_failed"]
    assert len(failed) == 6
    assert {vars(record)["error"] for record in failed} == {
        "RuntimeError: handler",
        "SystemExit: 3",
    }
    assert all(vars(record)["traceback"].endswith(vars(record)["error"]) for record in failed)
    with pytest.raises(ConfigurationError, match="no event 'finished'"):
        app.on("finished")(lambda event: None)


def test_a_worker_that_ends_while_a_settle_is_refused_says_so_and_the_job_runs_again(
    app: PgQueue, connection: Look, caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute("alter table pgqueue.finished_jobs add constraint picky check (task <> 'task')")

    @app.task(name="task")
    def task() -> None:
        """Ends well, and nobody may write that down."""

    job = task.enqueue(connection)
    asyncio.run(app.worker(drain=True, poll_interval=0.05).run_async())
    (line,) = [record for record in caplog.records if vars(record).get("event") == "unsettled"]
    assert line.getMessage() == f"PostgreSQL refuses to settle 1 jobs, which will be rescued and run again: {job.id}"
    assert ended(connection, job).state == "queued"
    assert ended(connection, job).attempt == 0


@pytest.mark.parametrize("code", ["22023", "23514"], ids=["a value", "a rule of the table"])
@pytest.mark.parametrize("returns", ["something", None])
def test_a_settle_that_the_database_refuses_holds_up_no_other_job_and_is_repeated_not_the_job(
    returns: str | None,
    code: str,
    app: PgQueue,
    connection: Look,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(loop, "_GHOSTS_EVERY", 0.1)
    monkeypatch.setattr(settle, "_REFUSED", (0.1, 0.2))
    connection.execute(
        f"""
        create function refuse() returns trigger language plpgsql as
            $$ begin raise 'no' using errcode = tg_argv[0]; end $$;
        create trigger refuse before insert on pgqueue.finished_jobs
            for each row when (new.args ->> 'refused' = 'true') execute function refuse({code});
        """
    )

    @app.task(name="task")
    def task(refused: bool) -> str | None:
        runs.append(refused)
        return returns

    runs: list[bool] = []
    jobs = [task.enqueue(connection, refused) for refused in (False, True, False)]
    with working(app):
        done = "select count(*) from pgqueue.finished_jobs"
        eventually(lambda: connection.execute(done).fetchone() == (2,))
        eventually(lambda: sum(vars(record).get("event") == "settle_refused" for record in caplog.records) > 3)
        assert ended(connection, jobs[1]).state == "running"
        connection.execute("drop trigger refuse on pgqueue.finished_jobs")
        eventually(lambda: connection.execute(done).fetchone() == (3,))
    assert sorted(runs) == [False, False, True]
    assert ended(connection, jobs[1]).fence == 1
    assert ended(connection, jobs[1]).result == returns
