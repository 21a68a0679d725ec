"""What a worker does not do: run on when it cannot settle, charge for its own stop, believe a broken word."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from pgqueue import Context, DeadLetter, RetryLater
from tests.helpers import eventually, job_in


@pytest.fixture
def working(app):
    """Runs a worker of the app in a thread until the test ends."""
    stops = []

    def start(**settings):
        worker = app.worker(poll_interval=0.05, grace=settings.pop("grace", 5.0), **settings)
        thread = threading.Thread(target=lambda: asyncio.run(worker.run_async()))
        thread.start()
        stops.append((worker, thread))
        return worker

    yield start
    for worker, thread in stops:
        worker.stop()
        thread.join()


def test_a_worker_that_cannot_settle_claims_no_more_than_it_may_hold(
    app, connection, pgqueue_database, working
) -> None:
    @app.task(name="test.quick")
    async def quick(number: int) -> None: ...

    quick.enqueue_many(connection, [(number,) for number in range(500)])
    running = "select count(*) from pgqueue.jobs where state = 'running'"
    with psycopg.connect(pgqueue_database) as somebody:
        somebody.execute("lock table pgqueue.finished_jobs in share mode")
        working(concurrency=2)
        eventually(lambda: connection.execute(running).fetchone()[0] >= 20)
        seen = eventually(lambda: len({connection.execute(running).fetchone()[0] for _ in range(50)}) == 1)
        assert seen
        assert connection.execute(running).fetchone()[0] <= 22
    eventually(lambda: connection.execute("select count(*) from pgqueue.jobs").fetchone()[0] == 0, timeout=30)


def test_what_a_job_raises_when_it_is_told_to_end_uses_no_attempt(app, connection) -> None:
    began = threading.Event()

    @app.task(name="test.patient", max_attempts=1)
    def patient(ctx: Context) -> None:
        began.set()
        while not ctx.cancelled:
            time.sleep(0.01)
        raise InterruptedError("told to end")

    job = patient.options(max_attempts=1).delay()
    worker = app.worker(poll_interval=0.05, grace=0.05)
    thread = threading.Thread(target=lambda: asyncio.run(worker.run_async()))
    thread.start()
    assert began.wait(10)
    worker.stop()
    thread.join()
    row = connection.execute("select state, attempt, fence from pgqueue.jobs where id = %s", [job.id]).fetchone()
    assert row == ("queued", 0, 1)


def test_a_steer_whose_word_cannot_be_read_is_a_failure_and_uses_an_attempt(app, connection, drain) -> None:
    class Broken(RetryLater):
        def __str__(self) -> str:
            raise ValueError("no word")

    @app.task(name="test.broken", max_attempts=1)
    def broken() -> None:
        raise Broken(1)

    job = broken.options(max_attempts=1).delay()
    drain()
    assert app.jobs.get(job.id).state == "dead"


def test_an_endless_word_is_cut_and_holds_up_no_settle(app, connection, drain) -> None:
    @app.task(name="test.wordy")
    def wordy() -> None:
        raise DeadLetter("x" * 1_000_000)

    job = wordy.delay()
    drain()
    assert len(app.jobs.get(job.id).error) == 10_000


def test_a_sync_task_that_returns_something_to_be_awaited_has_failed(app, connection, drain) -> None:
    async def body() -> int:
        return 1

    @app.task(name="test.hidden")
    def hidden():
        return body()

    job = hidden.options(max_attempts=1).delay()
    drain()
    assert "async def" in app.jobs.get(job.id).error


def test_a_database_that_is_read_only_for_a_while_is_waited_for(app, connection, pgqueue_database, working) -> None:
    @app.task(name="test.later")
    def later() -> None: ...

    name = connection.info.dbname
    working()
    eventually(lambda: connection.execute("select 1 from pgqueue.workers").fetchone())
    connection.execute(f'alter database "{name}" set default_transaction_read_only = on')
    connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgqueue %'")
    back = "select count(*) from pg_stat_activity where application_name in ('pgqueue claim', 'pgqueue chores')"
    eventually(lambda: connection.execute(back).fetchone()[0] == 0)
    eventually(lambda: connection.execute(back).fetchone()[0] > 0)  # it came, and was refused
    connection.execute(f'alter database "{name}" reset default_transaction_read_only')
    connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgqueue %'")
    job = later.enqueue(connection)
    eventually(lambda: app.jobs.get(job.id).state == "completed", timeout=30)


def test_the_job_that_holds_a_unique_key_is_returned_as_it_is(app, connection) -> None:
    @app.task(name="test.one")
    def one() -> None: ...

    @app.task(name="test.two")
    def two() -> None: ...

    holder = one.options(unique_key="k", queue="a", priority=5, max_attempts=7).enqueue(connection)
    found = two.options(unique_key="k", queue="b").enqueue(connection)
    assert found.existing
    assert (found.id, found.task, found.queue, found.priority, found.max_attempts) == (holder.id, "test.one", "a", 5, 7)


def test_a_purge_of_what_died_just_now_spares_what_died_before(app, connection, pgqueue_database) -> None:
    job = job_in(app, connection, "dead")
    connection.execute("update pgqueue.dead_jobs set died_at = died_at - interval '1 hour'")
    assert app.dead.purge(task="test.task", younger_than=0) == []
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue", "dead", "purge", "--task", "test.task", "--younger-than", "0"],
        env={**os.environ, "PGQUEUE_DATABASE_URL": pgqueue_database},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert app.jobs.get(job).state == "dead"
