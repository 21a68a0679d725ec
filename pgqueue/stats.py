"""What queues, tasks and workers are at: the rows of three views; and all of it at once, for a live picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from pgqueue import db
from pgqueue.drivers import Steps
from pgqueue.sql import Statements


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A row of the view queue_stats; oldest_age: seconds since the oldest due job came due, None without one."""

    queue: str
    queued: int
    scheduled: int
    running: int
    blocked: int
    dead: int
    oldest_age: float | None
    paused: bool
    completed_1m: int
    failed_1m: int


@dataclass(frozen=True, slots=True)
class TaskStats:
    """A row of the view task_stats: of the last hour, times in seconds, None without a job that ended."""

    task: str
    count: int
    failures: int
    wait_p50: float | None
    wait_p95: float | None
    wait_p99: float | None
    run_p50: float | None
    run_p95: float | None
    run_p99: float | None


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """A row of the view worker_stats; heartbeat_age and oldest_run in seconds, oldest_run None of one without jobs."""

    id: UUID
    host: str
    pid: int
    version: str
    queues: tuple[str, ...] | None
    tasks: tuple[str, ...]
    concurrency: int
    started_at: datetime
    heartbeat_at: datetime
    expires_at: datetime
    heartbeat_age: float
    alive: bool
    stopping: bool
    running: int
    free: int
    oldest_run: float | None
    completed_1m: int

    @property
    def status(self) -> str:
        """silent: its lease has ended; stopping: it finishes what it runs; else alive."""
        return "silent" if not self.alive else "stopping" if self.stopping else "alive"


def queues(sql: Statements) -> Steps[list[QueueStats]]:
    """Every queue with a live or dead job, or a row in `queues`, by name."""
    return [QueueStats(*row) for row in (yield from db.find_queues(sql))]


def tasks(sql: Statements) -> Steps[list[TaskStats]]:
    """Every task of which an attempt ended within the last hour, the busiest first. Reads the jobs of that hour."""
    return [TaskStats(*row) for row in (yield from db.find_tasks(sql))]


def workers(sql: Statements) -> Steps[list[WorkerStats]]:
    """Every worker that has a row, by host and process."""
    rows = yield from db.find_workers(sql)
    return [replace(WorkerStats(*row), tasks=tuple(row[5]), queues=row[4] and tuple(row[4])) for row in rows]
