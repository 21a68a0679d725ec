"""Drain under a held snapshot: 100,000 jobs have gone through since somebody's transaction began; the next 20,000.

Nothing can remove what the gone ones left behind in the claim's index. Beside the raw loop, and beside this code with
every claim from the bottom: the difference is worker/floor.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import psycopg

from benchmarks.harness import compare
from benchmarks.raw import ARGS, CLAIM
from benchmarks.tasks import app, noop
from pgqueue import PgQueue
from pgqueue.worker.floor import Floors, Start

GONE, JOBS = 100_000, 20_000


def hold(stack: ExitStack, database: str) -> None:
    holder = stack.enter_context(psycopg.connect(database))
    holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    holder.execute("select 1")


def raw(held: bool) -> Callable[[str], float]:
    def measure(database: str) -> float:
        with ExitStack() as stack:
            connection = stack.enter_context(psycopg.connect(database, autocommit=True))
            if held:
                hold(stack, database)
            for number in (GONE, JOBS):
                connection.execute(
                    "insert into raw_jobs (args) select %s::jsonb from generate_series(1, %s)",
                    [ARGS, number],
                    prepare=False,
                )
                began = time.perf_counter()
                while rows := connection.execute(CLAIM).fetchall():
                    connection.execute("delete from raw_jobs where id = any(%s)", [[row[0] for row in rows]])
            return JOBS / (time.perf_counter() - began)

    return measure


def drain(*, held: bool, floors: bool = True) -> Callable[[str], float]:
    def measure(database: str) -> float:
        mine = PgQueue(database)
        mine.tasks.update(app.tasks)
        with ExitStack() as stack:
            if not floors:
                stack.enter_context(mock.patch.object(Floors, "start", return_value=Start("bottom", None)))
            connection = stack.enter_context(psycopg.connect(database, autocommit=True))
            if held:
                hold(stack, database)
            for number in (GONE, JOBS):
                noop.enqueue_many(connection, ((7, "forty bytes of payload") for _ in range(number)))
                worker = mine.worker(drain=True)
                began = time.perf_counter()
                asyncio.run(worker.run_async())
            return JOBS / (time.perf_counter() - began)

    return measure


def main() -> None:
    contestants = {
        "raw loop": raw(False),
        "raw loop, held": raw(True),
        "pgqueue": drain(held=False),
        "pgqueue, held": drain(held=True),
        "pgqueue, held, each claim from the bottom": drain(held=True, floors=False),
    }
    title = f"Drain {JOBS:,} no-op jobs after {GONE:,} others, with and without a held snapshot"
    compare(title, "jobs/s", contestants, "raw loop", more_is_better=True)


if __name__ == "__main__":
    main()
