"""Does a backlog cost anything? The rate of 40,000 no-op jobs out of 50,000, with and without millions of others.

The others: as many jobs ready behind these, scheduled for later, and dead. From the first 5,000 on, so that starting
the worker is not in it; OTHERS (1,000,000) can be set by BENCH_BACKLOG.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import psycopg

from benchmarks.harness import compare
from benchmarks.tasks import noop
from pgqueue import PgQueue

JOBS, SKIPPED = 50_000, 5_000
OTHERS = int(os.environ.get("BENCH_BACKLOG", "1000000"))
ARGS = '{"user_id": 7, "note": "forty bytes of payload"}'

FILL = {
    "ready": "insert into pgqueue.jobs (task, run_at, args)"
    " select 'bench.noop', now() + interval '1 second' * i / 1e6, %s::jsonb from generate_series(1, %s) as i",
    "scheduled": "insert into pgqueue.jobs (task, run_at, args)"
    " select 'bench.noop', now() + interval '1 day' + interval '1 second' * i / 1e3, %s::jsonb"
    " from generate_series(1, %s) as i",
    "dead": "insert into pgqueue.dead_jobs (id, task, args, died_at, reason)"
    " select -i, 'bench.noop', %s::jsonb, now(), 'attempts' from generate_series(1, %s) as i",
}


def drain(*others: str) -> Callable[[str], float]:
    def measure(database: str) -> float:
        with psycopg.connect(database, autocommit=True) as connection:
            noop.enqueue_many(connection, ((7, "forty bytes of payload") for _ in range(JOBS)))
            for other in others:
                connection.execute(FILL[other], [ARGS, OTHERS])
        mine, times = PgQueue(database), []

        @mine.task(name=noop.name)
        async def count(user_id: int, note: str) -> None:
            times.append(time.perf_counter())
            if len(times) == JOBS:
                worker.stop()

        worker = mine.worker()
        asyncio.run(worker.run_async())
        return (JOBS - SKIPPED) / (times[JOBS - 1] - times[SKIPPED - 1])

    return measure


def main() -> None:
    contestants = {
        "alone": drain(),
        f"{OTHERS:,} more ready": drain("ready"),
        f"{OTHERS:,} scheduled": drain("scheduled"),
        f"{OTHERS:,} dead": drain("dead"),
        "all of them": drain(*FILL),
    }
    compare(f"Drain {JOBS:,} no-op jobs before a backlog", "jobs/s", contestants, "alone", more_is_better=True)


if __name__ == "__main__":
    main()
