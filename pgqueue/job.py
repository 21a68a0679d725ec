"""What a job is: one call of a task, a row. Its states, and every edge between them.

A job is live (`jobs`: queued, running, blocked) until it ends (`finished_jobs`: completed, cancelled, expired;
`dead_jobs`: dead). "Scheduled" and "retrying" are QUEUED with a run_at in the future: derived, never stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from pgqueue.errors import OperationError


class State(StrEnum):
    """The state column of `jobs`, `finished_jobs` and `dead_jobs`."""

    QUEUED = "queued"
    RUNNING = "running"
    BLOCKED = "blocked"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"


# Every edge there is; no statement draws another. tests/life/test_transitions.py tries every verb in every state.
TRANSITIONS: dict[str, tuple[tuple[State, ...], State]] = {
    "claim": ((State.QUEUED,), State.RUNNING),
    "complete": ((State.RUNNING,), State.COMPLETED),
    "retry": ((State.RUNNING,), State.QUEUED),
    "snooze": ((State.RUNNING,), State.QUEUED),
    "release": ((State.RUNNING,), State.QUEUED),
    "hinder": ((State.RUNNING,), State.QUEUED),  # by the database or the machine; so often, then retry or dead_letter
    "rescue": ((State.RUNNING,), State.QUEUED),  # with its crashes used up it takes dead_letter instead
    "dead_letter": ((State.RUNNING,), State.DEAD),
    "cancel": ((State.QUEUED, State.BLOCKED, State.RUNNING), State.CANCELLED),
    "expire": ((State.QUEUED,), State.EXPIRED),
    "block": ((State.QUEUED,), State.BLOCKED),
    "unblock": ((State.BLOCKED,), State.QUEUED),
    "redrive": ((State.DEAD,), State.QUEUED),
}


class DeadReason(StrEnum):
    """Why a job is in the dead-letter table."""

    ATTEMPTS = "attempts"  # used up
    TIMEOUT = "timeout"  # used up, and the last one timed out
    NEVER = "never"  # an exception the policy never retries
    DEAD_LETTER = "dead_letter"  # the job asked for it
    CRASHED = "crashed"  # its process died under it too often
    BAD_ROW = "bad_row"  # the stored row cannot be read


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is, as it said itself: 0 to 1, with a note in its own words. at: when it was written, null where
    Python has no such date. attempt: the one that said it; a later one may not have said anything yet."""

    fraction: float
    note: str | None
    at: datetime | None
    attempt: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a job said by ctx.log. at: null where Python has no such date. level: INFO, WARNING, …"""

    attempt: int
    at: datetime | None
    level: str
    message: str = field(repr=False)


class Waits(Protocol):
    """What can wait for a job: `app.jobs`."""

    def wait(self, job_id: int, timeout: float | timedelta | None = None) -> Any: ...

    async def wait_async(self, job_id: int, timeout: float | timedelta | None = None) -> Any: ...  # noqa: ASYNC109


class _AtHome:
    """What a Job has beside its fields, so that repr, ==, pickle and asdict pass it by: who can wait for it."""

    __slots__ = ("_home",)
    _home: Waits


@dataclass(frozen=True, slots=True)
class Job(_AtHome):
    """A job as its enqueuer and its operators see it.

    After an enqueue only what the enqueue knows is set: `existing` is true when a live job already held the unique
    key, and then `id` is that job's. `attempt` is 0 before the first claim, n during and after the n-th run.
    """

    id: int
    task: str
    queue: str = "default"
    state: State = State.QUEUED
    priority: int = 0
    run_at: datetime | None = None
    attempt: int = 0
    max_attempts: int = 4
    fence: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker_id: UUID | None = None
    unique_key: str | None = None
    concurrency_key: str | None = None
    tags: tuple[str, ...] = ()
    meta: dict[str, Any] | None = None
    args: Any = field(default=None, repr=False)  # never in a log line by way of repr()
    result: Any = field(default=None, repr=False)
    error: str | None = field(default=None, repr=False)
    errors: list[dict[str, Any]] = field(default_factory=list, repr=False)
    reason: str | None = None
    existing: bool = False

    def wait(self, timeout: float | timedelta | None = None) -> Any:
        """What its task returned, once it has: see `app.jobs.wait`."""
        return self._waits.wait(self.id, timeout)

    async def wait_async(self, timeout: float | timedelta | None = None) -> Any:  # noqa: ASYNC109
        """`wait` for the running event loop."""
        return await self._waits.wait_async(self.id, timeout)

    @property
    def _waits(self) -> Waits:
        home: Waits | None = getattr(self, "_home", None)
        if home is None:  # it was pickled, or made by hand
            raise OperationError(f"this Job knows no app to wait with: app.jobs.wait({self.id})")
        return home


def at_home(job: Job, home: Waits) -> Job:
    """The job, which can be waited for from now on."""
    object.__setattr__(job, "_home", home)
    return job
