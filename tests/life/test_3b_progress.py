"""How far a job is: said by the job, throttled, fenced, and to be read while it runs and after it has ended."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pgqueue import Context, InvalidOption, PgQueue, Progress, db
from pgqueue.job import Job
from tests.helpers import eventually, job_in, run, worker_row
from tests.life.workbench import ended, working

Look = psycopg.Connection[Any]


def said(connection: Look, job: Job | int) -> tuple[float, str | None, int] | None:
    """(fraction, note, attempt) as the table has it."""
    job_id = job if isinstance(job, int) else job.id
    query = "select fraction, note, attempt from pgqueue.progress where job_id = %s"
    return connection.execute(query, [job_id]).fetchone()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_running_job_says_is_in_the_table_and_in_python_while_it_runs(app: PgQueue, connection: Look, kind: str):
    go = threading.Event()

    def count(ctx: Context) -> None:
        ctx.progress(0.4, note="400 of 1,000 rows")
        go.wait(20)

    async def count_async(ctx: Context) -> None:
        ctx.progress(0.4, note="400 of 1,000 rows")
        while not go.is_set():
            await asyncio.sleep(0.01)

    task = app.task(name="count")(count if kind == "sync" else count_async)
    job = task.delay()
    with working(app):
        assert eventually(lambda: said(connection, job)) == (0.4, "400 of 1,000 rows", 1)
        seen = app.jobs.progress(job.id)

        async def ask() -> Progress | None:
            try:
                return await app.jobs.progress_async(job.id)
            finally:
                await app.close_async()

        assert seen == asyncio.run(ask())
        assert seen is not None
        assert (seen.fraction, seen.note, seen.attempt) == (0.4, "400 of 1,000 rows", 1)
        assert ended(connection, job).state == "running"
        go.set()
    assert app.jobs.progress(job.id + 1) is None
    assert app.jobs.progress(2**70) is None
    with pytest.raises(InvalidOption, match=r"^job_id must be a whole number, not '7'$"):
        app.jobs.progress("7")  # type: ignore[arg-type]


@pytest.mark.parametrize("end", ["returns", "fails", "dies", "transaction"])
def test_ten_thousand_words_are_a_few_writes_and_the_last_one_lands_however_the_job_ends(
    app: PgQueue, connection: Look, end: str
) -> None:
    connection.execute("create table written (fraction float8)")
    connection.execute(
        "create function note() returns trigger language plpgsql as "
        "$$ begin insert into public.written values (new.fraction); return new; end $$"
    )
    connection.execute(
        "create trigger note after insert or update on pgqueue.progress for each row execute function note()"
    )

    @app.task(max_attempts=1 if end == "dies" else 4)
    def count(ctx: Context) -> None:
        if ctx.job.attempt > 1:
            return
        if end == "transaction":
            with ctx.transaction():
                for step in range(10_001):
                    ctx.progress(step / 10_000, f"step {step}")
            return
        for step in range(10_001):
            ctx.progress(step / 10_000, f"step {step}")
        if end != "returns":
            raise RuntimeError("no more")

    job = count.delay()
    with working(app):
        eventually(lambda: connection.execute("select 1 from pgqueue.jobs where attempt = 0").fetchone() is None)
        eventually(lambda: said(connection, job) == (1.0, "step 10000", 1))
    (writes,) = connection.execute("select count(*) from written").fetchone() or (0,)
    assert 1 <= writes < 100
    expected = {"returns": "completed", "transaction": "completed", "fails": "queued", "dies": "dead"}
    assert ended(connection, job).state == expected[end]
    seen = app.jobs.progress(job.id)
    assert seen is not None
    assert (seen.fraction, seen.note) == (1.0, "step 10000")


def test_a_rolled_back_transaction_takes_no_word_along(app: PgQueue, connection: Look) -> None:
    """The last word is written in the job's own transaction; when that is rolled back, it is written after all."""
    connection.execute("create table unlike (n int unique deferrable initially deferred)")

    @app.task(max_attempts=1)
    def twice(ctx: Context) -> None:
        with ctx.transaction(driver=True) as raw:
            raw.execute("insert into unlike values (1), (1)")
            ctx.progress(0.9, "nearly")

    job = twice.delay()
    with working(app):
        eventually(lambda: ended(connection, job).state == "dead")
    assert said(connection, job) == (0.9, "nearly", 1)


def test_a_worker_that_lost_a_job_writes_nothing_of_it_and_the_job_is_told(app: PgQueue, connection: Look) -> None:
    go, heard = threading.Event(), threading.Event()

    @app.task
    def slow(ctx: Context) -> None:
        ctx.progress(0.1, "mine")
        go.wait(20)
        ctx.progress(0.2, "not mine any more")
        while not ctx.cancelled:
            pass
        heard.set()

    job = slow.delay()
    with working(app):
        eventually(lambda: said(connection, job))
        other = worker_row(app, connection, tasks=["other"])
        take = "update pgqueue.jobs set worker_id = %s, fence = fence + 1 where id = %s returning fence"
        (fence,) = connection.execute(take, [other, job.id]).fetchone() or (0,)
        assert run(connection, db.progress(app.statements, other, [job.id], [fence], [0.05], ["the other's"], [1])) == {
            job.id
        }
        go.set()
        assert heard.wait(20)
        assert said(connection, job) == (0.05, "the other's", 1)


def test_an_older_claim_that_was_in_time_does_not_write_over_a_newer_ones_word(app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, "running")
    worker, fence = connection.execute("select worker_id, fence from pgqueue.jobs where id = %s", [job]).fetchone() or (
        uuid4(),
        0,
    )
    connection.execute(
        "insert into pgqueue.progress (job_id, fence, attempt, fraction, note, at) "
        "values (%s, %s, 2, 0.5, 'newer', now())",
        [job, fence + 1],
    )
    run(connection, db.progress(app.statements, worker, [job], [fence], [0.7], ["older"], [9]))
    assert said(connection, job) == (0.5, "newer", 2)


def test_a_word_that_was_under_way_does_not_write_over_the_one_of_the_jobs_own_transaction(
    app: PgQueue, connection: Look
) -> None:
    """Sent before the job's transaction commits, it waits there for that row, and would go on after it."""
    job = job_in(app, connection, "running")
    query = "select worker_id, fence from pgqueue.jobs where id = %s"
    worker, fence = connection.execute(query, [job]).fetchone() or (uuid4(), 0)
    waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with (
        psycopg.connect(app.conninfo) as own,
        psycopg.connect(app.conninfo, autocommit=True) as settler,
        ThreadPoolExecutor(1) as pool,
    ):
        run(own, db.progress(app.statements, worker, [job], [fence], [1.0], ["the last"], [2]))
        older = db.progress(app.statements, worker, [job], [fence], [0.9], ["older"], [1])
        writing = pool.submit(run, settler, older)
        eventually(lambda: connection.execute(waits).fetchone())
        own.commit()
        assert writing.result(20) == {job}
    assert said(connection, job) == (1.0, "the last", 1)


@pytest.mark.parametrize(
    ("fraction", "note", "message"),
    [
        (1.1, None, r"^progress must be between 0 and 1, not 1.1$"),
        (-0.1, None, r"^progress must be between 0 and 1, not -0.1$"),
        (float("nan"), None, r"^progress must be between 0 and 1, not nan$"),
        (float("inf"), None, r"^progress must be between 0 and 1, not inf$"),
        pytest.param(10**5000, None, r"^progress must be between 0 and 1, not a number of that size$", id="huge"),
        (True, None, r"^progress must be a number between 0 and 1, not bool$"),
        ("0.5", None, r"^progress must be a number between 0 and 1, not str$"),
        (None, None, r"^progress must be a number between 0 and 1, not NoneType$"),
        (0.5, 7, r"^note must be text, not int$"),
        (0.5, "x" * 1_001, r"^note must be at most 1,000 characters, not 1,001$"),
        (0.5, "a\0b", r"^note must be text without NUL"),
        (0.5, "a\ud800b", r"^note must be text without NUL"),
    ],
)
def test_a_bad_word_is_refused_in_one_line(fraction: Any, note: Any, message: str) -> None:
    ctx = Context(Job(id=1, task="t"), logging.getLogger("pgqueue"))  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=message) as refusal:
        ctx.progress(fraction, note)
    assert "\n" not in str(refusal.value)


def test_tenths_that_were_added_up_are_one_and_without_a_worker_nobody_is_told() -> None:
    ctx = Context(Job(id=1, task="t"), logging.getLogger("pgqueue"))  # type: ignore[arg-type]
    heard: list[tuple[float, str | None]] = []

    class Own:
        def progress(self, fraction: float, note: str | None) -> None:
            heard.append((fraction, note))

    ctx.progress(0.5)
    ctx._own = Own()  # type: ignore[assignment]
    ctx.progress(sum([0.1] * 3) / 0.3)
    ctx.progress(1, "x" * 1_000)
    assert heard == [(1.0, None), (1.0, "x" * 1_000)]


def test_a_word_that_the_table_refuses_holds_up_no_settle(app: PgQueue, connection: Look, caplog):
    connection.execute("alter table pgqueue.progress add constraint never check (false)")

    @app.task
    def count(ctx: Context) -> None:
        ctx.progress(0.5)

    job = count.delay()
    with caplog.at_level(logging.WARNING, "pgqueue"), working(app):
        eventually(lambda: ended(connection, job).state == "completed")
    assert "PostgreSQL refused what jobs say of their progress (CheckViolation)" in caplog.messages


def test_the_last_word_outlives_the_job_by_an_hour_and_a_dead_jobs_stays(app: PgQueue, connection: Look) -> None:
    jobs = {state: job_in(app, connection, state) for state in ("completed", "cancelled", "dead", "queued", "running")}
    jobs["pruned"] = 10**9
    for job in jobs.values():
        connection.execute("insert into pgqueue.progress values (%s, 1, 1, 0.5, null, now())", [job])
    assert run(connection, db.prune_progress(app.statements, 100)) == set()
    later = datetime.now(UTC) + timedelta(hours=1, minutes=1)
    assert len(run(connection, db.prune_progress(app.statements, 2, later))) == 2
    gone = run(connection, db.prune_progress(app.statements, 100, later))
    left = {row[0] for row in connection.execute("select job_id from pgqueue.progress")}
    assert len(gone) == 1
    assert left == {jobs["dead"], jobs["queued"], jobs["running"]}


def test_a_worker_removes_them_by_itself(app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, "completed")
    connection.execute("insert into pgqueue.progress values (%s, 1, 1, 0.5, null, now() - interval '2 hours')", [job])
    with working(app):
        eventually(lambda: said(connection, job) is None)


def test_jobs_that_say_nothing_cost_no_statement(app: PgQueue, connection: Look, caplog) -> None:
    @app.task
    def silent(ctx: Context) -> None:
        ctx.log.debug("not a word")

    @app.task
    def talks(ctx: Context) -> None:
        ctx.progress(0.5)

    refused = "PostgreSQL refused what jobs say of their progress (UndefinedTable)"
    with caplog.at_level(logging.WARNING, "pgqueue"), working(app):
        first = silent.delay()
        eventually(lambda: ended(connection, first).state == "completed")  # it has started, which takes the table
        connection.execute("alter table pgqueue.progress rename to elsewhere")
        jobs = [silent.delay() for _ in range(30)]
        eventually(lambda: all(ended(connection, job).state == "completed" for job in jobs))
        assert refused not in caplog.messages
        job = talks.delay()
        eventually(lambda: ended(connection, job).state == "completed")
        eventually(lambda: refused in caplog.messages)  # so it would have shown
