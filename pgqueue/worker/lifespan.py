"""What a worker opens before its first job and closes after its last: `@app.lifespan`, `app.state`, `ctx.state`.

Once in each process that works, in the order of registration, closed in reverse. All of it happens in one asyncio task
from the first opening to the last close, since a TaskGroup or a timeout may span the `yield`; the halves of a sync one
run in one thread of their own, which a hang may keep. An app without a lifespan makes neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from pgqueue.context import AppState
from pgqueue.errors import ConfigurationError, LifespanFailed
from pgqueue.failure import describe, trace
from pgqueue.middleware import name_of
from pgqueue.worker.threads import Threads

log = logging.getLogger("pgqueue")

Lifespan = Callable[[AppState], Iterator[None]] | Callable[[AppState], AsyncIterator[None]]

_CLOSE = 5.0  # seconds for what is open when something else fails to open
_LAST_WORDS = 0.5  # seconds for a close that was cancelled because it took too long


class Lifespans:
    """Those of an app, in their order."""

    def __init__(self, state: AppState) -> None:
        self.state = state
        self.functions: list[Lifespan] = []
        self.is_open = False

    def add(self, function: Any) -> None:
        """Raises ConfigurationError for what cannot be one."""
        if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
            raise ConfigurationError(
                f"@app.lifespan takes a def or async def with one yield, without @contextmanager, not {_kind(function)}"
            )
        try:
            inspect.signature(function).bind(self.state)
        except TypeError:
            raise ConfigurationError(
                f"lifespan {name_of(function)} must take one argument, the app's state: def ...(state: AppState)"
            ) from None
        self.functions.append(function)


class Held:
    """The resources of one worker: `open`, then `close`."""

    def __init__(self, lifespans: Lifespans) -> None:
        self._lifespans = lifespans
        self._managers: list[tuple[Lifespan, _Manager]] = []
        self._holder: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._failures: list[str] = []
        self._threads: Threads | None = None
        self._before: dict[str, Any] = {}

    async def open(self, on_end: Callable[[], object]) -> None:
        """on_end: called when one of them ends by itself. Raises LifespanFailed, with what was open closed again, and
        ConfigurationError when another worker in this process has the app's state open."""
        lifespans = self._lifespans
        if not lifespans.functions:
            return
        if lifespans.is_open:
            raise ConfigurationError(
                "another worker of this app runs in this process, and app.state is its own: give each a process"
            )
        lifespans.is_open = True
        self._before = dict(vars(lifespans.state))
        opened = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(opened, on_end))
        try:
            await asyncio.wait((self._holder, opened), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._end(0.0)
            raise
        if not opened.done():
            await self._end(_CLOSE)
            raise LifespanFailed(self._failures[0])

    async def close(self, seconds: float) -> None:
        """Closes them within so many seconds. Raises LifespanFailed when one failed or did not end, now or before."""
        if self._holder is not None:
            await self._end(seconds)
            if self._failures:
                raise LifespanFailed(self._failures[0])

    async def _end(self, seconds: float) -> None:
        holder = self._holder
        assert holder is not None
        self._closing.set()
        await asyncio.wait((holder,), timeout=seconds)
        if not holder.done():
            stuck = ", ".join(name_of(function) for function, _ in reversed(self._managers))
            self._fail(f"lifespan {stuck} did not close within {seconds:.3g} s and is left as it is", None)
            holder.cancel()
            await asyncio.wait((holder,), timeout=_LAST_WORDS)
        if self._threads is not None:
            self._threads.close()
        state = vars(self._lifespans.state)
        state.clear()
        state.update(self._before)
        self._lifespans.is_open = False

    async def _hold(self, opened: asyncio.Future[None], on_end: Callable[[], object]) -> None:
        """Opens, waits, closes. A task group that spans a `yield` cancels us when one of its tasks fails."""
        error: BaseException | None = None
        try:
            for function in self._lifespans.functions:
                manager = self._manager(function)
                try:
                    await manager.enter()
                except asyncio.CancelledError:
                    raise
                except BaseException as caught:
                    self._failures.append(_sentence(function, "did not open", caught))
                    break
                self._managers.append((function, manager))
            else:
                opened.set_result(None)
                await self._closing.wait()
        except asyncio.CancelledError as caught:
            error = caught
        early = opened.done() and not self._closing.is_set()
        while self._managers:
            function, manager = self._managers[-1]
            try:
                await manager.exit(error)
            except asyncio.CancelledError:
                if self._closing.is_set():
                    raise  # by _end: the time is up
            except BaseException as caught:
                self._fail(_sentence(function, "ended by itself" if early else "did not close", caught), caught)
            self._managers.pop()
        if early:
            if not self._failures:
                self._fail("a lifespan was cancelled and ended by itself", None)
            on_end()

    def _fail(self, sentence: str, error: BaseException | None) -> None:
        self._failures.append(sentence)
        failure = {} if error is None else {"traceback": trace(error)}  # what it was is in the sentence
        log.error("%s", sentence, extra={"event": "lifespan_failed", **failure})

    def _manager(self, function: Lifespan) -> _Manager:
        state = self._lifespans.state
        if inspect.isasyncgenfunction(function):
            return _Async(contextlib.asynccontextmanager(function)(state))
        if self._threads is None:
            self._threads = Threads(1)
        return _Sync(contextlib.contextmanager(function)(state), self._threads)  # type: ignore[arg-type]


class _Async:
    def __init__(self, manager: contextlib.AbstractAsyncContextManager[Any]) -> None:
        self._manager = manager

    async def enter(self) -> None:
        await self._manager.__aenter__()

    async def exit(self, error: BaseException | None) -> None:
        await self._manager.__aexit__(None if error is None else type(error), error, None)


class _Sync:
    def __init__(self, manager: contextlib.AbstractContextManager[Any], threads: Threads) -> None:
        self._manager = manager
        self._threads = threads

    async def enter(self) -> None:
        await self._threads.submit(self._manager.__enter__)

    async def exit(self, error: BaseException | None) -> None:
        """Closed as ever: what cancels the task that holds it is no affair of a thread's."""
        await self._threads.submit(lambda: self._manager.__exit__(None, None, None))


_Manager = _Async | _Sync


def _kind(function: Any) -> str:
    return "a function without a yield" if inspect.isfunction(function) else type(function).__name__


def _sentence(function: Any, what: str, error: BaseException) -> str:
    """One line: `lifespan shop.tasks.resources did not open: ConnectionError: no (shop/tasks.py, line 12)`"""
    if isinstance(error, BaseExceptionGroup):  # a task group's: its first word says more than the number of them
        error = next(iter(error.exceptions))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == function.__code__.co_filename] or frames
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"lifespan {name_of(function)} {what}: {describe(error).splitlines()[0]}{place}"
