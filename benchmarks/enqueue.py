"""Enqueue one job a transaction, beside a raw one-row INSERT. Jobs a second."""

from __future__ import annotations

import time

import psycopg

from benchmarks.harness import ARGS, compare
from benchmarks.tasks import noop

JOBS = 2_000


def raw(database: str) -> float:
    with psycopg.connect(database) as connection:
        began = time.perf_counter()
        for _ in range(JOBS):
            connection.execute("insert into raw_jobs (args) values (%s) returning id", [ARGS])
            connection.commit()
        return JOBS / (time.perf_counter() - began)


def pgqueue(database: str) -> float:
    with psycopg.connect(database) as connection:
        began = time.perf_counter()
        for _ in range(JOBS):
            noop.enqueue(connection, 7, "forty bytes of payload")
            connection.commit()
        return JOBS / (time.perf_counter() - began)


def main() -> None:
    contestants = {"raw INSERT": raw, "pgqueue": pgqueue}
    compare("Enqueue, one job a transaction", "jobs/s", contestants, "raw INSERT", more_is_better=True)


if __name__ == "__main__":
    main()
