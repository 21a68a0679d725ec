"""What queues, tasks and workers are at: the rows of three views; and all of it at once, for a live picture."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple
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


# -- all of it at once ------------------------------------------------------------------------------------------------


class Lane(NamedTuple):
    """A queue in a picture; oldest_age in seconds, None without a due job."""

    queue: str
    queued: int
    scheduled: int
    running: int
    blocked: int
    dead: int
    oldest_age: float | None
    paused: bool


class Hand(NamedTuple):
    """A worker in a picture; oldest_run and heartbeat_age in seconds. queues: None of one that serves all."""

    id: str
    host: str
    pid: int
    concurrency: int
    running: int
    oldest_run: float | None
    heartbeat_age: float
    alive: bool
    stopping: bool
    queues: list[str] | None


class Held(NamedTuple):
    """A running job in a picture; seconds: for how long it has been."""

    id: int
    task: str
    queue: str
    attempt: int
    max_attempts: int
    worker_id: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Picture:
    """What was so at one moment (seconds since 1970, by the server's clock), and what ended in the seconds before it.

    completed: jobs, by (queue, worker, second); failed: attempts, by (queue, second). jobs: up to
    as many as were asked for, the oldest first.
    """

    at: float
    since: float
    queues: list[Lane] = field(default_factory=list)
    workers: list[Hand] = field(default_factory=list)
    jobs: list[Held] = field(default_factory=list)
    completed: dict[tuple[str, str | None, int], int] = field(default_factory=dict)
    failed: dict[tuple[str, int], int] = field(default_factory=dict)


def picture(sql: Statements, seconds: float, most: int) -> Steps[Picture]:
    """One statement, one snapshot. seconds: how far back what ended is counted; most: running jobs."""
    return read_picture((yield from db.picture(sql, seconds, most)), seconds)


def read_picture(rows: Iterable[tuple[Any, ...]], seconds: float) -> Picture:
    """The rows of `picture` as a Picture, in an order that does not depend on theirs."""
    each: dict[str, list[Any]] = {}
    for kind, row in rows:
        each.setdefault(kind, []).append(json.loads(row))
    at = float(each["clock"][0][0])
    return Picture(
        at,
        at - seconds,
        sorted(Lane(*row) for row in each.get("queue", [])),
        sorted((Hand(*row) for row in each.get("worker", [])), key=lambda one: (one.host, one.pid, one.id)),
        [Held._make([*row[:6], _seconds(row[6])]) for row in each.get("job", [])],
        {(queue, worker, int(second)): count for queue, worker, second, count in each.get("completed", [])},
        {(queue, int(second)): count for queue, second, count in each.get("failed", [])},
    )


def _seconds(value: Any) -> float | None:
    """None for what plain SQL made infinite, which JSON has as a word."""
    return float(value) if isinstance(value, int | float) else None
