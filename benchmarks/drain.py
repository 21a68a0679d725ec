"""Drain preloaded no-op jobs, beside a raw loop: claim 500 with SKIP LOCKED, delete them. Jobs a second, one process.

pgqueue's clock runs from before the worker's first connection to the last settle; fences, history and logging as by
default (the log goes nowhere).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg

from benchmarks.harness import ARGS, compare
from benchmarks.tasks import app, noop, noop_thread
from pgqueue import PgQueue, Task

JOBS = 20_000

CLAIM = """
with picked as (
    select id from raw_jobs where state = 'queued' and run_at <= now()
    order by run_at, id limit 500 for update skip locked
)
update raw_jobs set state = 'running' from picked where raw_jobs.id = picked.id returning raw_jobs.id, args
"""


def raw(database: str) -> float:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "insert into raw_jobs (args) select %s::jsonb from generate_series(1, %s)", [ARGS, JOBS], prepare=False
        )
        connection.execute("analyze raw_jobs")
        began = time.perf_counter()
        done = 0
        while rows := connection.execute(CLAIM).fetchall():
            done += len(rows)
            connection.execute("delete from raw_jobs where id = any(%s)", [[row[0] for row in rows]])
        assert done == JOBS
        return JOBS / (time.perf_counter() - began)


def drain(task: Task[..., Any], concurrency: int) -> Callable[[str], float]:
    def measure(database: str) -> float:
        mine = PgQueue(database)
        mine.tasks.update(app.tasks)
        with psycopg.connect(database) as connection:
            task.enqueue_many(connection, ((7, "forty bytes of payload") for _ in range(JOBS)))
        worker = mine.worker(concurrency=concurrency, drain=True)
        began = time.perf_counter()
        asyncio.run(worker.run_async())
        seconds = time.perf_counter() - began
        with psycopg.connect(database) as connection:
            row = connection.execute("select count(*) from pgqueue.finished_jobs where state = 'completed'").fetchone()
        assert row == (JOBS,)
        return JOBS / seconds

    return measure


def main() -> None:
    contestants = {
        "raw loop": raw,
        "pgqueue async, concurrency 20": drain(noop, 20),
        "pgqueue async, concurrency 500": drain(noop, 500),
        "pgqueue threads, concurrency 20": drain(noop_thread, 20),
    }
    compare(f"Drain {JOBS:,} no-op jobs, one process", "jobs/s", contestants, "raw loop", more_is_better=True)


if __name__ == "__main__":
    main()
