"""What runs for too long: told at its timeout, called stuck at its hard_timeout, and late whatever it returns."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest

from pgqueue import Context, PgQueue, TaskTimeout
from tests.helpers import eventually
from tests.life.workbench import ended

Look = psycopg.Connection[Any]


@pytest.mark.parametrize("timeout", [None, 0.1])
def test_a_thread_that_is_stuck_is_told_and_then_named(
    app: PgQueue, connection: Look, work: Any, logged: Any, timeout: float | None
) -> None:
    hold = threading.Event()
    told: list[bool] = []

    @app.task(name="test.task", timeout=timeout, hard_timeout=0.3, max_attempts=1)
    def task(ctx: Context) -> str:
        assert hold.wait(60)
        told.append(ctx.cancelled)
        return "late"

    job = task.enqueue(connection).id
    try:
        work()
        stuck = eventually(lambda: [one for one in logged("job_stuck") if one.levelname == "ERROR"])
        assert "ran longer than its hard_timeout of 0.3 s and cannot be killed here" in stuck[0].getMessage()
        assert (ended(connection, job).state, stuck[0].job_id) == ("running", job)
    finally:
        hold.set()
    eventually(lambda: ended(connection, job).state == "dead")
    assert told == [True]
    row = ended(connection, job)
    limit = "hard_timeout of 0.3 s" if timeout is None else "timeout of 0.1 s"
    assert (row.reason, row.error.partition(": ")[2]) == ("timeout", f"the attempt ran longer than its {limit}")


def test_an_async_job_that_swallows_its_timeout_is_cancelled_again_at_its_hard_timeout(
    app: PgQueue, connection: Look, work: Any
) -> None:
    heard: list[str] = []

    @app.task(name="test.task", timeout=0.05, hard_timeout=0.2, max_attempts=1)
    async def task() -> None:
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard.append("cancelled")

    job = task.enqueue(connection).id
    work()
    eventually(lambda: ended(connection, job).state == "dead")
    assert heard == ["cancelled"] * 2
    assert ended(connection, job).reason == "timeout"
    assert TaskTimeout.__name__ in ended(connection, job).error


def test_a_job_that_ends_before_its_limits_hears_nothing_of_them(
    app: PgQueue, connection: Look, work: Any, logged: Any
) -> None:
    @app.task(name="test.task", timeout=0.2, hard_timeout=0.3)
    async def task(ctx: Context) -> bool:
        return ctx.cancelled

    @app.task(name="test.long")
    async def long() -> None:
        await asyncio.sleep(0.5)

    job = task.enqueue(connection).id
    last = long.enqueue(connection).id
    work()
    eventually(lambda: ended(connection, last).state == "completed")
    assert (ended(connection, job).state, ended(connection, job).result) == ("completed", False)
    assert not logged("job_stuck")
