"""What the demo asks the database: plain SQL over pgqueue's tables and views, as psql or Grafana would ask it.

all_jobs        every job, live, ended or dead, in one shape; `errors` holds its failed attempts
jobs            the live ones, finished_jobs the ended ones, dead_jobs the dead-letter table
workers         one row for each process that runs jobs
queue_stats     one row for each queue that has something in it
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.rows import namedtuple_row

Row = Any  # a named tuple: row.state
Database = Connection[Row]

COUNT_JOBS = "SELECT count(*) AS n FROM pgqueue.all_jobs"


class PromiseBroken(Exception):
    """The database does not say what pgqueue promises."""


def connect(url: str) -> Database:
    """Autocommit: every question sees what is committed at that moment."""
    return Connection.connect(url, autocommit=True, row_factory=namedtuple_row)


def server_version(db: Database) -> str:
    return str(_one(db, "SELECT current_setting('server_version') AS version").version)


def schema(db: Database) -> Row:
    sql = """
        SELECT (SELECT count(*) FROM pg_tables WHERE schemaname = 'pgqueue') AS tables,
               (SELECT count(*) FROM pg_views WHERE schemaname = 'pgqueue') AS views
        """
    return _one(db, sql)


def now(db: Database) -> Any:
    return _one(db, "SELECT clock_timestamp() AS now").now


def workers(db: Database) -> list[Row]:
    return _all(db, "SELECT id, pid, concurrency, cardinality(tasks) AS tasks FROM pgqueue.workers ORDER BY started_at")


def count_jobs(db: Database) -> int:
    return int(_one(db, COUNT_JOBS).n)


def count_customers(db: Database, email: str) -> int:
    return int(_one(db, "SELECT count(*) AS n FROM shop.customers WHERE email = %s", email).n)


def count_products(db: Database) -> int:
    return int(_one(db, "SELECT count(*) AS n FROM shop.products").n)


def state(db: Database, job_id: int) -> str:
    return str(_one(db, "SELECT state FROM pgqueue.all_jobs WHERE id = %s", job_id).state)


def last_error(db: Database, job_id: int) -> str | None:
    error = _one(db, "SELECT errors -> -1 ->> 'error' AS error FROM pgqueue.all_jobs WHERE id = %s", job_id).error
    return None if error is None else str(error)


def outcome(db: Database, task: str, since: Any) -> Row:
    """How the jobs of one task went, what they returned, and how long the middle one waited and ran."""
    return _one(
        db,
        """
        SELECT count(*) AS jobs,
               count(finished_at) AS ended,
               count(*) FILTER (WHERE state = 'completed') AS completed,
               jsonb_agg(result ORDER BY id) AS results,
               1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY wait) AS wait_ms,
               1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY run) AS run_ms
        FROM pgqueue.all_jobs, LATERAL (
            SELECT extract(epoch FROM started_at - run_at) AS wait, extract(epoch FROM finished_at - started_at) AS run
        ) AS seconds
        WHERE task = %s AND created_at >= %s
        """,
        task,
        since,
    )


def welcomed(db: Database, since: Any) -> int:
    sql = "SELECT count(*) AS n FROM shop.customers WHERE welcomed_at IS NOT NULL AND registered_at >= %s"
    return int(_one(db, sql, since).n)


def failed_attempts(db: Database, job_id: int) -> list[Row]:
    """One row for each, while the job lives and when it has ended. `later`: seconds after the one before."""
    return _all(
        db,
        """
        SELECT e.attempt, e.error, e.at,
               extract(epoch FROM e.at - lag(e.at) OVER (ORDER BY e.fence))::float8 AS later
        FROM pgqueue.all_jobs AS j,
             jsonb_to_recordset(j.errors) AS e(attempt int, fence int, at timestamptz, error text)
        WHERE j.id = %s ORDER BY e.fence
        """,
        job_id,
    )


def completed(db: Database, job_id: int) -> Row:
    """A completed job. `later`: seconds from its last failure, if any, to the start of the attempt that did it."""
    return _one(
        db,
        """
        SELECT state, attempt, fence, worker_id, result, created_at, started_at, finished_at,
               extract(epoch FROM finished_at - started_at)::float8 AS seconds,
               extract(epoch FROM started_at - (errors -> -1 ->> 'at')::timestamptz)::float8 AS later
        FROM pgqueue.finished_jobs WHERE id = %s AND state = 'completed'
        """,
        job_id,
    )


def schedule(db: Database, name: str) -> list[Row]:
    """None, until a worker has written down what the code declares."""
    return _all(
        db,
        """
        SELECT task, cron, status, next_tick AT TIME ZONE 'UTC' AS next_tick,
            (next_tick AT TIME ZONE 'UTC')::time = time '02:00' AS at_two,
            extract(epoch FROM next_tick - now())::float8 / 3600 AS hours
        FROM pgqueue.schedule_stats
        WHERE name = %s AND next_tick IS NOT NULL
        """,
        name,
    )


def dead(db: Database, job_id: int) -> Row:
    sql = """
        SELECT attempt, max_attempts, reason, jsonb_array_length(errors) AS errors, args
        FROM pgqueue.dead_jobs WHERE id = %s
        """
    return _one(db, sql, job_id)


def order(db: Database, order_id: int) -> Row:
    return _one(db, "SELECT total, paid_at IS NOT NULL AS paid FROM shop.orders WHERE id = %s", order_id)


def runner(db: Database, job_id: int) -> Row | None:
    """Who runs a job at this moment; None if nobody does."""
    sql = """
        SELECT w.id, w.pid, w.host, j.attempt, j.fence
        FROM pgqueue.jobs AS j JOIN pgqueue.workers AS w ON w.id = j.worker_id
        WHERE j.id = %s
        """
    found = _all(db, sql, job_id)
    return found[0] if found else None


def restarted(db: Database, job_id: int, since: Any) -> float:
    """Seconds from `since` to the start of the attempt that completed the job."""
    sql = "SELECT extract(epoch FROM started_at - %s)::float8 AS after FROM pgqueue.finished_jobs WHERE id = %s"
    return float(_one(db, sql, since, job_id).after)


def summary(db: Database) -> list[Row]:
    """A row for each task. `runs`: how often its jobs were begun. A rescued job's wait would count its first run in."""
    return _all(
        db,
        """
        SELECT regexp_replace(task, '.*[.]', '') AS task,
               count(*) AS jobs,
               count(*) FILTER (WHERE state = 'completed') AS completed,
               sum(fence) AS runs,
               1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY wait) FILTER (WHERE crashes = 0) AS wait_ms,
               1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY run) AS run_ms
        FROM pgqueue.all_jobs, LATERAL (
            SELECT extract(epoch FROM started_at - run_at) AS wait, extract(epoch FROM finished_at - started_at) AS run
        ) AS seconds
        GROUP BY 1 ORDER BY min(id)
        """,
    )


def left(db: Database) -> Row:
    """What is still in the queues, all of them together."""
    return _one(
        db,
        """
        SELECT coalesce(sum(queued + scheduled), 0) AS waiting, coalesce(sum(running), 0) AS running,
               coalesce(sum(blocked), 0) AS blocked, coalesce(sum(dead), 0) AS dead
        FROM pgqueue.queue_stats
        """,
    )


def elapsed(db: Database) -> float:
    """Seconds from the first enqueue to the last completion."""
    sql = "SELECT extract(epoch FROM max(finished_at) - min(created_at))::float8 AS seconds FROM pgqueue.all_jobs"
    return float(_one(db, sql).seconds)


def _all(db: Database, sql: str, *values: object, **named: object) -> list[Row]:
    return db.execute(sql.encode(), named or values).fetchall()


def _one(db: Database, sql: str, *values: object, **named: object) -> Row:
    rows = _all(db, sql, *values, **named)
    if not rows:
        raise PromiseBroken(f"no such row: {' '.join(sql.split())} {named or values}")
    return rows[0]
