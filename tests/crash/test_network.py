"""The network between a worker and its database: what it loses, holds up or forgets costs time, and no job anything."""

from __future__ import annotations

import os
import re
import signal
import time

import psycopg
import pytest

from tests.crash import tasks
from tests.crash.processes import ended, health, is_alive, row
from tests.helpers import eventually

LEASE = 6.0  # the heart gives an answer 1 s, claim and settle give it 2 s


@pytest.fixture
def all_well(connection, ledger):
    """Every job ended in its first attempt, and nobody saw a failure that was not its own."""

    def check(worker, jobs: list[int], starts: int = 1) -> None:
        for job in jobs:
            assert ended(connection, job)[:2] == ("completed", 1)
            assert len(ledger.entries("started", job)) == starts
        assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert "Traceback" not in worker.text()

    return check


def test_connections_that_died_silently_are_noticed_before_the_lease_ends(start, proxy, connection, all_well):
    worker = start(url=proxy.url, lease=LEASE)
    first = tasks.quick.enqueue(connection).id
    ended(connection, first)
    children = worker.children()
    eventually(lambda: listens(connection))

    assert proxy.forget() == 5
    jobs = tasks.quick.enqueue_many(connection, [()] * 5)
    all_ended = [ended(connection, job).state for job in jobs]
    assert all_ended == ["completed"] * 5
    eventually(lambda: {line["connection"] for line in worker.log("database_back")} >= {"heartbeat", "claim"})
    assert worker.children() == children
    assert not worker.log("lease_lost")
    all_well(worker, [first, *jobs])


def listens(connection) -> bool:
    return connection.execute(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name = 'pgqueue listener' and query ilike '%cancelling is not null%' and state = 'idle'"
    ).fetchone() == (1,)


def test_health_says_what_is_wrong_while_nothing_moves_and_all_goes_on_after_it(start, proxy, connection, all_well):
    worker = start(url=proxy.url, lease=LEASE, metrics_port=0)
    eventually(lambda: worker.log("probe") and health(worker) == (200, "ready\n"))
    proxy.stall()
    jobs = tasks.quick.enqueue_many(connection, [()] * 5)
    away = "not ready: the database is away: "  # what a child's connections see may be told before the heart's
    _, text = eventually(lambda: (now := health(worker))[0] == 503 and now[1].startswith(away) and now)
    assert "no answer within 1 s" in text
    proxy.go_on()
    eventually(lambda: health(worker) == (200, "ready\n"), timeout=30)
    all_well(worker, jobs)


def test_a_worker_can_be_stopped_while_nothing_moves_and_another_runs_what_it_ran(start, proxy, connection, ledger):
    worker = start(url=proxy.url, lease=1.5 * LEASE, grace=0.5)
    running = tasks.hold_slot.enqueue(connection, "gate").id
    ledger.wait_for("started", running)
    proxy.stall()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert [line["message"] for line in worker.log("unsettled")] == [
        f"the database is away: 1 jobs end unsettled and will be rescued: {running}"
    ]
    ledger.open("gate")
    proxy.go_on()
    start(url=proxy.url)
    assert ended(connection, running)[:2] == ("completed", 1)


def test_a_worker_ends_in_time_when_a_process_is_frozen_and_the_database_stalls_as_well(
    start, proxy, connection, ledger
):
    """The worst sum: one hears nothing, the other cannot write, and nobody can bury either."""
    worker = start(url=proxy.url, lease=1.5 * LEASE, grace=0.5, processes=2, concurrency=1)
    jobs = [tasks.hold_thread.enqueue(connection, "gate").id for _ in range(2)]
    frozen, stuck = (ledger.wait_for("started", job).pid for job in jobs)
    os.kill(frozen, signal.SIGSTOP)
    eventually(lambda: worker.log("child_stopped"))
    proxy.stall()

    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert time.monotonic() - began < 0.5 + 10

    assert not is_alive(frozen)
    assert not is_alive(stuck)
    assert re.search(rf"worker process {frozen}\b[^\n]* killed", worker.text())  # in its time, or for its lease
    assert [line["job_id"] for line in worker.log("job_stuck")] == jobs[1:]
    assert "the database is away: jobs that were running will be rescued when their lease ends" in worker.text()
    ledger.open("gate")
    proxy.go_on()
    start(url=proxy.url)
    for job in jobs:
        assert ended(connection, job)[:2] == ("completed", 1)


def test_a_network_that_passes_a_byte_at_a_time_is_enough(start, proxy, connection, all_well):
    proxy.slow()
    worker = start(url=proxy.url)
    jobs = tasks.quick.enqueue_many(connection, [()] * 10)
    all_well(worker, jobs)


def told(worker, connection: str, why: str) -> bool:
    """Whether the log says of this connection that the database is away, and why."""
    return any(line["connection"] == connection and why in line["message"] for line in worker.log("database_away"))


def test_refused_connections_cost_running_jobs_nothing(start, proxy, connection, ledger, all_well):
    running = tasks.hold_thread.enqueue(connection, "gate").id
    worker = start(url=proxy.url)
    ledger.wait_for("started", running)
    proxy.refuse()
    jobs = tasks.quick.enqueue_many(connection, [()] * 10)
    ledger.open("gate")
    ledger.wait_for("finished", running)  # and cannot tell anybody
    for name in ("claim", "settle"):
        eventually(lambda name=name: told(worker, name, "refused"))
    assert row(connection, running).state == "running"
    proxy.accept()
    all_well(worker, [running, *jobs])
    assert {line["connection"] for line in worker.log("database_back")} >= {"claim", "settle"}


def test_a_claim_whose_answer_was_lost_is_given_back_and_run_once(start, proxy, connection, all_well):
    proxy.lose_answer("pgqueue claim", answer=b"tests.crash.tasks.quick")
    worker = start(url=proxy.url)
    jobs = tasks.quick.enqueue_many(connection, [()] * 3)
    eventually(lambda: proxy.lost == 1)
    assert [ended(connection, job)[:4] for job in jobs] == [("completed", 1, 2, 0)] * 3
    assert worker.log("ghost")
    all_well(worker, jobs)


def test_a_settle_whose_answer_was_lost_counts_once(start, proxy, connection, all_well):
    proxy.lose_answer("pgqueue settle", request=b"finished_jobs")
    worker = start(url=proxy.url)
    jobs = tasks.quick.enqueue_many(connection, [()] * 3)
    all_well(worker, jobs)
    assert proxy.lost == 1
    assert not worker.log("claim_lost")
    assert len(worker.log("job_completed")) == 3


def test_a_beat_whose_answer_was_lost_is_repeated(start, proxy, connection, all_well):
    worker = start(url=proxy.url, lease=LEASE)
    ended(connection, tasks.quick.enqueue(connection).id)
    proxy.lose_answer("pgqueue heartbeat", request=b"heartbeat_at")
    eventually(lambda: proxy.lost == 1)
    all_well(worker, tasks.quick.enqueue_many(connection, [()] * 3))


def test_an_enqueue_whose_commit_was_not_heard_of_is_repeated_with_its_key_and_is_one_job(proxy, connection):
    quick = tasks.quick.options(unique_key="order:7")
    url = f"{proxy.url}?application_name=shop"
    proxy.lose_answer("shop", request=b"COMMIT")
    with pytest.raises(psycopg.OperationalError), psycopg.connect(url) as application:
        first = quick.enqueue(application)
    assert proxy.lost == 1
    with psycopg.connect(url) as application:
        second = quick.enqueue(application)
    assert (second.id, second.existing) == (first.id, True)
    assert connection.execute("select count(*) from pgqueue.jobs where unique_key = 'order:7'").fetchone() == (1,)
