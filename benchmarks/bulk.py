"""Enqueue 100,000 jobs at once, beside COPY and INSERT … SELECT unnest of the same rows. Jobs a second."""

from __future__ import annotations

import time

import psycopg

from benchmarks.harness import ARGS, compare
from benchmarks.tasks import noop

JOBS = 100_000


def copy(database: str) -> float:
    with psycopg.connect(database) as connection:
        began = time.perf_counter()
        with connection.cursor() as cursor, cursor.copy("copy raw_jobs (args) from stdin") as rows:
            for _ in range(JOBS):
                rows.write_row([ARGS])
        connection.commit()
        return JOBS / (time.perf_counter() - began)


def unnest(database: str) -> float:
    with psycopg.connect(database) as connection:
        began = time.perf_counter()
        for _ in range(JOBS // 5_000):
            connection.execute("insert into raw_jobs (args) select unnest(%s::jsonb[])", [[ARGS] * 5_000])
        connection.commit()
        return JOBS / (time.perf_counter() - began)


def pgqueue(database: str) -> float:
    with psycopg.connect(database) as connection:
        began = time.perf_counter()
        noop.enqueue_many(connection, ((7, "forty bytes of payload") for _ in range(JOBS)))
        connection.commit()
        return JOBS / (time.perf_counter() - began)


def main() -> None:
    contestants = {"raw COPY": copy, "raw unnest": unnest, "pgqueue": pgqueue}
    compare("Enqueue 100,000 jobs at once", "jobs/s", contestants, "raw COPY", more_is_better=True)


if __name__ == "__main__":
    main()
