"""What these tests share: a job's row wherever it is, all rows for comparison, a worker beside the test, its ears."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from pgqueue import Job, PgQueue, db
from pgqueue.worker.wake import channel
from tests.helpers import run, worker_row


def ended(connection: psycopg.Connection[Any], job: Job | int) -> Any:
    """The job's row, wherever it is, by column; AssertionError unless it is in exactly one place."""
    job_id = job if isinstance(job, int) else job.id
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        rows = cursor.execute("select * from pgqueue.all_jobs where id = %s", [job_id]).fetchall()
    assert len(rows) == 1, rows
    return rows[0]


def everything(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """All that is stored about jobs, for comparison."""
    tables = ("jobs", "job_errors", "finished_jobs", "dead_jobs")
    return [
        row
        for table in tables
        for row in connection.execute(f"select '{table}', t::text from pgqueue.{table} t order by t::text")
    ]


@contextmanager
def working(app: PgQueue, **settings: Any) -> Iterator[None]:
    """A worker at work beside the test, in a thread of its own; stopped at the end."""
    worker = app.worker(poll_interval=0.05, grace=5.0, **settings)
    thread = threading.Thread(target=lambda: asyncio.run(worker.run_async()))
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(20)
        assert not thread.is_alive()


def names(connection: psycopg.Connection[Any]) -> list[str]:
    """The argument of every live job, in the order of their ids."""
    return [row[0] for row in connection.execute("select args ->> 'name' from pgqueue.jobs order by id")]


class Ears:
    """Hears what sleeping workers would hear: whose channels were notified."""

    def __init__(self, app: PgQueue, connection: psycopg.Connection[Any], url: str) -> None:
        self._app, self._connection = app, connection
        self._raw = psycopg.connect(url, autocommit=True)
        self._raw.execute("listen the_end")
        self._workers: dict[str, str] = {}

    def asleep(self, name: str, *queues: str, seconds: float = 60.0) -> None:
        """From now on a worker of that name sleeps on these queues."""
        worker_id = worker_row(self._app, self._connection, tasks=[])
        run(self._connection, db.sleep(self._app.statements, worker_id, queues, seconds))
        self._raw.execute(f"listen {channel(worker_id)}")
        self._workers[channel(worker_id)] = name

    def heard(self) -> list[str]:
        """Whom the notifications since the last call were for: the server delivers them in the order of the commits."""
        self._connection.execute("notify the_end")
        found: list[str] = []
        for notice in self._raw.notifies(timeout=20):
            if notice.channel == "the_end":
                return sorted(found)
            assert notice.payload == ""
            found.append(self._workers[notice.channel])
        raise AssertionError("the notification that was to end it did not arrive")

    def close(self) -> None:
        self._raw.close()
