"""Code of the application around each attempt: a generator function with one `yield`, one shape for all tasks.

    @app.middleware
    def timed(ctx: Context) -> Generator[None, Any, None]:
        began = time.monotonic()         # before
        result = yield                   # the task, or the next middleware
        ctx.log.info("%.3f s", ...)      # after; an error of the task is raised at the yield

The app's come first, in the order of registration, then the task's own in theirs; the first is the outermost. A sync
one runs where the task runs, in its thread or on the loop. An async one runs on the loop: around an `async def` task in
the same asyncio task, around a `def` task by steps, for each of which the job's thread waits. A task without any is
called as it is: `body_of` returns the function itself.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol

from pgqueue.context import Context
from pgqueue.failure import Place

Middleware = Callable[[Context], Iterator[None]] | Callable[[Context], AsyncIterator[None]]

UNNAMED = ""  # where the Context comes in for a task that takes none: no parameter has that name

here = threading.local()  # .loop: the event loop for which this thread runs jobs


def unfit(function: Any) -> str | None:
    """Why it cannot be a middleware; None when it can."""
    if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
        kind = "a function without a yield" if inspect.isfunction(function) else f"{type(function).__name__}"
        return f"a middleware is a def or async def with one yield, without @contextmanager, not {kind}"
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return f"middleware {name_of(function)} must take one argument, the job's context: def ...(ctx: Context)"
    return None


def name_of(function: Any) -> str:
    """`shop.tasks.timed`"""
    return f"{function.__module__}.{function.__qualname__.rpartition('<locals>.')[2]}"


def body_of(
    function: Callable[..., Any], around: Sequence[Middleware], parameter: str | None, *, is_async: bool
) -> Callable[..., Any]:
    """What an attempt calls: the function, with these around it. parameter: that of its Context, if it takes one.

    With any around it, it takes the Context as `parameter`, or else as UNNAMED.
    """
    if not around:
        return function

    def taken(arguments: dict[str, Any]) -> Context:
        return arguments[parameter] if parameter is not None else arguments.pop(UNNAMED)  # type: ignore[no-any-return]

    async def on_the_loop(**arguments: Any) -> Any:
        ctx = taken(arguments)
        return await _run([_step(one, ctx, in_thread=False) for one in around], lambda: function(**arguments))

    def in_a_thread(**arguments: Any) -> Any:
        ctx = taken(arguments)

        async def call() -> Any:
            return function(**arguments)

        return _at_once(_run([_step(one, ctx, in_thread=True) for one in around], call))

    return on_the_loop if is_async else in_a_thread


async def _run(steps: Sequence[Step], call: Callable[[], Any]) -> Any:
    """The result of the call. Whatever the middleware does with an error of the task's, one is raised in the end: a job
    that has failed is not completed because somebody logged that."""
    entered: list[Step] = []
    result, error = None, None
    try:
        for step in steps:
            await step.begin()
            entered.append(step)
        result = await call()
    except BaseException as caught:
        error = caught
    while entered:
        step = entered.pop()
        frames = None if error is None else error.__traceback__
        try:
            await step.end(result, error)
        except BaseException as other:
            if other is error or (isinstance(other, RuntimeError) and other.__cause__ is error is not None):
                other = error  # the same, or a StopIteration that was let through
            else:
                _place(other, step, "after the task" if error is None else "after the task had failed")
                error, frames = other, other.__traceback__
        if error is not None:
            error.__traceback__ = frames  # without the way through each middleware
    if error is not None:
        raise error
    return result


def _place(error: BaseException, step: Step, when: str) -> None:
    if not any(isinstance(note, Place) for note in getattr(error, "__notes__", ())):
        error.add_note(Place(f"in middleware {step.name}, {when}"))


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never suspends: in a thread each step ends before it returns."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it was suspended")


class Step(Protocol):
    """One middleware around one attempt."""

    name: str

    async def begin(self) -> None: ...
    async def end(self, result: Any, error: BaseException | None) -> None: ...


def _step(function: Any, ctx: Context, *, in_thread: bool) -> Step:
    if inspect.isgeneratorfunction(function):
        return _Sync(function, ctx)
    return _FromThread(function, ctx) if in_thread else _Async(function, ctx)


class _Sync:
    def __init__(self, function: Any, ctx: Context) -> None:
        self.name = name_of(function)
        self._generator = function(ctx)

    async def begin(self) -> None:
        try:
            next(self._generator)
        except StopIteration:
            raise RuntimeError(f"middleware {self.name} did not yield") from None
        except BaseException as error:
            _place(error, self, "before the task")
            raise

    async def end(self, result: Any, error: BaseException | None) -> None:
        try:
            if error is None:
                self._generator.send(result)
            else:
                self._generator.throw(error)
        except StopIteration:
            return
        self._generator.close()
        raise RuntimeError(f"middleware {self.name} yielded twice")


class _Async:
    def __init__(self, function: Any, ctx: Context) -> None:
        self.name = name_of(function)
        self._generator = function(ctx)

    async def begin(self) -> None:
        try:
            await anext(self._generator)
        except StopAsyncIteration:
            raise RuntimeError(f"middleware {self.name} did not yield") from None
        except BaseException as error:
            _place(error, self, "before the task")
            raise

    async def end(self, result: Any, error: BaseException | None) -> None:
        try:
            if error is None:
                await self._generator.asend(result)
            else:
                await self._generator.athrow(error)
        except StopAsyncIteration:
            return
        await self._generator.aclose()
        raise RuntimeError(f"middleware {self.name} yielded twice")


class _FromThread(_Async):
    """From a job's thread, which waits for the loop."""

    async def begin(self) -> None:
        self._wait(super().begin())

    async def end(self, result: Any, error: BaseException | None) -> None:
        self._wait(super().end(result, error))

    def _wait(self, coroutine: Coroutine[Any, Any, None]) -> None:
        async def caught() -> BaseException | None:  # SystemExit would go through the loop, and take the worker along
            try:
                await coroutine
            except BaseException as error:
                return error
            return None

        asking = caught()
        try:
            error = asyncio.run_coroutine_threadsafe(asking, here.loop).result()
        except RuntimeError:  # the loop is closed: the worker has ended without this job
            asking.close()
            coroutine.close()
            raise
        if error is not None:
            raise error
