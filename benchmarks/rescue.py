"""How soon the jobs of a dead worker start elsewhere, with every setting at its default. Seconds, of the last of them.

Two deaths: of one working process (SIGKILL; its supervisor sees it), and of a whole worker at once, as a machine goes
(supervisor and children; another worker's sweep finds the lease ended). There is no floor to compare with: the bounds
are 2 s for the jobs that the first death may start at once, and 20 s for the second.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks.harness import ROUNDS, fresh_database, machine, server
from benchmarks.tasks import linger

JOBS = 4  # so many suspects start at the same time on any machine
RUNNING = "select count(*) from pgqueue.jobs where state = 'running' and fence = %s"


@contextmanager
def worker(database: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "PGQUEUE_DATABASE_URL": database}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", "worker", "benchmarks.tasks:app"],
            env=env,
            cwd=Path(__file__).parents[1],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def until(connection: psycopg.Connection[tuple[int]], fence: int) -> None:
    while connection.execute(RUNNING, [fence]).fetchone() != (JOBS,):
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def process_dies(database: str) -> float:
    with psycopg.connect(database, autocommit=True) as connection, worker(database) as one:
        linger.enqueue_many(connection, [()] * JOBS)
        until(connection, 1)
        (child,) = children(one.pid)
        began = time.perf_counter()
        os.kill(child, signal.SIGKILL)
        until(connection, 2)
        return time.perf_counter() - began


def machine_dies(database: str) -> float:
    with psycopg.connect(database, autocommit=True) as connection, worker(database) as one:
        linger.enqueue_many(connection, [()] * JOBS)
        until(connection, 1)
        with worker(database):
            while connection.execute("select count(*) from pgqueue.workers").fetchone() != (2,):
                time.sleep(0.05)
            family = [one.pid, *children(one.pid)]
            began = time.perf_counter()
            for member in family:
                os.kill(member, signal.SIGKILL)
            until(connection, 2)
            return time.perf_counter() - began


def main() -> None:
    print(f"\nThe last of {JOBS} jobs starts again after\n{machine()}; {ROUNDS} rounds, in turn")
    figures: dict[str, list[float]] = {"a working process is killed": [], "the whole worker is killed": []}
    with server() as url:
        for _ in range(ROUNDS):
            for found, measure in zip(figures.values(), (process_dies, machine_dies), strict=True):
                with fresh_database(url) as database:
                    found.append(measure(database))
    for name, found in figures.items():
        print(f"  {name:<28} {statistics.median(found):6.2f} s  ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
