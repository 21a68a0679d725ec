"""What happens to jobs, told to whoever asked with `@app.on(...)`, in the process in which it happened.

started · completed · failed (an attempt) · retried · snoozed · released · dead_lettered · cancelled · rescued ·
expired · claim_lost, in workers; redriven, and cancelled of a job that nobody ran, where the app object was told to. A
handler is called after the transition is committed, at most once; it may be sync or async, and an exception in it is
logged and harms nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pgqueue.errors import ConfigurationError
from pgqueue.failure import describe, trace
from pgqueue.job import DeadReason, Job, State

EventName = Literal[
    "started",
    "completed",
    "failed",
    "retried",
    "snoozed",
    "released",
    "dead_lettered",
    "cancelled",
    "rescued",
    "expired",
    "claim_lost",
    "redriven",
]
NAMES: tuple[EventName, ...] = get_args(EventName)
FAILURES: tuple[EventName, ...] = ("failed", "retried", "dead_lettered")  # those with an exception

log = logging.getLogger("pgqueue")


@dataclass(frozen=True, slots=True)
class Event:
    """One transition.

    error: the attempt's error as text, if there was one · delay: seconds until the next attempt · exception, of failed,
    retried and dead_lettered: the error itself, with its traceback; what the job steered by; the TaskTimeout or BadRow
    that stands for one. None where nothing was raised in this process: a crash, an error in a job's own process ·
    traceback: as text, as it is stored; None without one · reason: why it is dead, a DeadReason.
    """

    name: str
    job: Job
    error: str | None = field(default=None, repr=False)
    delay: float | None = None
    exception: BaseException | None = field(default=None, repr=False)
    traceback: str | None = field(default=None, repr=False)
    reason: DeadReason | None = None


Handler = Callable[[Event], Any]


class Events:
    """The handlers, by event; and the calls to them that are still under way."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Handler]] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def add(self, name: str, handler: Handler) -> None:
        """Raises ConfigurationError for an event that does not exist."""
        if name not in NAMES:
            raise ConfigurationError(f"there is no event {name!r}; there are {', '.join(NAMES)}")
        self._handlers.setdefault(name, []).append(handler)

    def wanted(self, name: str) -> bool:
        """Whether anybody asked for it: on the hot path nothing is built for nobody."""
        return name in self._handlers

    def emit(self, event: Event) -> None:
        """Calls the handlers, each on its own; returns at once."""
        for handler in self._handlers.get(event.name, ()):
            task = asyncio.create_task(_call(handler, event))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    def tell(self, events: Sequence[Event]) -> None:
        """Calls the handlers for who is no worker: on the running event loop, as emit() does; where none runs, on one
        of their own, and then they have ended when this returns."""
        wanted = [event for event in events if self.wanted(event.name)]
        if not wanted:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._call_all(wanted))
        else:
            for event in wanted:
                self.emit(event)

    async def _call_all(self, events: Sequence[Event]) -> None:
        for event in events:
            for handler in self._handlers[event.name]:
                await _call(handler, event)

    async def finish(self, seconds: float) -> None:
        """Waits up to so many seconds for handlers under way."""
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=seconds)


def cancelled(id_: int, task: str, queue: str, attempt: int, fence: int, why: str | None) -> Event:
    """Of a job that no attempt of this process has ended."""
    job = Job(id_, task, queue, State.CANCELLED, attempt=attempt, fence=fence, error=why)
    return Event("cancelled", job, why)


def redriven(id_: int, task: str, queue: str, fence: int) -> Event:
    """Of a job that was dead."""
    return Event("redriven", Job(id_, task, queue, fence=fence))


async def _call(handler: Handler, event: Event) -> None:
    try:
        if inspect.iscoroutinefunction(handler):
            await handler(event)
        else:
            await asyncio.to_thread(handler, event)
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # SystemExit would go through the loop, and take the worker along
        failure = {"error": describe(error), "traceback": trace(error)}
        log.error(
            "handler of %s failed",
            event.name,
            extra={"event": "handler_failed", "job_id": event.job.id, "task": event.job.task, **failure},
        )
