"""What a job says in its log, of a task that keeps it: bounded, fenced, before its end, and gone with the job."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgqueue import Context, InvalidOption, PgQueue, RetryPolicy, db
from pgqueue.job import Job
from tests.helpers import eventually, job_in, run, worker_row
from tests.life.workbench import ended, working

Look = psycopg.Connection[Any]


def said(app: PgQueue, job: Job) -> list[tuple[int, str, str]]:
    return [(line.attempt, line.level, line.message) for line in app.jobs.log(job.id)]


@contextmanager
def silence(connection: Look) -> Iterator[None]:
    """Meanwhile no line can be written."""
    connection.execute("alter table pgqueue.job_logs rename to elsewhere")
    yield
    connection.execute("alter table pgqueue.elsewhere rename to job_logs")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_running_job_says_is_there_within_a_second_and_dated_when_it_was_said(
    app: PgQueue, connection: Look, kind: str
) -> None:
    go = threading.Event()

    def talk(ctx: Context) -> None:
        ctx.log.info("%d of %d", 1, 2)
        ctx.log.warning("100% {sure}")
        go.wait(20)

    async def talk_async(ctx: Context) -> None:
        ctx.log.info("%d of %d", 1, 2)
        ctx.log.warning("100% {sure}")
        while not go.is_set():
            await asyncio.sleep(0.01)

    job = app.task(keep_log=True)(talk if kind == "sync" else talk_async).delay()
    with working(app):
        eventually(lambda: said(app, job) == [(1, "INFO", "1 of 2"), (1, "WARNING", "100% {sure}")])
        row = ended(connection, job)
        assert row.state == "running"
        assert all(row.started_at <= line.at for line in app.jobs.log(job.id) if line.at)
        go.set()
    assert ended(connection, job).state == "completed"


@pytest.mark.parametrize("end", ["returns", "fails", "dies", "transaction", "after it", "transaction rolled back"])
def test_every_line_is_there_when_the_job_has_ended_however_it_ends(app: PgQueue, connection: Look, end: str) -> None:
    @app.task(
        keep_log=True, max_attempts=1 if end in ("dies", "transaction rolled back") else 2, retry=RetryPolicy(delay=0)
    )
    def talk(ctx: Context) -> None:
        ctx.log.info("attempt %d begins", ctx.job.attempt)
        if "transaction" in end or end == "after it":
            with ctx.transaction():
                ctx.log.info("inside")
                if "rolled" in end:
                    raise RuntimeError("no")
            if end == "after it":
                ctx.log.info("after it")
        elif end == "dies" or (end == "fails" and ctx.job.attempt == 1):
            try:
                raise RuntimeError("no more")
            except RuntimeError:
                ctx.log.exception("it failed")
                raise

    job = talk.delay()
    with working(app, drain=True):
        eventually(lambda: ended(connection, job).state in ("completed", "dead"))
    begins = [(1, "INFO", "attempt 1 begins")]
    lines = said(app, job)
    match end:
        case "returns":
            assert lines == begins
        case "fails" | "dies":
            assert [(number, level) for number, level, _ in lines[:2]] == [(1, "INFO"), (1, "ERROR")]
            assert lines[1][2].startswith("it failed\n")
            assert lines[1][2].endswith("RuntimeError: no more")
            assert lines[2:] == ([] if end == "dies" else [(2, "INFO", "attempt 2 begins")])
            assert [line.attempt for line in app.jobs.log(job.id, attempt=1)] == [1, 1]
        case "after it":
            assert lines == [*begins, (1, "INFO", "inside"), (1, "INFO", "after it")]
        case _:
            assert lines == [*begins, (1, "INFO", "inside")]


def test_an_attempt_keeps_a_thousand_lines_and_says_how_many_it_dropped(app: PgQueue, connection: Look) -> None:
    connection.execute("create table written (n int)")
    connection.execute(
        "create function note() returns trigger language plpgsql as "
        "$$ begin insert into public.written select count(*) from fresh; return null; end $$"
    )
    connection.execute(
        "create trigger note after insert on pgqueue.job_logs referencing new table as fresh "
        "for each statement execute function note()"
    )

    @app.task(keep_log=True, retry=RetryPolicy(delay=0))
    async def talk(ctx: Context) -> None:
        for number in range(1, 3_346 if ctx.job.attempt == 1 else 3):
            ctx.log.info("line %d", number)
        if ctx.job.attempt == 1:
            raise RuntimeError("again")

    job = talk.delay()
    with working(app):
        eventually(lambda: ended(connection, job).state == "completed")
    lines = said(app, job)
    assert lines[:1_000] == [(1, "INFO", f"line {number}") for number in range(1, 1_001)]
    assert lines[1_000:] == [(1, "WARNING", "2,345 more dropped"), (2, "INFO", "line 1"), (2, "INFO", "line 2")]
    assert said(app, job)[-2:] == [(line.attempt, line.level, line.message) for line in app.jobs.log(job.id, limit=2)]
    (statements,) = connection.execute("select count(*) from written where n > 0").fetchone() or (0,)
    assert 2 <= statements < 20


def test_a_line_is_cut_and_what_cannot_be_stored_is_written_out(app: PgQueue, connection: Look) -> None:
    class Broken:
        def __str__(self) -> str:
            raise SystemExit("no")

    @app.task(keep_log=True)
    def talk(ctx: Context) -> None:
        ctx.log.info("x" * 5_000)
        ctx.log.info("a\0b\ud800c")
        logging.raiseExceptions = False  # or logging itself prints a traceback of what cannot be printed
        ctx.log.error("%d", "seven")
        ctx.log.error(Broken())
        ctx.log.log(35, "unusual")

    job = talk.delay()
    with working(app):
        eventually(lambda: ended(connection, job).state in ("completed", "queued") and len(said(app, job)) >= 4)
    lines = said(app, job)
    assert lines[0] == (1, "INFO", "x" * 1_999 + "…")
    assert lines[1] == (1, "INFO", r"a\x00b\ud800c")
    assert lines[2] == (1, "ERROR", "(this line cannot be printed: TypeError)")
    assert lines[3] == (1, "ERROR", "(this line cannot be printed: SystemExit)")


def test_info_is_kept_whatever_the_worker_logs_and_debug_where_it_logs_that(
    app: PgQueue, connection: Look, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(keep_log=True)
    def talk(ctx: Context) -> None:
        ctx.log.debug("fine")
        ctx.log.info("plain")

    for level, kept in ((logging.ERROR, ["plain"]), (logging.DEBUG, ["fine", "plain"])):
        caplog.set_level(level, logger="pgqueue")
        caplog.clear()
        job = talk.delay()
        with working(app):
            eventually(lambda job=job: ended(connection, job).state == "completed")
        assert [message for _, _, message in said(app, job)] == kept
    (record,) = [record for record in caplog.records if record.getMessage() == "plain"]
    assert (record.funcName, record.job_id) == ("talk", job.id)  # type: ignore[attr-defined]


def test_a_worker_that_lost_a_job_writes_nothing_of_it(app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, "running")
    query = "select worker_id, fence from pgqueue.jobs where id = %s"
    worker, fence = connection.execute(query, [job]).fetchone() or (None, 0)
    other = worker_row(app, connection, tasks=["other"])

    def write(who: Any, at: int, number: int) -> set[int]:
        return run(connection, db.log_lines(app.statements, who, [job], [at], [number], [0.0], ["INFO"], ["x"]))

    assert write(worker, fence, 1) == {job}
    assert write(worker, fence, 1) == set()  # an answer was lost: it is there already
    assert write(other, fence, 2) == set()
    assert write(worker, fence + 1, 2) == set()
    run(connection, db.retry(app.statements, worker, [job], [fence], [0.0], ["no"], [None]))
    assert write(worker, fence, 2) == set()
    assert connection.execute("select job_id, fence, n from pgqueue.job_logs").fetchall() == [(job, fence, 1)]


def test_what_the_table_refuses_holds_up_no_settle(app: PgQueue, connection: Look, logged: Any) -> None:
    connection.execute("alter table pgqueue.job_logs add constraint never check (false)")

    @app.task(keep_log=True)
    def talk(ctx: Context) -> None:
        ctx.log.info("x")

    job = talk.delay()
    with working(app):
        eventually(lambda: ended(connection, job).state == "completed")
    (record,) = logged("log_refused")
    assert record.getMessage() == "PostgreSQL refused what jobs say in their logs (CheckViolation)"


def test_a_task_that_does_not_ask_costs_no_statement_and_keeps_nothing(
    app: PgQueue, connection: Look, logged: Any
) -> None:
    @app.task
    def plain(ctx: Context) -> None:
        ctx.log.info("not kept")

    @app.task(keep_log=True)
    def asks(ctx: Context) -> None:
        ctx.log.info("kept")

    with working(app):
        first = plain.delay()
        eventually(lambda: ended(connection, first).state == "completed")  # it has started, which takes the table
        with silence(connection):
            jobs = [plain.delay() for _ in range(20)]
            eventually(lambda: all(ended(connection, job).state == "completed" for job in jobs))
            assert not logged("log_refused")
            job = asks.delay()
            eventually(lambda: ended(connection, job).state == "completed")
            eventually(lambda: logged("log_refused"))  # so it would have shown
    assert app.jobs.log(first.id) == []


def test_the_lines_go_with_the_job_and_stay_as_long_as_it_is_anywhere(app: PgQueue, connection: Look) -> None:
    kept = [job_in(app, connection, state) for state in ("queued", "running", "completed", "cancelled", "dead")]
    gone = [10**9, 10**9 + 1]
    add = "insert into pgqueue.job_logs values (%s, 1, %s, 1, now(), 'INFO', 'x')"
    for job in (*kept, *gone):
        for number in (1, 2):
            connection.execute(add, [job, number])
    steps, after = 0, 0
    while (at := run(connection, db.prune_logs(app.statements, after, 3))) is not None:
        steps, after = steps + 1, at
    assert steps == 2
    assert {row[0] for row in connection.execute("select job_id from pgqueue.job_logs")} == set(kept)
    connection.execute("delete from pgqueue.finished_jobs")
    with working(app):  # by itself
        left = "select distinct job_id from pgqueue.job_logs"
        there = {kept[0], kept[1], kept[4]}
        eventually(lambda: {row[0] for row in connection.execute(left)} == there)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda app: app.jobs.log("7"), "a job's id must be a whole number, not str"),
        (lambda app: app.jobs.log(2**70), "a job's id must be between 0 and"),
        (lambda app: app.jobs.log(7, attempt=True), "attempt must be a whole number, not bool"),
        (lambda app: app.jobs.log(7, limit=0), "limit must be between 1 and 100000"),
        (lambda app: app.task(name="t", keep_log="yes")(lambda: None), "keep_log must be True or False, not str"),
    ],
    ids=range(5),
)
def test_a_bad_value_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        call(PgQueue("postgresql://nobody@127.0.0.1:1/nowhere"))
