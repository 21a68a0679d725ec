"""How soon an idle worker starts a job, beside a raw LISTEN and claim loop. Median milliseconds of 200 jobs.

From just before the enqueue, so insert and commit are in it; the jobs come 20 to 50 ms apart.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import threading
import time

import psycopg

from benchmarks.harness import ARGS, compare
from pgqueue import PgQueue

JOBS = 200


def _offer(enqueue_one: object, started: list[float]) -> float:
    assert callable(enqueue_one)
    waits = []
    gaps = random.Random(7)  # the same gaps for everybody
    for number in range(JOBS):
        time.sleep(gaps.uniform(0.02, 0.05))
        began = time.perf_counter()
        enqueue_one()
        while len(started) <= number:
            time.sleep(0.0005)
        waits.append(started[number] - began)
    return statistics.median(waits) * 1_000


def raw(database: str) -> float:
    started: list[float] = []
    ready = threading.Event()

    def work() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("listen raw")
            ready.set()
            while len(started) < JOBS:
                for _ in connection.notifies(timeout=5, stop_after=1):
                    pass
                row = connection.execute(
                    "update raw_jobs set state = 'running' where id = (select id from raw_jobs where state = 'queued' "
                    "order by run_at, id limit 1 for update skip locked) returning id"
                ).fetchone()
                if row:
                    started.append(time.perf_counter())
                    connection.execute("delete from raw_jobs where id = %s", row)

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    with psycopg.connect(database, autocommit=True) as connection:
        median = _offer(
            lambda: connection.execute(
                "with job as (insert into raw_jobs (args) values (%s)) select pg_notify('raw', '')", [ARGS]
            ),
            started,
        )
    thread.join()
    return median


def pgqueue(database: str) -> float:
    app = PgQueue(database)
    started: list[float] = []

    @app.task(name="bench.mark")
    async def mark(user_id: int) -> None:
        started.append(time.perf_counter())

    worker = app.worker()
    thread = threading.Thread(target=lambda: asyncio.run(worker.run_async()))
    thread.start()
    with psycopg.connect(database, autocommit=True) as connection:
        while not connection.execute("select 1 from pgqueue.sleepers where until > now()").fetchone():
            time.sleep(0.01)
        median = _offer(lambda: mark.enqueue(connection, 7), started)
    worker.stop()
    thread.join()
    return median


def main() -> None:
    contestants = {"raw LISTEN": raw, "pgqueue": pgqueue}
    compare("Idle pick-up, median", "ms", contestants, "raw LISTEN", more_is_better=False)


if __name__ == "__main__":
    main()
