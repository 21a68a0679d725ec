"""Where async jobs run: in asyncio tasks, of which a job gets one to itself as soon as it waits for something.

A job that never waits (it does nothing, or found all that it needs in memory) needs none: such jobs run one after the
other in one asyncio task, which halves what Python has to do for each (a task a job: 5 of 12 µs). What a job may leave
behind in a task, context variables and a cancellation that it asked for, ends that task: the next job gets another.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
import types
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any, Protocol

from pgqueue import logs
from pgqueue.worker.forks import copies

_SLICE = 0.005  # seconds for which jobs may follow each other before everybody else on the loop has a turn


class Body(Protocol):
    """One job, as it is seen from here. Nothing of it raises."""

    @property
    def attempt(self) -> logs.Named:
        """What names it in a line of the log."""

    def begin(self) -> Coroutine[Any, Any, Any] | None:
        """It starts now; None: it has ended before it could."""

    def waits(self, task: asyncio.Task[Any]) -> None:
        """It waits for something for the first time: from here on the task is its own."""

    def ends(self, result: Any, error: BaseException | None) -> None:
        """What it returned, or raised."""


class Coroutines:
    """The asyncio tasks of one worker's async jobs, all of them with the context variables of who made this."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._bodies: deque[Body] = deque()  # not begun
        self._open = False  # a task is about to begin them

    def start(self, body: Body) -> None:
        """It begins in a moment, not before this returns."""
        self._bodies.append(body)
        if not self._open:
            self._next_task()

    def _next_task(self) -> None:
        """Whoever comes next begins in another task."""
        self._open = bool(self._bodies)
        if self._open:
            self._loop.create_task(self._carry(), context=self._context.copy())

    async def _carry(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        named = logs.names_jobs
        if named:
            logs.running.set(None)
        clean, copy, until = contextvars.copy_context(), copies(), time.monotonic() + _SLICE
        while self._bodies:
            body = self._bodies.popleft()
            if named:
                logs.running.set(body.attempt)
            coroutine = body.begin()
            if coroutine is None:
                continue
            result, error, waits = None, None, False
            try:
                waited = coroutine.send(None)
            except StopIteration as end:
                result = end.value
            # SystemExit, too: asyncio would let it out through the loop, and with it the worker.
            except BaseException as caught:
                error = caught
            else:
                waits = True
                self._next_task()
                body.waits(task)
                try:
                    result = await _rest(coroutine, waited)
                except BaseException as caught:
                    error = caught
            if copies() != copy:
                os._exit(0)  # the job has forked and returned twice
            own = waits
            if named and not waits:
                logs.running.set(None)
            if task.cancelling():
                own = True
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError as caught:  # it asked for that itself, and did not wait for it to come
                    error = error or caught
            if not own and contextvars.copy_context() == clean:
                body.ends(result, error)
                if time.monotonic() < until:
                    continue
                break
            if not waits:
                self._next_task()
            self._context.run(body.ends, result, error)  # what it starts next shall not find its variables
            return
        self._next_task()


def carried(frame: types.FrameType | None) -> Body | None:
    """The job in whose midst a thread is that is at this place. Asked in another thread."""
    while frame is not None:
        if frame.f_code is Coroutines._carry.__code__:
            body: Body | None = frame.f_locals.get("body")
            return body
        frame = frame.f_back
    return None


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, Any], waited: Any) -> Generator[Any, Any, Any]:
    """What is left of a coroutine that has begun, and waits for this."""
    while True:
        thrown: BaseException | None = None
        try:
            sent = yield waited
        except BaseException as error:
            thrown = error
        try:
            waited = coroutine.send(sent) if thrown is None else coroutine.throw(thrown)
        except StopIteration as end:
            return end.value
