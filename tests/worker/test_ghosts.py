"""Ghosts: jobs that the table says a worker holds and the worker does not know of, since the answer to its claim was
lost. It compares, and gives them back."""

from __future__ import annotations

import threading

import pytest

from pgqueue import Context, RetryPolicy
from tests.crash.processes import ended, row
from tests.helpers import eventually


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr("pgqueue.worker.loop._GHOSTS_EVERY", 0.05)


def test_a_claim_nobody_knows_of_is_given_back_and_what_runs_is_left_alone(app, work, connection, logged):
    gate = threading.Event()
    runs: list[int] = []

    @app.task
    def wait(number: int) -> None:
        runs.append(number)
        gate.wait(30)

    honest = wait.enqueue(connection, 1).id
    work(concurrency=5)
    eventually(lambda: runs == [1])
    ghost = connection.execute(
        "insert into pgqueue.jobs (task, args, state, worker_id, fence, attempt, started_at)"
        " select %s, '{\"number\": 2}', 'running', id, 1, 1, now() from pgqueue.workers returning id",
        [wait.name],
    ).fetchone()[0]

    eventually(lambda: runs == [1, 2])
    assert [record.job_id for record in logged("ghost")] == [ghost]
    assert row(connection, ghost)[:4] == ("running", 1, 2, 0)  # no attempt was used up
    assert row(connection, honest)[:4] == ("running", 1, 1, 0)
    gate.set()
    assert ended(connection, ghost).state == ended(connection, honest).state == "completed"
    assert runs == [1, 2]


def test_a_worker_that_is_full_looks_for_them_too(app, work, connection, logged):
    """What it runs may take hours, and the job that it does not know of would wait as long."""
    gate = threading.Event()

    @app.task
    def wait(number: int) -> None:
        gate.wait(30)

    jobs = [wait.enqueue(connection, number).id for number in range(2)]
    work(concurrency=2)
    eventually(lambda: all(row(connection, job).state == "running" for job in jobs))
    ghost = connection.execute(
        "insert into pgqueue.jobs (task, args, state, worker_id, fence, attempt, started_at)"
        " select %s, '{\"number\": 2}', 'running', id, 1, 1, now() from pgqueue.workers returning id",
        [wait.name],
    ).fetchone()[0]

    try:
        eventually(lambda: row(connection, ghost).state == "queued")
        assert [row(connection, job)[:3] for job in jobs] == [("running", 1, 1)] * 2
        assert [record.job_id for record in logged("ghost")] == [ghost]
    finally:
        gate.set()
    assert ended(connection, ghost)[:3] == ("completed", 1, 2)


def test_a_claim_whose_answer_is_lost_runs_once(app, work, connection, monkeypatch):
    """The connection breaks between the claim's commit and its answer."""
    import psycopg

    from pgqueue.worker.claim import Claimer

    runs: list[int] = []

    @app.task
    def note(number: int) -> None:
        runs.append(number)

    honest, lost = Claimer.claim, []

    async def claim(self, limit):
        claimed = await honest(self, limit)
        if claimed and not lost:
            lost.extend(one.claim.id for one in claimed)
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return claimed

    monkeypatch.setattr(Claimer, "claim", claim)
    jobs = note.enqueue_many(connection, [(number,) for number in range(10)])
    work(concurrency=5)
    for job in jobs:
        assert ended(connection, job)[:2] == ("completed", 1)
    assert sorted(runs) == list(range(10))
    assert len(lost) == 5


@pytest.mark.parametrize("lost", [1, 2])
def test_a_claim_that_the_database_has_forgotten_is_not_run_a_second_time_beside_the_first(
    app, work, connection, logged, lost
):
    """An asynchronous standby took over, without the last claims: it gives out fences once more."""
    gate = threading.Event()
    runs: list[int] = []

    @app.task(retry=RetryPolicy(delay=0))
    def note(ctx: Context) -> None:
        runs.append(ctx.job.fence)
        if len(runs) < 2:
            raise RuntimeError("not yet")
        gate.wait(30)

    job = note.enqueue(connection).id
    work(concurrency=3)
    eventually(lambda: runs == [1, 2])
    connection.execute(
        "update pgqueue.jobs set state = 'queued', worker_id = null, fence = 2 - %(lost)s, attempt = 2 - %(lost)s",
        {"lost": lost},
    )
    eventually(lambda: len(logged("claimed_twice")) == lost)
    eventually(lambda: row(connection, job)[0] == "running")
    assert row(connection, job)[2] == 2  # the claim of the run that goes on
    assert runs == [1, 2]
    gate.set()
    assert ended(connection, job)[:3] == ("completed", 3 - lost, 2)  # it has forgotten an attempt, too
    assert runs == [1, 2]
    assert not logged("claim_lost")
