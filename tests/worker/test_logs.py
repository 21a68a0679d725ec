"""What a worker says: a line an event, that names the job, its task and its attempt, and never shows its arguments."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time

import pytest

from pgqueue import Context, logs
from tests.crash import tasks
from tests.crash.processes import ended
from tests.helpers import eventually
from tests.worker import in_processes

CANARY = "s3cr3t-canary"
NASTY = "first\nsecond\r\x1b[31mred\u2028\u202e"


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_of_a_worker(start, connection, form):
    good = tasks.quick.enqueue(connection, CANARY).id
    bad = tasks.fail.enqueue(connection, CANARY).id  # its error message repeats the argument
    chatty = tasks.talk.enqueue(connection, NASTY).id
    worker = start(drain=True, log_format=form, log_level="debug")
    assert worker.wait() == 0
    assert [ended(connection, job).state for job in (good, bad, chatty)] == ["completed", "dead", "completed"]

    text = worker.text()
    assert CANARY not in text
    assert "Traceback" not in text
    lines = text.split("\n")[:-1]
    assert all(line.isprintable() for line in lines)
    seen = _read_json(lines) if form == "json" else _read_text(lines)
    assert (good, tasks.quick.name, 1, "INFO", "completed") in seen
    assert (bad, tasks.fail.name, 1, "WARNING", "attempt failed, runs again in 0.1 s") in seen
    assert (bad, tasks.fail.name, 2, "ERROR", "moved to the dead-letter table") in seen
    said = NASTY if form == "json" else NASTY.encode("unicode_escape").decode()
    assert (chatty, tasks.talk.name, 1, "INFO", said) in seen
    assert sum(line.count("RuntimeError") for line in lines) == 2  # the class of the error, in both lines about it


def test_jobs_that_complete_by_the_dozen_are_summed_up_and_none_is_left_out(app, connection, work, logged):
    @app.task(name="test.quick")
    async def quick(number: int) -> None: ...

    quick.enqueue_many(connection, [(number,) for number in range(3_000)])
    work(concurrency=20)
    eventually(lambda: connection.execute("select count(*) from pgqueue.finished_jobs").fetchone() == (3_000,))

    def told() -> list[int]:
        sums = [record.args[0] for record in logged("jobs_completed")]
        alone = [record for record in logged("job_completed") if record.levelno == logging.INFO]
        return [sum(sums) + len(alone), len(logged("job_completed"))]

    eventually(lambda: told() == [3_000, 3_000])
    assert 0 < len(logged("jobs_completed")) < 300
    assert {record.task for record in logged("jobs_completed")} == {"test.quick"}


@pytest.fixture
def lines():
    """What a handler with pgqueue's JSON formatter writes of the logger "library" and of pgqueue's own, as objects."""
    out, before = io.StringIO(), logs.names_jobs
    handler = logging.StreamHandler(out)
    handler.setFormatter(logs.JsonFormatter())
    loggers = [logging.getLogger("library"), logging.getLogger("pgqueue")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    logs.names_jobs = before


def test_what_is_logged_inside_a_job_names_that_job_and_no_other(app, connection, work, lines):
    library = logging.getLogger("library")

    @app.task(name="test.sync")
    def sync(ctx: Context) -> None:
        library.info("%d", ctx.job.id)
        time.sleep(0)
        library.info("%d", ctx.job.id)

    @app.task(name="test.async_")
    async def async_(ctx: Context) -> None:
        library.info("%d", ctx.job.id)
        await asyncio.sleep(0)
        library.info("%d", ctx.job.id)
        await asyncio.create_task(later(ctx.job.id))
        ctx.log.info("%d", ctx.job.id, extra={"order_id": ctx.job.id})

    async def later(job: int) -> None:
        library.info("%d", job)

    @app.on("started")  # from where the one before was started
    @app.on("completed")
    async def outside(event) -> None:
        library.info("outside")

    ids = [task.enqueue(connection).id for _ in range(20) for task in (sync, async_)]
    work(concurrency=8)
    eventually(lambda: connection.execute("select count(*) from pgqueue.finished_jobs").fetchone() == (40,))
    eventually(lambda: sum(line["message"] == "outside" for line in lines()) == 80)
    inside = [line for line in lines() if line["message"].isdecimal()]
    assert sorted(line["job_id"] for line in inside) == sorted([*ids[::2] * 2, *ids[1::2] * 4])
    assert all(line["job_id"] == int(line["message"]) for line in inside)
    assert {(line["task"], line["attempt"]) for line in inside} == {("test.sync", 1), ("test.async_", 1)}
    assert [line["extra"] for line in inside if "extra" in line] == [
        {"order_id": line["job_id"]} for line in inside if line["logger"] == "pgqueue"
    ]
    assert not [line for line in lines() if line["message"] == "outside" and "job_id" in line]


def test_what_is_logged_in_a_process_of_a_job_names_the_job_too(app, connection, work, lines):
    shout = app.task(name="test.shout", run_in="process")(in_processes.shout_for_a_library)
    job = shout.enqueue(connection).id
    work()
    eventually(lambda: ended(connection, job).state == "completed", timeout=30)
    (line,) = [line for line in lines() if line["message"] == "from a library"]
    assert (line["logger"], line["job_id"], line["task"], line["attempt"]) == ("library", job, "test.shout", 1)
    assert line["extra"] == {"order_id": 7}


def test_without_a_formatter_that_asks_no_attempt_is_remembered(app, connection, work, monkeypatch):
    monkeypatch.setattr(logs, "names_jobs", False)
    seen = []

    @app.task(name="test.look")
    def look() -> None:
        seen.append(logs.running.get())

    look.enqueue(connection)
    work()
    eventually(lambda: seen == [None])


def _read_json(lines: list[str]) -> set[tuple[object, ...]]:
    found = [json.loads(line) for line in lines]
    return {(one.get("job_id"), one.get("task"), one.get("attempt"), one["level"], one["message"]) for one in found}


def _read_text(lines: list[str]) -> set[tuple[object, ...]]:
    found = set()
    for line in lines:
        _, level, rest = line.split(maxsplit=2)
        message, _, fields = rest.partition(" job_id=")
        named = dict(word.partition("=")[::2] for word in f"job_id={fields}".split() if fields)
        job, attempt = named.get("job_id"), named.get("attempt")
        found.add((job and int(job), named.get("task"), attempt and int(attempt), level, message))
    return found
