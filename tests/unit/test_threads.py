"""worker/threads.py: sync tasks run side by side, each with its caller's context, and no thread outlives its work."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from pgqueue.worker.threads import Threads
from tests.helpers import eventually


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pgqueue-job-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert not ours()
    yield
    eventually(lambda: not ours())


def with_threads(size: int, use: Callable[[Threads], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        threads = Threads(size)
        try:
            return await use(threads)
        finally:
            threads.close()

    return asyncio.run(main())


def test_as_many_run_side_by_side_as_there_are_threads() -> None:
    meet = threading.Barrier(5)

    async def use(threads: Threads) -> None:
        async with asyncio.timeout(10):  # they meet or they never end
            await asyncio.gather(*(threads.submit(meet.wait) for _ in range(5)))

    with_threads(5, use)


def test_no_more_than_that_run_at_once_and_the_rest_waits_its_turn() -> None:
    running, most, order = 0, 0, []
    lock = threading.Lock()

    def job(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            order.append(number)
        threading.Event().wait(0.001)
        with lock:
            running -= 1
        return number

    async def use(threads: Threads) -> list[int]:
        futures = [threads.submit(lambda number=number: job(number)) for number in range(50)]
        return await asyncio.gather(*futures)

    assert with_threads(3, use) == list(range(50))
    assert most <= 3
    assert sorted(order) == list(range(50))


def test_one_thread_runs_in_the_order_of_submission() -> None:
    order: list[int] = []

    async def use(threads: Threads) -> None:
        await asyncio.gather(*(threads.submit(lambda number=number: order.append(number)) for number in range(100)))

    with_threads(1, use)
    assert order == list(range(100))


def test_threads_are_started_as_they_are_needed_and_used_again() -> None:
    async def use(threads: Threads) -> None:
        names = {await threads.submit(lambda: threading.current_thread().name) for _ in range(20)}
        assert names == {"pgqueue-job-1"}
        assert len(ours()) == 1

    with_threads(50, use)


def test_a_stuck_job_keeps_its_own_thread_and_no_other() -> None:
    release = threading.Event()

    async def use(threads: Threads) -> None:
        stuck = threads.submit(release.wait)
        assert [await threads.submit(lambda number=number: number) for number in range(10)] == list(range(10))
        assert not stuck.done()
        release.set()
        assert await stuck

    with_threads(2, use)


# -- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_whatever_a_job_raises_is_the_futures_and_the_thread_goes_on(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def use(threads: Threads) -> None:
        future = threads.submit(fail)
        await asyncio.wait((future,))
        with pytest.raises(type(error)) as caught:
            future.result()
        assert caught.value is error
        assert await threads.submit(lambda: "alive") == "alive"
        assert len(ours()) == 1

    with_threads(1, use)


def test_stop_iteration_which_no_future_takes_arrives_as_a_runtime_error() -> None:
    async def use(threads: Threads) -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.submit(lambda: next(iter(())))

    with_threads(1, use)


def test_a_future_that_nobody_waits_for_any_more_harms_no_other() -> None:
    release = threading.Event()

    async def use(threads: Threads) -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
        given_up, other = threads.submit(release.wait), threads.submit(lambda: "other")
        given_up.cancel()
        release.set()
        assert await other == "other"
        assert given_up.cancelled()
        assert complaints == []

    with_threads(1, use)


def test_the_loop_stays_free_while_jobs_run() -> None:
    release = threading.Event()

    async def use(threads: Threads) -> None:
        future = threads.submit(release.wait)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not future.done()
        release.set()
        await future

    with_threads(1, use)


# -- context -------------------------------------------------------------------------------------------------------

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


def test_a_job_sees_its_callers_context_variables_and_keeps_its_own_changes_to_itself() -> None:
    def job(mine: str) -> tuple[str, str]:
        before = tenant.get()
        tenant.set(mine)
        return before, tenant.get()

    async def use(threads: Threads) -> None:
        tenant.set("one")
        first = threads.submit(lambda: job("changed"))
        tenant.set("two")
        second = threads.submit(tenant.get)
        assert (await first, await second) == (("one", "changed"), "two")
        assert tenant.get() == "two"

    with_threads(1, use)  # in the same thread, one after the other


def test_a_thread_at_rest_keeps_nothing_of_a_job_alive() -> None:
    class Large:
        pass

    async def use(threads: Threads) -> None:
        large = Large()
        seen = weakref.ref(large)
        await threads.submit(lambda held=large: held)
        del large
        async with asyncio.timeout(10):
            while seen() is not None:
                await asyncio.sleep(0.001)

    with_threads(1, use)


# -- the end -------------------------------------------------------------------------------------------------------


def test_closing_ends_idle_threads_at_once_and_busy_ones_after_their_job() -> None:
    release, began = threading.Event(), threading.Event()

    def busy() -> None:
        began.set()
        release.wait()

    async def use(threads: Threads) -> None:
        await asyncio.gather(*(threads.submit(lambda: began.wait(0.001)) for _ in range(3)))
        threads.submit(busy)
        await asyncio.to_thread(began.wait)

    with_threads(3, use)
    eventually(lambda: len(ours()) == 1)
    assert ours()[0].daemon  # a job that never ends must not keep the process alive
    release.set()


def test_a_job_that_ends_after_its_loop_was_closed_ends_in_silence() -> None:
    """pytest fails a test in which a thread raises."""
    release = threading.Event()

    async def use(threads: Threads) -> None:
        threads.submit(release.wait)

    with_threads(1, use)
    assert len(ours()) == 1
    release.set()
    eventually(lambda: not ours())
