"""What happens to a job without an attempt of its own is told as well: it expired, was cancelled or redriven."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest

from pgqueue.errors import UniqueKeyTaken
from tests.helpers import eventually, job_in


def test_a_job_that_was_not_started_in_time_is_told_as_expired(app, connection, drain) -> None:
    told = []

    @app.task(name="test.late")
    def late() -> None: ...

    @app.on("expired")
    def hear(event) -> None:
        told.append((event.name, event.job.id, event.job.task, event.job.queue, event.job.state))

    job = late.options(queue="slow", delay=3600).delay()
    connection.execute("update pgqueue.jobs set expires_at = run_at - interval '2 hours'")
    keeper = late.options(delay=1).delay()  # a claim would take it at once; its retry keeps the worker at work
    connection.execute(
        "update pgqueue.jobs set fence = 1, run_at = now() + interval '0.5 s' where id = %s", [keeper.id]
    )
    drain(sweep_interval=0.05)
    eventually(lambda: told)
    assert told == [("expired", job.id, "test.late", "slow", "expired")]


@pytest.fixture(params=["sync", "async"])
def heard(request, app, connection):
    """What handlers of either kind hear, each with whether it was committed by then."""
    told = []

    def note(event) -> None:
        table = "finished_jobs" if event.name == "cancelled" else "jobs"
        there = connection.execute(f"select state from pgqueue.{table} where id = %s", [event.job.id]).fetchone()
        told.append(
            (event.name, event.job.id, event.job.task, event.job.state, event.error, there == (event.job.state,))
        )

    async def note_async(event) -> None:
        await asyncio.sleep(0)
        note(event)

    for name in ("cancelled", "redriven"):
        app.on(name)(note if request.param == "sync" else note_async)
    return told


def test_who_cancels_hears_of_what_ended_at_once_and_not_of_what_runs_or_had_ended(app, connection, heard) -> None:
    queued, blocked = job_in(app, connection, "queued"), job_in(app, connection, "blocked")
    running, ended = job_in(app, connection, "running"), job_in(app, connection, "completed")
    app.jobs.cancel(queued, "enough")
    assert heard == [("cancelled", queued, "test.task", "cancelled", "enough", True)]
    app.jobs.cancel(queued)
    app.jobs.cancel(running)
    app.jobs.cancel(ended)
    app.jobs.cancel(everything=True, dry_run=True)
    assert len(heard) == 1
    app.jobs.cancel(everything=True, why="all of it")
    assert heard[1:] == [("cancelled", blocked, "test.task", "cancelled", "all of it", True)]


def test_who_redrives_hears_of_each_job_once(app, connection, heard) -> None:
    first, second = (job_in(app, connection, "dead") for _ in range(2))
    app.dead.redrive(first, dry_run=True)
    assert heard == []
    app.dead.redrive(first)
    app.dead.redrive(first)
    assert heard == [("redriven", first, "test.task", "queued", None, True)]
    connection.execute("update pgqueue.dead_jobs set unique_key = 'k'")
    connection.execute("update pgqueue.jobs set unique_key = 'k'")
    with pytest.raises(UniqueKeyTaken):
        app.dead.redrive(second)
    assert len(heard) == 1


def test_what_the_callers_own_transaction_may_still_undo_is_told_to_nobody(
    app, connection, pgqueue_database, heard, logged
) -> None:
    job = job_in(app, connection, "queued")
    with psycopg.connect(pgqueue_database) as on:
        assert app.jobs.cancel(job, connection=on)
        on.rollback()
        assert app.jobs.cancel(job, connection=on)
    assert connection.execute("select state from pgqueue.finished_jobs").fetchone() == ("cancelled",)
    assert heard == []
    assert len(logged("jobs_cancelled")) == 2


def test_on_a_running_event_loop_handlers_run_beside_the_caller(app, connection, heard) -> None:
    job = job_in(app, connection, "queued")

    async def operate() -> None:
        app.jobs.cancel(job, "enough")
        assert heard == []  # the loop has had no turn
        await app.events.finish(10)

    asyncio.run(operate())
    assert heard == [("cancelled", job, "test.task", "cancelled", "enough", True)]


def test_a_handler_that_fails_harms_neither_the_caller_nor_the_next_one(app, connection, logged) -> None:
    told = []

    @app.on("cancelled")
    def broken(event) -> None:
        raise SystemExit("no")

    app.on("cancelled")(
        lambda event: told.append((event.job.id, threading.current_thread() is threading.main_thread()))
    )
    job = job_in(app, connection, "queued")
    assert app.jobs.cancel(job) is True
    assert [one for one, _ in told] == [job]
    assert [record.job_id for record in logged("handler_failed")] == [job]
