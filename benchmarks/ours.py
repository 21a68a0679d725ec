"""pgqueue as a contestant's program: see report.py for the verbs. Its worker is the real command, supervisor and all.

OURS_TASK, OURS_CONCURRENCY and OURS_PROCESSES choose among its settings; everything else is as by default.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import psycopg

from benchmarks.report import NOTE, Sent, pause, say, verbs
from benchmarks.tasks import app
from pgqueue import Task


def one(jobs: int) -> None:
    noop = _task()
    with psycopg.connect() as connection:
        began = time.perf_counter()
        for _ in range(jobs):
            noop.enqueue(connection, 7, NOTE)
            connection.commit()
        say(time.perf_counter() - began)


def bulk(jobs: int) -> None:
    noop = _task()
    with psycopg.connect() as connection:
        began = time.perf_counter()
        noop.enqueue_many(connection, ((7, NOTE) for _ in range(jobs)))
        connection.commit()
        say(time.perf_counter() - began)


def work(_: int) -> None:
    """In place of this process, the command."""
    command = [sys.executable, "-m", "pgqueue", "worker", "benchmarks.tasks:app"]
    for flag in ("concurrency", "processes"):
        if value := os.environ.get(f"OURS_{flag.upper()}"):
            command += [f"--{flag}", value]
    os.execv(sys.executable, command)


def offer(jobs: int) -> None:
    noop, sent = _task(), Sent()
    with psycopg.connect() as connection:
        for number in range(jobs):
            time.sleep(pause(number))
            sent.now(number)
            noop.enqueue(connection, number, NOTE)
            connection.commit()
    sent.write()


def _task() -> Task[..., Any]:
    return app.tasks[os.environ.get("OURS_TASK", "bench.noop")]


if __name__ == "__main__":
    verbs(one=one, bulk=bulk, work=work, offer=offer)
