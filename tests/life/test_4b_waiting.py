"""Results to wait for: whichever way a job ends, whoever waits is told, once and soon, also when no NOTIFY arrives."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pgqueue import (
    Context,
    InvalidOption,
    Job,
    JobFailed,
    JobNotFound,
    OperationError,
    PgQueue,
    ResultGone,
    SchemaError,
    WaitTimeout,
    db,
    waiting,
)
from pgqueue.maintenance.rescue import bury
from tests.helpers import eventually, job_in, run, worker_row
from tests.life.workbench import ended, working
from tests.roles import new_role

Look = psycopg.Connection[Any]
NEVER = 3_000.0  # seconds between looks that no test waits for
SESSIONS = "select count(*) from pg_stat_activity where application_name = 'pgqueue waiting'"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """How it is waited."""
    return str(request.param)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, app: PgQueue) -> Iterator[None]:
    """No thread of one test waits in the next."""
    yield
    app.close()
    eventually(lambda: not [one for one in threading.enumerate() if one.name == "pgqueue waiting"])


def begin(app: PgQueue, job: int, kind: str = "sync", timeout: float | None = None) -> Callable[[], Any]:
    """Waits for it in a thread; what gives the result, or raises."""
    pool = ThreadPoolExecutor(1)

    def wait() -> Any:
        if kind == "sync":
            return app.jobs.wait(job, timeout)
        return asyncio.run(app.jobs.wait_async(job, timeout))

    future = pool.submit(wait)
    pool.shutdown(wait=False)
    return future.result


def is_known(connection: Look, *jobs: int) -> None:
    """Returns when the process has written down that it waits for these, and has looked for the last time before its
    poll."""
    rows = "select count(distinct job_id) from pgqueue.waiters where job_id = any(%s)"
    eventually(lambda: connection.execute(rows, [list(jobs)]).fetchone() == (len(jobs),))
    quiet = (
        "select bool_and(state = 'idle' and query_start < clock_timestamp() - interval '0.2 s') from pg_stat_activity"
        " where application_name = 'pgqueue waiting' and datname = current_database()"
    )
    eventually(lambda: connection.execute(quiet).fetchone() == (True,))


def looks_on(connection: Look, times: int = 3) -> None:
    """Returns when it has looked so many times more."""
    query = (
        "select query_start from pg_stat_activity where application_name = 'pgqueue waiting'"
        " and datname = current_database() and query like '%%is_called%%'"
    )
    seen: set[Any] = set()

    def enough() -> bool:
        seen.update(connection.execute(query).fetchall())
        return len(seen) > times

    eventually(enough)


def claimed(app: PgQueue, connection: Look) -> tuple[int, Any, int]:
    """A job that runs: its id, worker and fence."""
    job = job_in(app, connection, "running")
    row = ended(connection, job)
    return job, row.worker_id, row.fence


Ending = Callable[[PgQueue, Look, int], Any]


def _settled(write: Callable[..., Any], *each: Any) -> Ending:
    """As a worker does that knows that somebody waits."""

    def end(app: PgQueue, connection: Look, job: int) -> None:
        row = ended(connection, job)
        done = run(connection, write(app.statements, row.worker_id, [job], [row.fence], *([one] for one in each)))
        assert done == {job}
        run(connection, db.answer(app.statements, [job]))

    return end


def _asked(app: PgQueue, connection: Look, job: int) -> None:
    run(connection, db.cancel(app.statements, [job], "enough"))
    row = ended(connection, job)
    (done,) = run(connection, db.cancel_asked(app.statements, row.worker_id, [job], [row.fence]))
    assert (done.id, done.why) == (job, "enough")


def _lost(app: PgQueue, connection: Look, job: int) -> None:
    run(connection, db.cancel(app.statements, [job], "enough"))
    run(connection, bury(app.statements, [ended(connection, job).worker_id], "gone", crashed=False))


def _crashed(app: PgQueue, connection: Look, job: int) -> None:
    connection.execute("update pgqueue.jobs set crashes = 2 where id = %s", [job])
    run(connection, bury(app.statements, [ended(connection, job).worker_id], "killed by SIGKILL", crashed=True))


def _expired(app: PgQueue, connection: Look, job: int) -> None:
    connection.execute("update pgqueue.jobs set expires_at = now() + interval '1 minute' where id = %s", [job])
    run(connection, db.expire(app.statements, 10, datetime.now(UTC) + timedelta(hours=1)))


# how a job ends: (its state before, what ends it, what its waiter gets: a result, or state, reason and error)
ENDINGS: dict[str, tuple[str, Ending, Any]] = {
    "completes": ("running", _settled(db.complete, '{"sent": [1, null, "ä"]}'), {"sent": [1, None, "ä"]}),
    "completes with nothing": ("running", _settled(db.complete, None), None),
    "its result was dropped": (
        "running",
        _settled(db.complete, '{"$pgqueue": "result dropped", "bytes": 300000, "why": "larger than 262144 bytes"}'),
        {"$pgqueue": "result dropped", "bytes": 300000, "why": "larger than 262144 bytes"},
    ),
    "dies": ("running", _settled(db.dead_letter, "never", "Boom: no\nmore", None), ("dead", "never", "Boom: no\nmore")),
    "cancels itself": ("running", _settled(db.cancel_running, "why not"), ("cancelled", None, "why not")),
    "is cancelled": (
        "queued",
        lambda app, _, job: app.jobs.cancel(job, "wrong file"),
        ("cancelled", None, "wrong file"),
    ),
    "is cancelled in sql": (
        "queued",
        lambda _, connection, job: connection.execute("select pgqueue.cancel(%s, 'no')", [job]),
        ("cancelled", None, "no"),
    ),
    "is cancelled while it runs": ("running", _asked, ("cancelled", None, "enough")),
    "is cancelled and its worker lost": ("running", _lost, ("cancelled", None, "enough")),
    "kills its process": ("running", _crashed, ("dead", "crashed", "killed by SIGKILL")),
    "expires": ("queued", _expired, ("expired", None, "not started before it expired")),
}  # fmt: skip


def check(get: Callable[[], Any], job: int, expected: Any) -> None:
    """It is the result, or the error."""
    if not isinstance(expected, tuple):
        assert get() == expected
        return
    with pytest.raises(JobFailed) as raised:
        get()
    error = raised.value
    assert (error.job_id, error.state, error.reason, error.error) == (job, *expected)
    state, reason, said = expected
    shown = said.replace("\n", "\\n")
    assert str(error) == f"job {job} is {state}{f' ({reason})' if reason else ''}: {shown}"


@pytest.mark.parametrize("how", ENDINGS)
def test_who_waits_is_notified_whichever_way_the_job_ends(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    monkeypatch.setattr(waiting, "POLL", NEVER)
    before, end, expected = ENDINGS[how]
    job = job_in(app, connection, before)
    get = begin(app, job, kind)
    is_known(connection, job)
    end(app, connection, job)
    check(get, job, expected)
    eventually(lambda: connection.execute("select count(*) from pgqueue.waiters").fetchone() == (0,))


@pytest.mark.parametrize("how", ENDINGS)
def test_who_waits_hears_of_it_when_the_notification_is_lost(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    monkeypatch.setattr(waiting, "POLL", 0.5)
    before, end, expected = ENDINGS[how]
    job = job_in(app, connection, before)
    get = begin(app, job, kind)
    eventually(lambda: connection.execute("select count(*) from pgqueue.waiters").fetchone() == (1,))
    looks_on(connection, 4)  # past those that follow the first
    connection.execute("delete from pgqueue.waiters")
    end(app, connection, job)
    check(get, job, expected)


@pytest.mark.parametrize("how", ENDINGS)
def test_one_that_has_ended_needs_no_waiting(app: PgQueue, connection: Look, kind: str, how: str) -> None:
    before, end, expected = ENDINGS[how]
    job = job_in(app, connection, before)
    end(app, connection, job)
    check(begin(app, job, kind, timeout=0), job, expected)


# -- through a worker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True], ids=["returns", "in its own transaction"])
def test_a_worker_tells_who_waits_as_soon_as_it_has_settled(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch, kind: str, own: bool
) -> None:
    monkeypatch.setattr(waiting, "POLL", NEVER)
    go = threading.Event()

    @app.task
    def double(ctx: Context, n: int) -> int:
        assert go.wait(20)
        if own:
            with ctx.transaction():
                ctx.complete(2 * n)
        return 2 * n

    with working(app):
        first = double.delay(1)
        get = begin(app, first.id, kind)
        is_known(connection, first.id)
        go.set()
        assert get() == 2
        for n in range(20):  # from now on it is known that somebody waits
            job = double.delay(n)
            assert job.wait() == 2 * n


@pytest.mark.parametrize("steer", ["raises", "cancel"])
def test_a_worker_tells_of_a_job_that_fails_or_is_asked_to_end(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch, steer: str
) -> None:
    monkeypatch.setattr(waiting, "POLL", NEVER)
    go = threading.Event()

    @app.task(max_attempts=1)
    def fails(ctx: Context) -> None:
        while not go.is_set() and not ctx.cancelled:
            time.sleep(0.01)
        if steer == "raises":
            raise ValueError("no more")

    with working(app):
        job = fails.delay()
        get = begin(app, job.id)
        is_known(connection, job.id)
        eventually(lambda: ended(connection, job).state == "running")
        if steer == "raises":
            go.set()
            check(get, job.id, ("dead", "attempts", "ValueError: no more"))
        else:
            assert app.jobs.cancel(job.id, "enough")
            check(get, job.id, ("cancelled", None, "enough"))


def test_a_worker_says_nothing_of_jobs_that_end_while_nobody_waits(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    answer = db.answer

    def spy(sql: Any, ids: list[int]) -> Any:
        told.extend(ids)
        return answer(sql, ids)

    monkeypatch.setattr(db, "answer", spy)

    @app.task
    def nothing() -> None:
        """A job that is done as soon as it is started."""

    with working(app):
        jobs = [nothing.delay() for _ in range(10)]
        eventually(lambda: all(ended(connection, job).state == "completed" for job in jobs))
        assert told == []
        other = job_in(app, connection, "queued", "nobody")
        get = begin(app, other)
        eventually(lambda: connection.execute("select count(*) from pgqueue.waiters").fetchone() == (1,))
        eventually(lambda: nothing.delay() and told)  # so it would have shown
    assert app.jobs.cancel(other, "enough")
    check(get, other, ("cancelled", None, "enough"))


def test_a_task_that_keeps_no_result_gives_none(app: PgQueue, connection: Look, drain: Callable[..., None]) -> None:
    @app.task(keep_result=False)
    def returns() -> str:
        return "secret"

    @app.task(keep_result=False)
    def completes(ctx: Context) -> None:
        with ctx.transaction():
            ctx.complete("secret")

    @app.task(name="keeps")
    def keeps() -> str:
        return "kept"

    jobs = [returns.delay(), completes.delay(), keeps.delay()]
    drain()
    assert [job.wait(20) for job in jobs] == [None, None, "kept"]
    assert [ended(connection, job).result for job in jobs] == [None, None, "kept"]
    with pytest.raises(InvalidOption, match=r"^keep_result must be True or False, not int$"):
        app.task(keep_result=0)(keeps.function)  # type: ignore[call-overload]


# -- until something else comes ----------------------------------------------------------------------------------------


def test_who_waits_hears_nothing_while_the_job_is_tried_again(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(waiting, "POLL", 0.05)
    job, worker, fence = claimed(app, connection)
    get = begin(app, job, kind)
    eventually(lambda: connection.execute("select count(*) from pgqueue.waiters").fetchone() == (1,))
    run(connection, db.retry(app.statements, worker, [job], [fence], [0.0], ["no"], [None]))
    ((claim),) = run(connection, db.claim(app.statements, worker, ["test.task"], None, 10))
    run(connection, db.give_back(app.statements, worker, [job], [claim.fence], [None]))
    ((claim),) = run(connection, db.claim(app.statements, worker, ["test.task"], None, 10))
    run(connection, db.complete(app.statements, worker, [job], [claim.fence], ["7"]))
    assert get() == 7


def test_a_job_that_is_redriven_before_anybody_looked_is_waited_for_again(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "POLL", NEVER)
    job, worker, fence = claimed(app, connection)
    get = begin(app, job)
    is_known(connection, job)
    run(connection, db.dead_letter(app.statements, worker, [job], [fence], ["never"], ["no"], [None]))  # told to nobody
    assert app.dead.redrive(job) == [job]
    (claim,) = run(connection, db.claim(app.statements, worker, ["test.task"], None, 10))
    run(connection, db.complete(app.statements, worker, [job], [claim.fence], ["7"]))
    run(connection, db.answer(app.statements, [job]))
    assert get() == 7
    assert app.jobs.wait(job, 0) == 7


@pytest.mark.parametrize("timeout", [0, 0.3, timedelta(seconds=0.3)])
def test_the_time_is_up_when_it_is(app: PgQueue, connection: Look, kind: str, timeout: Any) -> None:
    job = job_in(app, connection, "queued")
    began = time.monotonic()
    with pytest.raises(
        WaitTimeout, match=rf"^job {job}: after {'0.3' if timeout else '0'} s it has not ended$"
    ) as told:
        begin(app, job, kind, timeout)()
    assert isinstance(told.value, TimeoutError)
    assert time.monotonic() - began >= (0.3 if timeout else 0)
    eventually(lambda: connection.execute("select count(*) from pgqueue.waiters").fetchone() == (0,))


def test_at_the_end_of_its_time_it_looks_once_more(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "POLL", NEVER)
    job, worker, fence = claimed(app, connection)
    get = begin(app, job, timeout=1.5)
    is_known(connection, job)
    run(connection, db.complete(app.statements, worker, [job], [fence], ["7"]))  # and nobody is told
    assert get() == 7


@pytest.mark.parametrize(
    ("job_id", "timeout", "message"),
    [
        ("7", None, r"^a job's id must be a whole number, not str$"),
        (True, None, r"^a job's id must be a whole number, not bool$"),
        (-1, None, r"^a job's id must be between 0 and 9223372036854775807, not -1$"),
        (2**63, None, r"^a job's id must be between 0 and 9223372036854775807, not 9223372036854775808$"),
        (7, "5", r"^timeout must be a number of seconds, not str$"),
        (7, True, r"^timeout must be a number of seconds, not bool$"),
        (7, -1, r"^timeout must be between 0 and .* seconds, not -1$"),
        (7, float("nan"), r"^timeout must be between 0 and .* seconds, not nan$"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(app: PgQueue, kind: str, job_id: Any, timeout: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        begin(app, job_id, kind, timeout)()


def test_on_an_event_loop_only_the_async_one_waits(app: PgQueue, connection: Look) -> None:
    job = app.jobs.get(job_in(app, connection, "completed"))

    async def both() -> Any:
        with pytest.raises(OperationError, match=r"^wait\(\) would hold up this event loop .*: await wait_async\(\)$"):
            job.wait(20)
        return await job.wait_async(20)

    assert asyncio.run(both()) is None


def test_a_wait_that_is_cancelled_is_forgotten(app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, "queued")

    async def cancelled() -> None:
        wait = asyncio.create_task(app.jobs.wait_async(job))
        await asyncio.to_thread(is_known, connection, job)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait

    asyncio.run(cancelled())
    eventually(lambda: connection.execute("select count(*) from pgqueue.waiters").fetchone() == (0,))


# -- nowhere -----------------------------------------------------------------------------------------------------------


def test_an_id_that_no_job_ever_had_is_not_found(app: PgQueue, connection: Look, kind: str) -> None:
    for _ in range(2):  # also of the first job of all
        (job,) = connection.execute(
            "select case when is_called then last_value + 1 else last_value end from pgqueue.jobs_id_seq"
        ).fetchone() or (0,)
        with pytest.raises(JobNotFound, match=rf"^there is no job {job}$"):
            begin(app, job, kind)()
        job_in(app, connection, "queued")


GONE = r"^job {} is nowhere any more: it has ended and is not kept, or its enqueue was rolled back$"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_the_result_of_a_task_that_keeps_nothing_is_gone(
    app: PgQueue, connection: Look, drain: Callable[..., None], kind: str, when: str
) -> None:
    @app.task(keep=0)
    def nothing() -> None:
        """Nothing."""

    job = nothing.delay().id
    if when == "before":
        drain()
    get = begin(app, job, kind)
    if when == "meanwhile":
        is_known(connection, job)
        drain()
    with pytest.raises(ResultGone, match=GONE.format(job)):
        get()


def test_one_that_was_pruned_before_anybody_looked_is_gone_also_during_a_long_transaction(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been seen: nobody needs to know of the transaction what it will bring."""
    monkeypatch.setattr(waiting, "POLL", 0.3)
    job, worker, fence = claimed(app, connection)
    with psycopg.connect(app.conninfo) as other:
        other.execute("select pg_current_xact_id()")
        get = begin(app, job)
        is_known(connection, job)
        with connection.transaction():
            run(connection, db.complete(app.statements, worker, [job], [fence], ["7"]))
            connection.execute("delete from pgqueue.finished_jobs")
        with pytest.raises(ResultGone, match=GONE.format(job)):
            get()


@pytest.mark.parametrize("end", ["commit", "rollback", "nothing"])
@pytest.mark.parametrize("savepoint", [False, True])
def test_ones_own_enqueue_that_is_not_committed_is_waited_for(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch, end: str, savepoint: bool
) -> None:
    """Also with nothing else going on in the database, where no transaction has ended since that would be younger."""
    monkeypatch.setattr(waiting, "POLL", 0.1)

    @app.task(name="test.task")
    def nothing() -> None:
        """Nothing."""

    with psycopg.connect(app.conninfo) as own:
        if savepoint:
            own.execute("savepoint s")
        job = nothing.enqueue(own).id
        get = begin(app, job, timeout=2 if end == "nothing" else 20)
        eventually(lambda: connection.execute("select count(*) from pgqueue.waiters").fetchone() == (1,))
        if end == "nothing":
            with pytest.raises(WaitTimeout, match=r"after 2 s it is nowhere to be seen: is its enqueue committed\?$"):
                get()
            return
        looks_on(connection)
        own.execute(end)
    if end == "rollback":
        with pytest.raises(ResultGone, match=GONE.format(job)):
            get()
        return
    worker = worker_row(app, connection, ["test.task"])
    (claim,) = run(connection, db.claim(app.statements, worker, ["test.task"], None, 10))
    run(connection, db.complete(app.statements, worker, [job], [claim.fence], ["7"]))
    assert get() == 7


def test_a_result_that_the_server_cannot_hold_as_text_hides_no_other(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = job_in(app, connection, "completed"), job_in(app, connection, "completed")
    outcomes = db.outcomes

    def too_large(sql: Any, ids: list[int], *, bare: bool = False) -> Any:
        if one in ids and not bare:
            raise psycopg.errors.ProgramLimitExceeded("of a GB of text")
        return outcomes(sql, ids, bare=bare)

    monkeypatch.setattr(db, "outcomes", too_large)
    first, second = begin(app, one), begin(app, other)
    assert second() is None
    assert first() == {"$pgqueue": "unreadable", "why": "larger than the server can hold as text"}


# -- many, and their process -------------------------------------------------------------------------------------------


def test_two_hundred_who_wait_are_one_connection_and_a_statement_a_second(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(name="test.task")
    def nothing() -> None:
        """Nothing."""

    jobs = nothing.enqueue_many(connection, [()] * 100)
    before = connection.execute("select count(*) from pg_stat_activity where datname = current_database()").fetchone()
    asked: list[int] = []
    outcomes = db.outcomes

    def spy(sql: Any, ids: list[int], *, bare: bool = False) -> Any:
        asked.append(len(ids))
        return outcomes(sql, ids, bare=bare)

    monkeypatch.setattr(db, "outcomes", spy)

    async def a_hundred() -> list[Any]:
        return await asyncio.gather(*(app.jobs.wait_async(job, 60) for job in jobs))

    with ThreadPoolExecutor(101) as pool:
        both = [pool.submit(app.jobs.wait, job, 60) for job in jobs]
        loop = pool.submit(asyncio.run, a_hundred())
        is_known(connection, *jobs)
        sessions = f"{SESSIONS} and datname = current_database()"
        assert connection.execute(sessions).fetchone() == (1,)
        now = "select count(*) from pg_stat_activity where datname = current_database()"
        assert connection.execute(now).fetchone() == ((before or (0,))[0] + 1,)
        began, asked[:] = time.monotonic(), []
        eventually(lambda: len(asked) >= 3)
        assert time.monotonic() - began > 1.5  # they look as one
        assert set(asked) == {100}
        worker = worker_row(app, connection, ["test.task"])
        claims = run(connection, db.claim(app.statements, worker, ["test.task"], None, 100))
        fences = {claim.id: claim.fence for claim in claims}
        for job in jobs:
            run(connection, db.complete(app.statements, worker, [job], [fences[job]], [str(job)]))
            run(connection, db.answer(app.statements, [job]))
        assert [one.result(30) for one in both] == jobs
        assert loop.result(30) == jobs


def test_the_thread_and_its_connection_go_a_while_after_the_last_and_come_again(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_IDLE", 0.1)
    job = job_in(app, connection, "completed")
    for _ in range(3):
        assert app.jobs.wait(job, 20) is None
        eventually(lambda: connection.execute(f"{SESSIONS} and datname = current_database()").fetchone() == (0,))
        eventually(lambda: not [one for one in threading.enumerate() if one.name == "pgqueue waiting"])


def test_a_fork_waits_on_its_own(app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, "completed")
    live = job_in(app, connection, "queued")
    get = begin(app, live)
    is_known(connection, live)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if app.jobs.wait(job, 20) is None else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    app.jobs.cancel(live, "enough")
    check(get, live, ("cancelled", None, "enough"))


def test_a_job_that_is_copied_stored_or_compared_has_no_app_with_it(app: PgQueue, connection: Look) -> None:
    job_id = job_in(app, connection, "completed")
    job = app.jobs.get(job_id)
    assert job.wait(20) is None
    assert "_home" not in asdict(job)
    assert "home" not in repr(job)
    thawed = pickle.loads(pickle.dumps(job))
    assert thawed == job == replace(job) == Job(**{**asdict(job), "tags": job.tags})
    for other in (thawed, replace(job)):
        with pytest.raises(OperationError, match=rf"^this Job knows no app to wait with: app.jobs.wait\({job_id}\)$"):
            other.wait()


def test_whatever_gives_a_job_gives_one_to_wait_for(app: PgQueue, connection: Look, drain: Callable[..., None]) -> None:
    @app.task(name="seven")
    def seven() -> int:
        return 7

    app.schedules.add(name="s", task="seven", cron="0 0 1 1 *")

    async def later() -> Job:
        job = await seven.delay_async()
        async with await psycopg.AsyncConnection.connect(app.conninfo) as own:
            other = await seven.enqueue(own)
        await app.close_async()
        return job if job.id < other.id else other

    jobs = [
        seven.delay(),
        seven.enqueue(connection),
        seven.options(unique_key="k").delay(),
        seven.options(unique_key="k").delay(),
        app.schedules.run_now("s"),
        asyncio.run(later()),
    ]
    jobs += app.jobs.list()
    jobs += [app.jobs.get(jobs[0].id, connection=connection), *app.jobs.list(connection=connection)]
    assert {job.existing for job in jobs} == {True, False}
    drain()
    assert [job.wait(20) for job in jobs] == [7] * len(jobs)
    dead = job_in(app, connection, "dead")
    with pytest.raises(JobFailed):
        app.dead.list()[0].wait(20)
    assert app.dead.list()[0].id == dead


# -- when something is not there ---------------------------------------------------------------------------------------


def test_a_role_that_may_only_look_looks_each_second(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch, logged: Any
) -> None:
    monkeypatch.setattr(waiting, "POLL", 0.1)
    job, worker, fence = claimed(app, connection)
    rights = ("usage on schema pgqueue", "select on pgqueue.jobs", "select on pgqueue.finished_jobs")
    rights += ("select on pgqueue.dead_jobs", "select on sequence pgqueue.jobs_id_seq")
    with new_role(app.conninfo, *rights) as role:
        theirs = PgQueue(psycopg.conninfo.make_conninfo(app.conninfo, user=role))
        get = begin(theirs, job)
        eventually(lambda: logged("waiting_by_polling"))
        run(connection, db.complete(app.statements, worker, [job], [fence], ["7"]))
        assert get() == 7
        assert connection.execute("select count(*) from pgqueue.waiters").fetchone() == (0,)
        (record,) = logged("waiting_by_polling")
        assert f'GRANT SELECT, INSERT, UPDATE, DELETE ON "pgqueue"."waiters" TO "{role}"' in record.getMessage()
        theirs.close()


def test_a_role_that_may_not_look_is_told_the_grant(app: PgQueue, connection: Look, kind: str) -> None:
    job = job_in(app, connection, "completed")
    with new_role(app.conninfo, "usage on schema pgqueue", "select on pgqueue.jobs") as role:
        theirs = PgQueue(psycopg.conninfo.make_conninfo(app.conninfo, user=role))
        with pytest.raises(SchemaError, match=r'GRANT SELECT ON "pgqueue"\."finished_jobs" TO '):
            begin(theirs, job, kind)()
        theirs.close()


def test_a_schema_that_is_not_there_is_named(pgqueue_blank_database: str, kind: str) -> None:
    app = PgQueue(pgqueue_blank_database)
    with pytest.raises(SchemaError, match=r"^the schema holds no pgqueue tables.*: run `pgqueue migrate`"):
        begin(app, 1, kind)()
    app.close()


def test_a_database_that_cannot_be_reached_is_told_at_once(kind: str) -> None:
    app = PgQueue("postgresql://127.0.0.1:1/nowhere")
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            begin(app, 1, kind)()


def test_a_connection_that_is_cut_costs_no_wait_anything(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "POLL", NEVER)
    job = job_in(app, connection, "queued")
    get = begin(app, job)
    is_known(connection, job)
    query = f"{SESSIONS.replace('count(*)', 'pid')} and datname = current_database()"
    before = connection.execute(query).fetchall()
    connection.execute("truncate pgqueue.waiters")  # as after a crash of the server
    connection.execute("select pg_terminate_backend(%s)", before[0])
    eventually(lambda: connection.execute(query).fetchall() not in ([], before))
    is_known(connection, job)
    app.jobs.cancel(job, "enough")  # and it is notified again
    check(get, job, ("cancelled", None, "enough"))


def test_what_processes_leave_behind_that_are_gone_is_removed_by_a_worker(app: PgQueue, connection: Look) -> None:
    insert = "insert into pgqueue.waiters values (1, %s, now() + %s)"
    connection.execute(insert, [uuid4(), timedelta(minutes=-2)])
    connection.execute(insert, [uuid4(), timedelta(minutes=1)])
    with working(app):
        eventually(lambda: connection.execute("select count(*) from pgqueue.waiters").fetchone() == (1,))


def test_a_row_is_renewed_while_somebody_waits(app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL", 0.05)
    monkeypatch.setattr(waiting, "_RENEW", 0.05)
    job = job_in(app, connection, "queued")
    get = begin(app, job)
    until = "select until from pgqueue.waiters"
    first = eventually(lambda: connection.execute(until).fetchone())
    eventually(lambda: connection.execute(until).fetchone() > first)
    app.jobs.cancel(job, "enough")
    check(get, job, ("cancelled", None, "enough"))


# -- in a job ----------------------------------------------------------------------------------------------------------


def test_a_job_may_wait_for_another_as_long_as_a_slot_is_left(app: PgQueue, connection: Look) -> None:
    @app.task
    def inner(n: int) -> int:
        return n + 1

    @app.task
    def outer() -> list[int]:
        return [inner.delay(n).wait(20) for n in range(3)]

    @app.task
    async def outer_async() -> list[int]:
        jobs = [await inner.delay_async(n) for n in range(3)]
        await app.close_async()
        return [await job.wait_async(20) for job in jobs]

    @app.task(max_attempts=1)
    async def wrong() -> None:
        inner.delay(1).wait(20)

    with working(app, concurrency=3):
        jobs = [outer.delay(), outer_async.delay()]
        assert [job.wait(20) for job in jobs] == [[1, 2, 3]] * 2
        with pytest.raises(JobFailed, match="would hold up this event loop"):
            wrong.delay().wait(20)


def test_jobs_that_wait_for_each_other_in_all_the_slots_end_by_their_timeouts(app: PgQueue, connection: Look) -> None:
    @app.task
    def inner() -> str:
        return "late"

    @app.task(max_attempts=1)
    def outer() -> None:
        inner.delay().wait(0.5)

    with working(app, concurrency=1):
        job = outer.delay()
        with pytest.raises(JobFailed, match=r"WaitTimeout: job \d+: after 0.5 s it has not ended$"):
            job.wait(20)
        assert app.jobs.wait(job.id + 1, 20) == "late"
