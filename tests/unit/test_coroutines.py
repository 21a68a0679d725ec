"""Async jobs share an asyncio task as long as they do not wait, and nothing of one job reaches the next."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pgqueue.worker.coroutines import Coroutines

MARK: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="clean")


class _Attempt:
    log_fields: dict[str, Any] = {}  # noqa: RUF012


class Job:
    """One that notes in which task it ran, and how it ended."""

    attempt = _Attempt()

    def __init__(self, function: Callable[[], Awaitable[Any]]) -> None:
        self._function = function
        self.task: asyncio.Task[Any] | None = None
        self.own: asyncio.Task[Any] | None = None
        self.end: tuple[Any, BaseException | None] | None = None

    def begin(self) -> Any:
        async def body() -> Any:
            self.task = asyncio.current_task()
            return await self._function()

        return body()

    def waits(self, task: asyncio.Task[Any]) -> None:
        self.own = task

    def ends(self, result: Any, error: BaseException | None) -> None:
        self.end = result, error


def run(*functions: Callable[[], Awaitable[Any]]) -> list[Job]:
    """The jobs, when all of them have ended."""

    async def main() -> list[Job]:
        coroutines, jobs = Coroutines(), [Job(function) for function in functions]
        for job in jobs:
            coroutines.start(job)
        async with asyncio.timeout(10):
            while not all(job.end for job in jobs):
                await asyncio.sleep(0.001)
        return jobs

    return asyncio.run(main())


async def mark() -> str:
    return MARK.get()


async def wait_and_mark() -> str:
    await asyncio.sleep(0.01)
    return MARK.get()


async def leave_a_mark() -> None:
    MARK.set("left")


async def fail() -> None:
    raise SystemExit(3)


async def cancel_oneself() -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return "went on"


def test_jobs_that_do_not_wait_share_a_task() -> None:
    first, second = run(mark, mark)
    assert first.task is second.task
    assert (first.own, first.end) == (None, ("clean", None))


def test_a_job_that_waits_has_its_task_to_itself() -> None:
    first, second, third = run(wait_and_mark, wait_and_mark, mark)
    assert first.own is first.task
    assert len({first.task, second.task, third.task}) == 3
    assert first.end == ("clean", None)


@pytest.mark.parametrize("before", [leave_a_mark, cancel_oneself, fail])
@pytest.mark.parametrize("after", [mark, wait_and_mark])
def test_nothing_of_a_job_reaches_the_next(before: Any, after: Any) -> None:
    _, second = run(before, after)
    assert second.end == ("clean", None)


def test_who_cancels_himself_is_cancelled_and_what_leaves_a_process_is_an_error() -> None:
    cancelled, left = run(cancel_oneself, fail)
    assert cancelled.end is not None
    assert isinstance(cancelled.end[1], asyncio.CancelledError)
    assert left.end is not None
    assert isinstance(left.end[1], SystemExit)
