"""Step 2 of a job's life, claim: lock up to `limit` due jobs for this worker, and make each an attempt that can run.

Before: enqueue.py. After: run.py. Promise: no job reaches two workers, nothing waits for a lock, and a row that cannot
be read is that row's problem: it becomes an attempt that has failed already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import psycopg

from pgqueue import db
from pgqueue.db import Claim
from pgqueue.drivers import Steps
from pgqueue.errors import BadRow
from pgqueue.job import Job, State
from pgqueue.link import Link
from pgqueue.retry import StoredRetryPolicy
from pgqueue.sql import Statements
from pgqueue.task import Task
from pgqueue.worker.floor import Floors

_EARLIEST, _LATEST = (
    -60_000_000_000.0,
    250_000_000_000.0,
)  # epoch seconds, years 69 to 9892: a datetime
_END = 2**31 - 1  # of an integer column: where the claim's statement stops counting


class Attempt:
    """One claimed job, ready to run. `unreadable` says why it cannot be. claimed_at: monotonic seconds."""

    arguments: Mapping[str, Any] = MappingProxyType({})
    policy: StoredRetryPolicy | None = None  # of this one job; None: its task's
    unreadable: BadRow | None = None
    overdue = False  # it runs longer than its hard_timeout, and nobody here can end it

    def __init__(self, claim: Claim, task: Task[..., Any], worker_id: UUID, claimed_at: float = 0.0) -> None:
        self.claim = claim
        self.task = task
        self.worker_id = worker_id
        self.claimed_at = claimed_at

    def __repr__(self) -> str:  # without its arguments
        return f"<Attempt of {self.claim!r}>"

    @cached_property
    def job(self) -> Job:
        """The job as people see it; built only when somebody looks."""
        claim = self.claim
        return Job(
            id=claim.id,
            task=claim.task,
            queue=claim.queue,
            state=State.RUNNING,
            priority=claim.priority,
            run_at=_moment(claim.run_at),
            attempt=claim.attempt,
            max_attempts=claim.max_attempts,
            fence=claim.fence,
            created_at=_moment(claim.created_at),
            started_at=_moment(claim.started_at),
            worker_id=self.worker_id,
            tags=tuple(claim.tags or ()),
            meta=_meta(claim.meta),
        )

    @property
    def timeout(self) -> float | None:
        """Seconds this attempt may run: the job's own, else the task's."""
        return self.claim.timeout if self.claim.timeout is not None else self.task.timeout

    @property
    def limit(self) -> str:
        """What it may have run longer than, in words."""
        if self.timeout is not None:
            return f"timeout of {self.timeout:g} s"
        return f"hard_timeout of {self.task.hard_timeout:g} s"

    @property
    def log_fields(self) -> dict[str, Any]:
        claim = self.claim
        return {"job_id": claim.id, "task": claim.task, "attempt": claim.attempt}


class Claimer:
    """Claims for one worker, one statement at a time."""

    def __init__(
        self,
        sql: Statements,
        link: Link,
        worker_id: UUID,
        tasks: Mapping[str, Task[..., Any]],
        queues: tuple[str, ...] | None,
    ) -> None:
        self._sql = sql
        self._link = link
        self._worker_id = worker_id
        self._tasks = tasks
        self._names = sorted(tasks)  # without those that are paused
        self._queues = queues
        self._after = ""  # the queue served last: the next claim starts behind it
        self._floors = Floors(time.monotonic)
        self._bare = False  # the next claim leaves out the JSON

    async def claim(self, limit: int) -> list[Attempt]:
        """Up to `limit` attempts, in the order they should start."""
        depth, lanes = self._floors.start()
        who = self._sql, self._worker_id, self._names, self._queues, limit
        after = self._after
        began = time.monotonic()
        claims = await self._readable(
            lambda bare: (
                db.claim(*who, after, bare=bare) if lanes is None else db.claim_above(*who, lanes, after, bare=bare)
            )
        )
        self._floors.claimed(depth, began, claims)
        if claims:
            self._after = claims[-1].queue
        now = time.monotonic()
        return [attempt(claim, self._tasks[claim.task], self._worker_id, now) for claim in claims]

    def given_back(self, claims: Iterable[Claim]) -> None:
        """These are queued again, as they were."""
        for claim in claims:
            self._floors.lower(claim)

    def forget(self) -> None:
        """Jobs are queued again that we did not know of: the next claim looks everywhere."""
        self._floors.forget()

    def pause(self, tasks: Collection[str]) -> None:
        """No claim takes a job of these; of all the others it does."""
        self._names = sorted(self._tasks.keys() - tasks)

    async def claim_suspect(self) -> list[Attempt]:
        """A job under which a process died, or none; the caller has seen to it that nothing else runs."""
        claims = await self._readable(
            lambda bare: db.claim_suspect(self._sql, self._worker_id, self._names, self._queues, bare=bare)
        )
        return [attempt(claim, self._tasks[claim.task], self._worker_id) for claim in claims]

    async def _readable(self, claim: Callable[[bool], Steps[list[Claim]]]) -> list[Claim]:
        """What was claimed. 90 KB of JSON can make more text than the server can hold (10,000 times 1e131071), or than
        it can print in time, and no row says so beforehand: then they are claimed without, and read one by one."""
        bare, self._bare = self._bare, False
        try:
            claims = await self._link.perform(claim(bare))
        except psycopg.errors.ProgramLimitExceeded:
            bare = True
            claims = await self._link.perform(claim(bare))
        except psycopg.errors.QueryCanceled:
            self._bare = True
            raise
        return [await self._stored(one) for one in claims] if bare else claims

    async def _stored(self, claim: Claim) -> Claim:
        try:
            return await self._link.perform(db.stored(self._sql, claim, self._worker_id))
        except psycopg.errors.ProgramLimitExceeded:
            return claim

    async def next_due(self) -> float | None:
        """Seconds until a scheduled job comes due; None without one."""
        return await self._link.perform(db.next_due(self._sql, self._names, self._queues))


def attempt(claim: Claim, task: Task[..., Any], worker_id: UUID, now: float = 0.0) -> Attempt:
    """The claimed row, read. Never raises: what cannot be read is noted in the attempt."""
    made = Attempt(claim, task, worker_id, now)
    try:
        if claim.args is None:
            raise BadRow("the stored JSON is too large to be read: more than the server can hold as text")
        made.arguments = task.signature.decode(claim.args)
        if claim.retry is not None:
            made.policy = StoredRetryPolicy.from_json(msgspec.json.decode(claim.retry))
        # Plain comparisons first: a datetime made of each would cost as much as the whole rest.
        if not (_EARLIEST < claim.run_at < _LATEST and _EARLIEST < claim.created_at < _LATEST):
            for name in ("run_at", "created_at"):
                if _moment(getattr(claim, name)) is None:
                    raise BadRow(f"the stored {name} is no moment between the years 1 and 9999")
        if _END in (claim.fence, claim.attempt):
            raise BadRow(f"the stored fence or attempt has come to its end ({_END}) and cannot rise")
    except BadRow as error:
        made.unreadable = error
    except Exception as error:  # whatever else a row may hold
        made.unreadable = BadRow(f"the stored job cannot be read: {type(error).__name__}")
    return made


def _moment(epoch: float) -> datetime | None:
    """None for a moment that Python cannot hold: a row's dates reach from 4713 BC to infinity."""
    try:
        return datetime.fromtimestamp(epoch, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _meta(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
