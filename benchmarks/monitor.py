"""What looking takes: each view, at 50,000 and at 1,000,000 live jobs (BENCH_JOBS replaces both), in warm tables.

A quarter of the live jobs are scheduled, in 8 queues of 3 priorities, 20 tasks and 20 workers with as many running as
they have slots; beside them 10,000 dead jobs, one a second, 360,000 that completed in the last hour, 100 a second, and
5,000 that failed once. Promised of queue_stats: 50 ms and 300 ms. Medians of 9 looks, on a fresh database a round.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import psycopg

from benchmarks.harness import JOBS, ROUNDS, digits, fresh_database, machine, server, settings
from pgqueue import stats
from pgqueue.drivers import look
from pgqueue.sql import statements

SIZES = [int(JOBS)] if JOBS else [50_000, 1_000_000]
BOUNDS = {50_000: 50.0, 1_000_000: 300.0}  # ms, of queue_stats
LOOKS = 9

FILL = (
    "insert into pgqueue.workers (id, host, pid, expires_at, tasks, concurrency, version)"
    " select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 'host' || i, i, now() + interval '1 day',"
    " array(select 'shop.tasks.t' || t from generate_series(0, 19) as t), 20, 'bench' from generate_series(1, 20) as i",
    "insert into pgqueue.jobs (task, queue, priority, run_at, args, state, worker_id, started_at, fence)"
    " select 'shop.tasks.t' || i % 20, 'q' || i % 8, i % 3,"
    " now() + (case when i % 4 = 0 then 1 else -1 end) * interval '1 s' * (i % 100000),"
    " '{{\"user_id\": 7, \"note\": \"forty bytes of payload\"}}', case when i <= 400 then 'running' else 'queued' end,"
    " case when i <= 400 then ('00000000-0000-4000-8000-' || lpad((i % 20 + 1)::text, 12, '0'))::uuid end, now(), 1"
    " from generate_series(1, {jobs}) as i",
    "insert into pgqueue.job_errors (job_id, fence, attempt, at, error)"
    " select i, 1, 1, now() - i * interval '0.7 s', 'Boom' from generate_series(1, 5000) as i",
    "insert into pgqueue.dead_jobs (id, task, queue, died_at, started_at, reason, errors)"
    " select 2000000 + i, 'shop.tasks.t' || i % 20, 'q' || i % 8, died, died - interval '1 s', 'attempts',"
    " jsonb_build_array(jsonb_build_object('attempt', 1, 'at', died, 'error', 'Boom'))"
    " from generate_series(1, 10000) as i, lateral (select now() - i * interval '1 s' as died) as at",
    "do $$ begin execute (select format('create table pgqueue.finished_jobs_yesterday partition of"
    " pgqueue.finished_jobs for values from (%L) to (%L)', today - interval '1 day', today)"
    " from (values (date_trunc('day', now() at time zone 'utc') at time zone 'utc')) as days (today)); end $$",
    "insert into pgqueue.finished_jobs (id, state, task, queue, run_at, started_at, finished_at, worker_id)"
    " select 3000000 + i, 'completed', 'shop.tasks.t' || i % 20, 'q' || i % 8, ended - interval '15 ms',"
    " ended - interval '10 ms', ended, ('00000000-0000-4000-8000-' || lpad((i % 20 + 1)::text, 12, '0'))::uuid"
    " from generate_series(1, 360000) as i, lateral (select now() - (360000 - i) * interval '10 ms' as ended) as at",
)
QUERIES = {
    "queue_stats": "select * from pgqueue.queue_stats",
    "task_stats": "select * from pgqueue.task_stats",
    "worker_stats": "select * from pgqueue.worker_stats",
    "health": "select * from pgqueue.health",
    "why, of a job behind most of its queue": "select * from pgqueue.why(405)",
}


def fill(database: str, jobs: int) -> None:
    """The tables of a shop that has been at it for a while."""
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in FILL:
            connection.execute(statement.format(jobs=jobs) if "{jobs}" in statement else statement)
        connection.execute("vacuum (analyze)")


def timed(ask: Callable[[], object]) -> float:
    """Milliseconds that a look takes: the median of LOOKS."""
    taken = []
    for _ in range(LOOKS):
        begun = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken)


def measure(database: str) -> dict[str, float]:
    with psycopg.connect(database, autocommit=True) as connection:
        found = {name: timed(lambda: connection.execute(query).fetchall()) for name, query in QUERIES.items()}  # noqa: B023
        sql = statements("pgqueue")
        found["a picture of `pgqueue top`"] = timed(lambda: look(connection, stats.picture(sql, 6.0, 200)))
        return found


def main() -> None:
    rounds = 3 if "BENCH_ROUNDS" not in os.environ else ROUNDS  # filling takes longest
    with server() as url:
        for jobs in SIZES:
            found: dict[str, list[float]] = {}
            for _ in range(rounds):
                with fresh_database(url) as database:
                    fill(database, jobs)
                    for name, figure in measure(database).items():
                        found.setdefault(name, []).append(figure)
            print(f"\nLooking, at {jobs:,} live jobs; {rounds} rounds, medians of {LOOKS} looks", machine(), sep="\n")
            print(settings(url))
            width = max(map(len, found))
            for name, figures in found.items():
                middle = statistics.median(figures)
                spread = f"{min(figures):,.{digits(middle)}f} to {max(figures):,.{digits(middle)}f}"
                bound = f"  promised: {BOUNDS[jobs]:g} ms" if name == "queue_stats" and jobs in BOUNDS else ""
                print(f"  {name:<{width}}  {middle:>10,.{digits(middle)}f} ms  ({spread}){bound}")


if __name__ == "__main__":
    main()
