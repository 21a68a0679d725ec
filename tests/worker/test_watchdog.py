"""A job that blocks the event loop is named, once, with the place where it is; and for how long it was, afterwards."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from pgqueue import Context
from pgqueue.worker.watchdog import Watchdog
from tests.crash import tasks
from tests.crash.processes import ended
from tests.helpers import eventually


@pytest.fixture
def watched(app, monkeypatch):
    """The worker of this process has a watchdog, too, that looks more often."""
    from pgqueue.worker.loop import Loop

    honest = Loop.run

    async def run(self: Any) -> None:
        watchdog = Watchdog(look=0.02)
        watchdog.start()
        try:
            await honest(self)
        finally:
            watchdog.end()
            watchdog.join()

    monkeypatch.setattr(Loop, "run", run)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize(
    "inside",
    [
        "the job before it waits",
        "the job after it has waited",
        pytest.param(
            "a task that it has started",
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="nobody says of a task whose it is"),
        ),
    ],
)
def test_a_job_that_blocks_the_event_loop_is_named_once_with_its_place_and_no_value(
    app, work, connection, logged, monkeypatch, inside
):
    monkeypatch.setattr("pgqueue.logs.names_jobs", True)  # as in `pgqueue worker`
    gate, awaits = threading.Event(), threading.Event()

    async def stand_still(secret: str) -> None:
        gate.wait(30)

    @app.task
    async def block(ctx: Context, secret: str) -> None:
        if inside == "the job after it has waited":
            await asyncio.sleep(0.01)
        await (asyncio.create_task(stand_still(secret)) if "started" in inside else stand_still(secret))

    @app.task
    async def wait() -> None:
        while not awaits.is_set():
            await asyncio.sleep(0.01)

    patient = wait.enqueue(connection)
    work(concurrency=2)
    job = block.enqueue(connection, "hunter2")
    (line,) = eventually(lambda: logged("loop_blocked"))
    assert (line.job_id, line.task, line.attempt) == (job.id, block.name, 1)
    text = line.getMessage()
    assert "gate.wait(30)" in text
    assert "in stand_still" in text
    assert "hunter2" not in text
    assert not logged("loop_free")
    gate.set()
    (free,) = eventually(lambda: logged("loop_free"))
    assert free.seconds >= line.seconds
    awaits.set()
    for one in (job, patient):
        assert ended(connection, one.id).state == "completed"
    assert len(logged("loop_blocked")) == 1


def test_a_worker_names_the_job_that_blocks_it(start, ledger, connection):
    job = tasks.block_loop.enqueue(connection, "gate").id
    worker = start()
    (line,) = eventually(lambda: worker.log("loop_blocked"), timeout=30)
    assert (line["job_id"], line["task"]) == (job, tasks.block_loop.name)
    assert "in block_loop" in line["message"]
    ledger.open("gate")
    assert ended(connection, job).state == "completed"
    eventually(lambda: worker.log("loop_free"))
    assert len(worker.log("loop_blocked")) == 1
