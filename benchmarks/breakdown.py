"""Where a no-op job's time goes: CPU of the worker's Python and of each of its connections' servers, a job.

By the kernel's own count of each process (10 ms steps, so over many jobs), while the worker runs in this process; what
the clock shows beyond their sum over two is waiting. Two busy "cores" that are threads of one share its units: then
each needs more than it would alone.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import psycopg

from benchmarks.harness import fresh_database, machine, server
from benchmarks.tasks import app, noop
from pgqueue import PgQueue

JOBS = int(os.environ.get("BENCH_JOBS", "100000"))
_TICK = os.sysconf("SC_CLK_TCK")


def seconds(pid: int) -> float:
    """CPU that a process has used, of user and of system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def drain(database: str, concurrency: int) -> None:
    mine = PgQueue(database)
    mine.tasks.update(app.tasks)
    with psycopg.connect(database, autocommit=True) as connection:
        noop.enqueue_many(connection, ((7, "forty bytes of payload") for _ in range(JOBS)))
        connection.execute("analyze pgqueue.jobs")
        spent: dict[str, float] = {}

        async def work() -> None:
            task = asyncio.create_task(mine.worker(concurrency=concurrency, drain=True).run_async())
            while not task.done():
                await asyncio.wait([task], timeout=0.1)
                for name, pid in connection.execute(
                    "select application_name, pid from pg_stat_activity where datname = current_database()"
                    " and application_name like 'pgqueue %'"
                ).fetchall():
                    spent[name] = seconds(pid)
            await task

        began, mine_before = time.perf_counter(), time.process_time()
        asyncio.run(work())
        elapsed, python = time.perf_counter() - began, time.process_time() - mine_before
    print(f"\n  concurrency {concurrency}: {JOBS / elapsed:,.0f} jobs/s, {elapsed / JOBS * 1e6:.1f} µs a job")
    rows = {"Python": python, **{name: value for name, value in spent.items() if value / JOBS * 1e6 >= 0.05}}
    for name, value in rows.items():
        print(f"    {name:<20}{value / JOBS * 1e6:6.1f} µs")


def main() -> None:
    print(f"\nCPU of a no-op job, {JOBS:,} jobs\n{machine()}")
    with server() as url:
        for concurrency in (20, 500):
            with fresh_database(url) as database:
                drain(database, concurrency)


if __name__ == "__main__":
    main()
