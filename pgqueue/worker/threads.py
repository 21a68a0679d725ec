"""Where sync tasks run: threads that pull from one queue, and wake the event loop once for a batch of results.

Not concurrent.futures: its threads are joined at exit, so one stuck job would keep a process alive for ever, and it
wakes the loop once for each result.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from pgqueue.middleware import here
from pgqueue.worker.forks import copies


class _Call(NamedTuple):
    function: Callable[[], Any]
    context: contextvars.Context
    future: asyncio.Future[Any]


class Threads:
    """Up to `size` daemon threads, started as they are needed. A thread cannot be killed: a stuck job keeps its own."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._started = 0
        self._busy = 0
        self._loop = asyncio.get_running_loop()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._told = False
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """A future of function(), which runs in a thread with the caller's context variables."""
        future = self._loop.create_future()
        self._busy += 1
        if self._busy > self._started and self._started < self._size:
            self._started += 1
            threading.Thread(target=self._work, name=f"pgqueue-job-{self._started}", daemon=True).start()
        self._calls.put(_Call(function, contextvars.copy_context(), future))
        return future

    def close(self) -> None:
        """Ends the idle threads; a busy one ends after its job."""
        for _ in range(self._started):
            self._calls.put(None)

    def _work(self) -> None:
        copy, here.loop = copies(), self._loop
        while (call := self._calls.get()) is not None:
            result, error = None, None
            try:
                result = call.context.run(call.function)
            except BaseException as caught:
                error = caught
            if copies() != copy:
                os._exit(0)  # the job has forked, and returned twice: this is the copy, and nobody waits for it
            self._hand_in(call.future, result, error)
            del call, result, error  # a thread at rest must not keep a job's objects alive

    def _hand_in(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        with self._lock:
            self._done.append((future, result, error))
            tell, self._told = not self._told, True
        if tell:
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                pass  # the loop is closed: nobody waits for this any more

    def _deliver(self) -> None:
        with self._lock:
            done, self._done, self._told = self._done, deque(), False
        for future, result, error in done:
            self._busy -= 1
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            elif isinstance(error, StopIteration):  # a future refuses it
                future.set_exception(RuntimeError("the task raised StopIteration"))
            else:
                future.set_exception(error)
