"""Do commits serialise? 16 connections, each BEGIN; INSERT into an application's table; enqueue one; COMMIT.

Beside a plain INSERT in place of the enqueue, and one that sends a NOTIFY in each transaction. Commits a second, with
the disk's own flush and with one that waits 1 ms (commit_delay). Nobody sleeps but where it says so: then one worker
runs what is enqueued, and lies down between.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import psycopg

from benchmarks.harness import compare
from benchmarks.raw import ARGS
from benchmarks.tasks import app, noop
from pgqueue import PgQueue

PROCESSES, CONNECTIONS = 4, 4  # of each: one process of 16 threads would measure Python's lock
SECONDS = 3.0
SLOW = "-c commit_delay=1000 -c commit_siblings=0"

Enqueue = Callable[[psycopg.Connection[Any]], object]


def plain(connection: psycopg.Connection[Any]) -> None:
    connection.execute("insert into other (args) values (%s)", [ARGS])


def notifying(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "with job as (insert into other (args) values (%s) returning id) select pg_notify('jobs', '') from job", [ARGS]
    )


def enqueueing(connection: psycopg.Connection[Any]) -> None:
    noop.enqueue(connection, 7, "forty bytes of payload")


def work(database: str, options: str, enqueue: Enqueue, begin: Any, total: Any) -> None:
    """One process: its threads commit for SECONDS."""
    done = [0] * CONNECTIONS

    def commit(place: int) -> None:
        with psycopg.connect(database, options=options) as connection:
            connection.prepare_threshold = 0
            begin.wait()
            until = time.perf_counter() + SECONDS
            while time.perf_counter() < until:
                connection.execute("insert into app (note) values ('an order')")
                enqueue(connection)
                connection.commit()
                done[place] += 1

    threads = [threading.Thread(target=commit, args=[place]) for place in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with total.get_lock():
        total.value += sum(done)


def commits(enqueue: Enqueue, options: str = "", *, worker: bool = False) -> Callable[[str], float]:
    def measure(database: str) -> float:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("create table app (id bigint generated always as identity primary key, note text)")
            connection.execute("create table other (id bigint generated always as identity primary key, args jsonb)")
        spawn = multiprocessing.get_context("spawn")
        begin, total = spawn.Barrier(PROCESSES * CONNECTIONS), spawn.Value("q", 0)
        writers = [
            spawn.Process(target=work, args=[database, options, enqueue, begin, total]) for _ in range(PROCESSES)
        ]
        with Worker(database) if worker else nullcontext():
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
        assert not any(writer.exitcode for writer in writers)
        return float(total.value) / SECONDS

    return measure


class Worker(threading.Thread):
    """A worker of ours beside the writers."""

    def __init__(self, database: str) -> None:
        super().__init__()
        mine = PgQueue(database)
        mine.tasks.update(app.tasks)
        self._worker = mine.worker()

    def run(self) -> None:
        asyncio.run(self._worker.run_async())

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.stop()
        self.join()


def main() -> None:
    for title, options in (("as the disk flushes", ""), ("a flush of 1 ms", SLOW)):
        contestants = {
            "plain INSERT": commits(plain, options),
            "INSERT and NOTIFY": commits(notifying, options),
            "pgqueue, nobody sleeps": commits(enqueueing, options),
            "pgqueue, a worker that keeps up": commits(enqueueing, options, worker=True),
        }
        where = f"Commits of {PROCESSES * CONNECTIONS} connections, {title}"
        compare(where, "commits/s", contestants, "plain INSERT", more_is_better=True)


if __name__ == "__main__":
    main()
