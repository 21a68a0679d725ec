"""What a worker says: a line an event, that names the job, its task and its attempt, and never shows its arguments."""

from __future__ import annotations

import json
import logging

import pytest

from tests.crash import tasks
from tests.crash.processes import ended
from tests.helpers import eventually

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
