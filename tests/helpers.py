"""What the tests share: waiting for something to become true, never for time to pass; a bound on how long that takes; a
job in any state."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
from psycopg.sql import SQL, Identifier

from pgqueue import PgQueue, db
from pgqueue.drivers import Steps, perform_raw
from pgqueue.enqueue import NewJob, Options

T = TypeVar("T")


def eventually(check: Callable[[], T], timeout: float = 30.0, interval: float = 0.01) -> T:
    """The first truthy value of `check()`, tried every `interval` seconds. AssertionError, with the last value, when
    there is none within `timeout` seconds; what `check` raises goes through."""
    deadline = time.monotonic() + timeout
    while not (value := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s; the last value was {value!r}")
        time.sleep(interval)
    return value


def in_time(measure: Callable[[], float], bound: float, tries: int = 3) -> None:
    """Whether what `measure()` does took `bound` seconds at most, by whatever clock it reads. A machine may stand still
    for a moment, and pgqueue cannot: so one of `tries` is enough. AssertionError, with all it took, when none was."""
    took = [measure()]
    while took[-1] > bound:
        assert len(took) < tries, f"not within {bound:g} s: {', '.join(f'{one:.2f}' for one in took)}"
        took.append(measure())


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that others are writing to. A reader can meet the first half of a line that was one write():
    what has no newline yet has not been said."""
    return path.read_text().split("\n")[:-1]


def run(connection: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """Runs steps of pgqueue.db (or monitor, control) on a psycopg connection: `run(connection, db.claim(...))`."""
    return perform_raw(connection, steps)


def job_in(app: PgQueue, connection: psycopg.Connection[Any], state: str, task: str = "test.task") -> int:
    """The id of a job in any state, brought there by the statements that bring jobs there."""
    sql = app.statements
    options = Options(expires_in=0.001) if state == "expired" else Options()
    job_id = app.enqueue_alone(NewJob(task, "{}", options)).id
    if state == "queued":
        return job_id
    if state == "blocked":  # no verb leads there yet
        block = SQL("update {}.jobs set state = 'blocked' where id = %s").format(Identifier(app.schema))
        connection.execute(block, [job_id])
        return job_id
    if state == "cancelled":
        run(connection, db.cancel(sql, [job_id], "because"))
        return job_id
    if state == "expired":
        eventually(lambda: job_id in {row[0] for row in run(connection, db.expire(sql, 1_000))})
        return job_id
    worker_id = worker_row(app, connection, tasks=[task])
    claims = {claim.id: claim for claim in run(connection, db.claim(sql, worker_id, [task], None, 1_000))}
    claim = claims.pop(job_id)
    others = list(claims), [other.fence for other in claims.values()], [None] * len(claims)
    run(connection, db.give_back(sql, worker_id, *others))  # this one was asked for, and no other
    if state == "completed":
        run(connection, db.complete(sql, worker_id, [job_id], [claim.fence], ["null"]))
    elif state == "dead":
        run(connection, db.dead_letter(sql, worker_id, [job_id], [claim.fence], ["attempts"], ["Boom: no"], [None]))
    return job_id


def worker_row(app: PgQueue, connection: psycopg.Connection[Any], tasks: list[str], lease: float = 60.0) -> UUID:
    """The id of a registered worker that does nothing by itself."""
    worker_id = uuid4()
    row = {"host": "test", "pid": 1, "queues": None, "tasks": tasks, "concurrency": 1, "version": "test"}
    run(connection, db.register(app.statements, worker_id, lease=lease, **row))
    return worker_id
