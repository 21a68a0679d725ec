"""What a job costs the database: bytes of WAL, transactions and commits a job; and what an idle worker costs.

By the server's own counters, over 20,000 jobs of each kind. Commits are transactions that changed something, each a
flush unless several share one. The worker's figures are of a real `pgqueue worker` with every setting at its default.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks.harness import fresh_database, machine, server
from benchmarks.tasks import app, noop
from pgqueue import PgQueue

JOBS = 20_000
IDLE = 10.0  # seconds
COUNTERS = """
select pg_current_wal_insert_lsn() - '0/0', pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
    (select xact_commit from pg_stat_database where datname = current_database())
"""


def counters(database: str) -> list[float]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_stat_clear_snapshot()")
        row = connection.execute(COUNTERS).fetchone()
    assert row is not None
    return [float(value) for value in row]


def one_by_one(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for _ in range(JOBS):
            noop.enqueue(connection, 7, "forty bytes of payload")


def bulk(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        noop.enqueue_many(connection, ((7, "forty bytes of payload") for _ in range(JOBS)))


def drain(database: str) -> None:
    mine = PgQueue(database)
    mine.tasks.update(app.tasks)
    asyncio.run(mine.worker(drain=True).run_async())


STEPS: dict[str, tuple[Callable[[str], None] | None, Callable[[str], None]]] = {
    "enqueue, one a transaction": (None, one_by_one),
    "enqueue_many": (None, bulk),
    "run and complete, kept": (bulk, drain),
}


@contextmanager
def worker(database: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "worker", "benchmarks.tasks:app"],
        env={**os.environ, "PGQUEUE_DATABASE_URL": database},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def resident(pid: int) -> float:
    """MB of memory of a process and its children."""
    family = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in family)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def idle(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        noop.enqueue(connection, 7, "forty bytes of payload")
        began = time.perf_counter()
        with worker(database) as process:
            while connection.execute("select from pgqueue.finished_jobs").fetchone() is None:
                time.sleep(0.005)
            print(f"  {'start of the process to its first job done':<44}{time.perf_counter() - began:10.2f} s")
            time.sleep(2.0)
            before = counters(database)
            time.sleep(IDLE)
            after = counters(database)
            commits = (after[2] - before[2] - 1) / IDLE  # ours between the two looks is one
            print(f"  {'idle: transactions a second':<44}{commits:10.1f}")
            print(f"  {'idle: memory, supervisor and one child':<44}{resident(process.pid):10.0f} MB")
            noop.enqueue_many(connection, ((7, "forty bytes of payload") for _ in range(JOBS)))
            while connection.execute("select count(*) from pgqueue.finished_jobs").fetchone() != (JOBS + 1,):
                time.sleep(0.05)
            print(f"  {f'after {JOBS:,} jobs: memory':<44}{resident(process.pid):10.0f} MB")


def main() -> None:
    print(f"\nCost of a job ({JOBS:,} of each)\n{machine()}")
    print(f"  {'':<32}{'WAL bytes':>12}{'XIDs':>10}{'commits':>10}")
    with server() as url:
        for name, (prepare, measured) in STEPS.items():
            with fresh_database(url) as database:
                if prepare is not None:
                    prepare(database)
                before = counters(database)
                measured(database)
                time.sleep(1.5)  # backends report their commits once a second, and when they end
                wal, xids, commits = (
                    (b - a) / JOBS for a, b in zip(before, counters(database), strict=True)
                )  # fmt: skip
                print(f"  {name:<32}{wal:>12,.0f}{xids:>10.4f}{commits:>10.4f}")
        with fresh_database(url) as database:
            idle(database)


if __name__ == "__main__":
    main()
