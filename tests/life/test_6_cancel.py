"""Step 6, cancel and expire: jobs that end without having run, for what they were asked or because it is too late."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, db
from pgqueue.enqueue import NewJob, Options
from tests.helpers import eventually, job_in, run, worker_row
from tests.life.workbench import ended, everything

Look = psycopg.Connection[Any]
NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)


def enqueue(app: PgQueue, **options: Any) -> int:
    return app.enqueue_alone(NewJob("test.task", "{}", Options(**options))).id


def expire(app: PgQueue, connection: Look, limit: int = 100, now: datetime = NOW) -> set[int]:
    return {row[0] for row in run(connection, db.expire(app.statements, limit, now))}


@pytest.mark.parametrize("state", ["queued", "blocked"])
def test_a_job_that_nobody_runs_is_cancelled_at_once_and_says_why(state: str, app: PgQueue, connection: Look) -> None:
    job, other = job_in(app, connection, state), job_in(app, connection, "queued")
    assert run(connection, db.cancel(app.statements, [job, 999_999], "no longer wanted", NOW)) == [
        (job, "test.task", "default", 0, 0, "no longer wanted")
    ]
    row = ended(connection, job)
    assert (row.state, row.error, row.finished_at, row.attempt) == ("cancelled", "no longer wanted", NOW, 0)
    assert ended(connection, other).state == "queued"
    assert run(connection, db.cancel(app.statements, [job], "again")) == []


@pytest.mark.parametrize("state", ["completed", "cancelled", "expired", "dead"])
def test_a_job_that_has_ended_stays_as_it_is(state: str, app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, state)
    before = everything(connection)
    assert run(connection, db.cancel(app.statements, [job], "too late")) == []
    assert app.jobs.cancel(job) is False
    assert everything(connection) == before


def test_a_cancelled_job_never_starts(app: PgQueue, connection: Look, drain: Callable[..., None]) -> None:
    started: list[int] = []

    @app.task(name="test.task")
    def task(n: int) -> None:
        started.append(n)

    jobs = [task.enqueue(connection, n).id for n in range(3)]
    assert app.jobs.cancel(jobs[1]) is True
    assert app.jobs.cancel(jobs[1]) is False
    drain()
    assert sorted(started) == [0, 2]
    assert ended(connection, jobs[1]).error == "cancelled by an operator"


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_a_job_that_had_failed_before_keeps_its_errors(end: str, app: PgQueue, connection: Look) -> None:
    job = enqueue(app, unique_key="k", expires_in=1)
    worker = worker_row(app, connection, tasks=["test.task"])
    run(connection, db.claim(app.statements, worker, ["test.task"], None, 1))
    run(connection, db.retry(app.statements, worker, [job], [1], [0.0], ["refused"], ["trace"]))
    if end == "cancelled":
        run(connection, db.cancel(app.statements, [job], "enough"))
    else:
        expire(app, connection)
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence, row.unique_key) == (end, 1, 1, "k")
    assert [(one["error"], one["traceback"]) for one in row.errors] == [("refused", "trace")]
    assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)


def test_a_cancel_that_meets_a_claim_waits_for_it_and_asks_the_job_to_end(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    job = enqueue(app)
    worker = worker_row(app, connection, tasks=["test.task"])
    with (
        psycopg.connect(pgqueue_database) as claimer,
        psycopg.connect(pgqueue_database, autocommit=True) as operator,
        ThreadPoolExecutor(1) as thread,
    ):
        run(claimer, db.claim(app.statements, worker, ["test.task"], None, 1))
        waiting = thread.submit(run, operator, db.cancel(app.statements, [job], "no"))
        try:
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
            eventually(lambda: connection.execute(waits, [operator.info.backend_pid]).fetchone() == (True,))
        finally:
            claimer.commit()
        assert [(one.id, one.why) for one in waiting.result(timeout=20)] == [(job, None)]
    row = ended(connection, job)
    assert (row.state, row.worker_id) == ("running", worker)
    assert run(connection, db.orders(app.statements, worker)) == [("cancel", "no", job, 1, None)]


def test_a_cancel_that_meets_a_retry_waits_for_it_and_ends_the_job(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    job = enqueue(app)
    worker = worker_row(app, connection, tasks=["test.task"])
    run(connection, db.claim(app.statements, worker, ["test.task"], None, 1))
    with (
        psycopg.connect(pgqueue_database) as settling,
        psycopg.connect(pgqueue_database, autocommit=True) as operator,
        ThreadPoolExecutor(1) as thread,
    ):
        run(settling, db.retry(app.statements, worker, [job], [1], [0.0], ["refused"], [None]))
        waiting = thread.submit(run, operator, db.cancel(app.statements, [job], "no"))
        try:
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
            eventually(lambda: connection.execute(waits, [operator.info.backend_pid]).fetchone() == (True,))
        finally:
            settling.commit()
        assert [(one.id, one.why) for one in waiting.result(timeout=20)] == [(job, "no")]
    row = ended(connection, job)
    assert (row.state, row.error, [one["error"] for one in row.errors]) == ("cancelled", "no", ["refused"])


def test_a_claim_that_meets_a_cancel_passes_the_job_by(app: PgQueue, connection: Look, pgqueue_database: str) -> None:
    job, other = enqueue(app), enqueue(app)
    worker = worker_row(app, connection, tasks=["test.task"])
    with psycopg.connect(pgqueue_database) as operator:
        run(operator, db.cancel(app.statements, [job], "no"))
        assert [one.id for one in run(connection, db.claim(app.statements, worker, ["test.task"], None, 9))] == [other]
    assert ended(connection, job).state == "cancelled"


def test_a_job_that_was_not_started_in_time_expires_then_and_not_before(app: PgQueue, connection: Look) -> None:
    job, lasting = enqueue(app, run_at=NOW, expires_in=10), enqueue(app)
    assert expire(app, connection, now=NOW + timedelta(seconds=9.999)) == set()
    assert expire(app, connection, now=NOW + timedelta(seconds=10)) == {job}
    row = ended(connection, job)
    assert (row.state, row.error, row.attempt) == ("expired", "not started before it expired", 0)
    assert row.finished_at == row.expires_at == NOW + timedelta(seconds=10)
    assert ended(connection, lasting).state == "queued"
    assert expire(app, connection, now=NOW + timedelta(days=9)) == set()


def test_only_queued_jobs_expire_in_a_paused_queue_too_and_batch_by_batch(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    running, blocked = job_in(app, connection, "running"), job_in(app, connection, "blocked")
    connection.execute("update pgqueue.jobs set expires_at = %s", [NOW])
    late = [enqueue(app, queue="paused", expires_in=1) for _ in range(5)]
    connection.execute("insert into pgqueue.queues (name, paused) values ('paused', true)")
    connection.execute("set lock_timeout = '1ms'")
    with psycopg.connect(pgqueue_database) as somebody:
        somebody.execute("select from pgqueue.jobs where id = %s for update", [late[1]])
        assert expire(app, connection, 2) == {late[0], late[2]}
        assert expire(app, connection, 9) == {late[3], late[4]}
    assert expire(app, connection) == {late[1]}
    assert [ended(connection, job).state for job in (running, blocked)] == ["running", "blocked"]


def test_a_worker_expires_what_is_late_and_never_starts_it(
    app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    started: list[int] = []

    @app.task(name="test.task")
    def task(n: int) -> None:
        started.append(n)

    late = task.options(expires_in=0.001).enqueue(connection, 1)
    in_time = task.options(expires_in=3600).enqueue(connection, 2)
    eventually(
        lambda: connection.execute("select now() > expires_at from pgqueue.jobs order by id").fetchone() == (True,)
    )
    drain()
    assert started == [2]
    assert [ended(connection, job).state for job in (late, in_time)] == ["expired", "completed"]
