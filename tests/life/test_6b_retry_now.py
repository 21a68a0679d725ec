"""Step 6b, retry now: a job that waits for its time or its retry is due at once, and nothing else about it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, State, db
from pgqueue.enqueue import NewJob, Options
from tests.helpers import job_in, run, worker_row
from tests.life.workbench import Ears, ended, everything

Look = psycopg.Connection[Any]
NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=1)


def enqueue(app: PgQueue, **options: Any) -> int:
    return app.enqueue_alone(NewJob("test.task", "{}", Options(**options))).id


@pytest.fixture
def ears(app: PgQueue, connection: Look, pgqueue_database: str) -> Iterator[Ears]:
    made = Ears(app, connection, pgqueue_database)
    yield made
    made.close()


def test_a_scheduled_job_is_due_now_and_only_its_time_has_changed(app: PgQueue, connection: Look) -> None:
    job, other = enqueue(app, delay=3600, expires_in=60), enqueue(app, delay=3600)
    before = ended(connection, job)._asdict()
    assert run(connection, db.retry_now(app.statements, [job, 999_999], NOW)) == {job}
    assert ended(connection, job)._asdict() == before | {"run_at": NOW}
    assert ended(connection, other).run_at > NOW
    assert run(connection, db.retry_now(app.statements, [job], NOW)) == set()


def test_a_job_that_waits_for_its_retry_runs_at_once_with_its_attempts_as_they_were(
    app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    @app.task(name="test.task")
    def task() -> int:
        return 7

    job = task.enqueue(connection).id
    worker = worker_row(app, connection, tasks=["test.task"])
    run(connection, db.claim(app.statements, worker, ["test.task"], None, 1))
    run(connection, db.retry(app.statements, worker, [job], [1], [3600.0], ["refused"], [None]))
    assert app.jobs.retry_now(job) is True
    assert app.jobs.retry_now(job) is False  # nothing to do
    drain()
    row = ended(connection, job)
    assert (row.state, row.attempt, row.result, len(row.errors)) == ("completed", 2, 7, 1)


@pytest.mark.parametrize("state", [state for state in State if state is not State.QUEUED])
def test_only_a_queued_job_is_made_due(state: str, app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, state)
    for table in ("jobs", "finished_jobs", "dead_jobs"):
        connection.execute(f"update pgqueue.{table} set run_at = now() + interval '1 hour'")
    before = everything(connection)
    assert app.jobs.retry_now(job) is False
    assert everything(connection) == before


def test_a_job_that_is_due_keeps_its_place(app: PgQueue, connection: Look) -> None:
    first, second = enqueue(app), enqueue(app)
    before = everything(connection)
    assert app.jobs.retry_now(first) is False
    assert everything(connection) == before
    worker = worker_row(app, connection, tasks=["test.task"])
    claimed = run(connection, db.claim(app.statements, worker, ["test.task"], None, 9))
    assert [one.id for one in claimed] == [first, second]


def test_a_job_that_can_no_longer_start_in_time_is_left_to_expire(app: PgQueue, connection: Look) -> None:
    job = enqueue(app, delay=3600)
    connection.execute("update pgqueue.jobs set expires_at = %s where id = %s", [NOW, job])
    assert run(connection, db.retry_now(app.statements, [job], NOW)) == set()
    assert run(connection, db.retry_now(app.statements, [job], NOW - timedelta(seconds=1))) == {job}


def test_one_sleeper_of_the_queue_is_woken_and_only_for_a_job_that_became_due(
    app: PgQueue, connection: Look, ears: Ears
) -> None:
    later, due = enqueue(app, queue="email", delay=3600), enqueue(app, queue="email")
    ears.asleep("ann", "email")
    ears.asleep("bob", "other")
    assert app.jobs.retry_now(due) is False
    assert ears.heard() == []
    assert app.jobs.retry_now(later) is True
    assert ears.heard() == ["ann"]
