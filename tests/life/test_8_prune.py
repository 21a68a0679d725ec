"""Step 8, prune: days of finished jobs are made ahead and emptied whole, and nobody has to wait for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, db
from pgqueue.enqueue import NewJob, Options
from pgqueue.sql import statements
from tests.helpers import job_in, run, worker_row
from tests.life.workbench import ended

Look = psycopg.Connection[Any]
SQL = statements("pgqueue")
DAY = 86_400.0


def prune(connection: Look, ahead: int = 7, retention: float = DAY) -> tuple[int, int, int]:
    return run(connection, db.prune(SQL, ahead, retention))


def today(connection: Look) -> datetime:
    """The database's, in UTC, as midnight."""
    (found,) = connection.execute("select statement_timestamp()").fetchall()
    return found[0].astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def partitions(connection: Look) -> list[str]:
    sql = "select inhrelid::regclass::text from pg_inherits where inhparent = 'pgqueue.finished_jobs'::regclass"
    return sorted(row[0] for row in connection.execute(sql))


def name(day: datetime) -> str:
    return f"pgqueue.finished_jobs_{day:%Y%m%d}"


def finished(connection: Look, when: datetime) -> int:
    """A job that was completed then, in the partition of its day, which is made if need be."""
    day = when.replace(hour=0, minute=0, second=0, microsecond=0)
    connection.execute(
        f"create table if not exists {name(day)} partition of pgqueue.finished_jobs"
        f" for values from ('{day.isoformat()}') to ('{(day + timedelta(days=1)).isoformat()}')"
    )
    row = connection.execute(
        "insert into pgqueue.finished_jobs (id, state, task, finished_at)"
        " values (nextval('pgqueue.jobs_id_seq'), 'completed', 'test.task', %s) returning id",
        [when],
    ).fetchone()
    assert row is not None
    return int(row[0])


def kept(connection: Look) -> list[int]:
    return [row[0] for row in connection.execute("select id from pgqueue.finished_jobs order by id")]


def test_partitions_are_made_for_the_days_ahead_and_once(connection: Look) -> None:
    start = today(connection)
    assert name(start) in partitions(connection)  # by the migration
    prune(connection)
    assert partitions(connection)[-8:] == [name(start + timedelta(days=n)) for n in range(8)]
    assert prune(connection, ahead=10) == (3, 0, 0)
    assert prune(connection, ahead=10) == (0, 0, 0)
    assert partitions(connection)[-11:] == [name(start + timedelta(days=n)) for n in range(11)]


def test_a_job_that_ends_on_a_day_ahead_finds_its_partition(app: PgQueue, connection: Look) -> None:
    prune(connection, ahead=9)
    worker = worker_row(app, connection, tasks=["test.task"])
    app.enqueue_alone(NewJob("test.task", "{}", Options()))
    (claim,) = run(connection, db.claim(SQL, worker, ["test.task"], None, 1))
    then = today(connection) + timedelta(days=9, hours=23, minutes=59, seconds=59.999999)
    run(connection, db.complete(SQL, worker, [claim.id], [claim.fence], [None], then))
    found = connection.execute(f"select id, finished_at from {name(then)}").fetchall()
    assert found == [(claim.id, then)]


@pytest.mark.parametrize(("days", "left"), [(1e-6, [0]), (1, [0, 1]), (2, [0, 1, 2]), (30, [0, 1, 2, 3])])
def test_whole_days_are_emptied_when_their_last_moment_is_past_retention_and_nothing_younger_is(
    days: float, left: list[int], connection: Look
) -> None:
    start = today(connection)
    jobs = [finished(connection, start - timedelta(days=n) + timedelta(hours=1)) for n in range(4)]
    made, emptied, dropped = prune(connection, retention=days * DAY)
    assert (made, emptied, dropped) == (0, 4 - len(left), 0)
    assert kept(connection) == [jobs[n] for n in left]
    assert prune(connection, retention=days * DAY) == (0, 0, 0)


def test_live_and_dead_jobs_and_todays_are_never_pruned(app: PgQueue, connection: Look) -> None:
    states = ("queued", "running", "blocked", "dead", "completed", "cancelled", "expired")
    jobs = {state: job_in(app, connection, state, task=f"{state}.task") for state in states}
    connection.execute("update pgqueue.jobs set created_at = '2000-01-01', run_at = '2000-01-01'")
    connection.execute("update pgqueue.dead_jobs set died_at = '2000-01-01'")
    prune(connection, retention=0.001)
    assert {state: ended(connection, job).state for state, job in jobs.items()} == dict(
        zip(states, states, strict=True)
    )


def test_a_day_out_of_use_for_a_week_is_dropped_one_at_a_time(connection: Look) -> None:
    start = today(connection)
    old = [start - timedelta(days=n) for n in (9, 10, 8, 7, 3)]
    for day in old:
        finished(connection, day)
    assert prune(connection) == (0, 5, 0)
    assert kept(connection) == []
    assert [prune(connection)[2] for _ in range(4)] == [1, 1, 1, 0]
    assert [day for day in partitions(connection) if day < name(start)] == [name(old[3]), name(old[4])]


def test_a_day_that_somebody_reads_is_passed_by_and_emptied_the_next_time(
    connection: Look, pgqueue_database: str
) -> None:
    start = today(connection)
    read, free = (finished(connection, start - timedelta(days=n)) for n in (3, 2))
    connection.execute("set statement_timeout = '20s'")  # instead of waiting for ever
    with psycopg.connect(pgqueue_database) as reader:
        reader.execute(f"select * from {name(start - timedelta(days=3))}")
        assert prune(connection) == (0, 1, 0)
        assert kept(connection) == [read]
        assert free not in kept(connection)
    assert prune(connection) == (0, 1, 0)
    assert kept(connection) == []


def test_writers_and_readers_of_today_go_on_while_it_works(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    finished(connection, today(connection) - timedelta(days=3))
    with psycopg.connect(pgqueue_database) as pruner, psycopg.connect(pgqueue_database) as reader:
        reader.execute(f"select * from {name(today(connection))}")
        assert prune(pruner, ahead=9) == (2, 1, 0)  # and its transaction stays open
        connection.execute("set lock_timeout = '1ms'")  # any wait for a lock is an error
        completed = job_in(app, connection, "completed")
        assert connection.execute(f"select id from {name(today(connection))}").fetchall() == [(completed,)]


def test_two_prunes_at_once_share_the_work_and_neither_fails(connection: Look, pgqueue_database: str) -> None:
    start = today(connection)
    for n in range(2, 6):
        finished(connection, start - timedelta(days=n))

    def work(_: int) -> tuple[int, int, int]:
        with psycopg.connect(pgqueue_database, autocommit=True) as mine:
            return prune(mine, ahead=12)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(4)))
    prune(connection, ahead=12)  # what they left to each other
    assert partitions(connection)[-13:] == [name(start + timedelta(days=n)) for n in range(13)]
    assert kept(connection) == []


def test_a_prune_that_meets_another_does_not_wait_for_it(connection: Look, pgqueue_database: str) -> None:
    connection.execute("set statement_timeout = '20s'")
    with psycopg.connect(pgqueue_database) as other:
        assert prune(other, ahead=9) == (2, 0, 0)
        assert prune(connection, ahead=9) == (0, 0, 0)
        other.rollback()
    assert prune(connection, ahead=9) == (2, 0, 0)
