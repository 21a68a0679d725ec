"""SIGTERM and Ctrl-C: claim no more, let running jobs finish within the grace period, give the rest back unharmed."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psycopg
import pytest

from tests.crash import tasks
from tests.crash.processes import ended, is_alive, row
from tests.helpers import eventually

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopping_worker_lets_its_jobs_finish_and_claims_no_more(start, ledger, connection, number):
    running = [task.enqueue(connection, "gate").id for task in (tasks.hold_thread, tasks.hold_slot)]
    worker = start()
    for job in running:
        ledger.wait_for("started", job)

    worker.signal(number)
    for child in worker.children():
        os.kill(child, number)  # as a service manager does, which signals every process of a group
    eventually(lambda: _stopping(connection) == [True])
    late = tasks.quick.enqueue(connection).id
    ledger.open("gate")

    assert worker.wait() == 0
    for job in running:
        assert ended(connection, job)[:4] == ("completed", 1, 1, 0)
    # A claim may have been under way when the process heard of it: what that brought was given back, and not started.
    assert row(connection, late)[:2] == ("queued", 0)
    assert not ledger.entries("started", late)
    assert _nothing_is_left_of_the_worker(connection)


def test_a_job_that_outlasts_the_grace_period_goes_back_without_having_used_an_attempt(start, ledger, connection):
    job = tasks.hold_slot.enqueue(connection, "never").id
    worker = start(grace=0.2)
    child = ledger.wait_for("started", job).pid

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert ledger.entries("interrupted", job)
    assert not ledger.entries("finished", job)
    assert _can_start_now(connection, job)
    assert [line["job_id"] for line in worker.log("job_released")] == [job]
    assert _nothing_is_left_of_the_worker(connection)
    assert not is_alive(child)


def test_a_thread_that_does_not_end_keeps_no_worker_and_its_job_goes_back(start, ledger, connection):
    stuck = tasks.hold_thread.enqueue(connection, "never").id
    worker = start(grace=0.2)
    child = ledger.wait_for("started", stuck).pid

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 1
    assert _can_start_now(connection, stuck)
    assert [line["job_id"] for line in worker.log("job_stuck")] == [stuck]
    assert _nothing_is_left_of_the_worker(connection)
    assert not is_alive(child)


def test_jobs_that_swallow_their_cancellation_keep_no_worker_and_are_named(start, ledger, connection):
    stuck = [task.enqueue(connection, "never").id for task in (tasks.swallow, tasks.swallow)]
    heeding = tasks.hold_slot.enqueue(connection, "never").id
    worker = start(grace=0.2)
    (child,) = {ledger.wait_for("started", job).pid for job in (*stuck, heeding)}

    began = time.monotonic()
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 1
    assert time.monotonic() - began < 0.2 + 10
    assert all(ledger.entries("swallowed", job) for job in stuck)
    assert sorted(line["job_id"] for line in worker.log("job_stuck")) == stuck
    assert all(_can_start_now(connection, job) for job in (*stuck, heeding))
    assert _nothing_is_left_of_the_worker(connection)
    assert not is_alive(child)
    assert "killed" not in worker.text()  # it went by itself


@pytest.mark.parametrize("task", [tasks.spin, tasks.spin_loop, tasks.swallow_exit, tasks.ignore_signals])
def test_whatever_a_job_does_to_stay_its_worker_ends_and_the_job_goes_back(start, ledger, connection, task):
    stuck = task.enqueue(connection).id
    worker = start(grace=0.2)
    child = ledger.wait_for("started", stuck).pid

    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    os.kill(child, signal.SIGTERM)  # as a service manager does

    assert worker.wait() == 1
    assert time.monotonic() - began < 0.2 + 10
    assert not is_alive(child)
    assert _can_start_now(connection, stuck)
    named = worker.log("job_stuck") + worker.log("job_rescued")
    assert {line["job_id"] for line in named} == {stuck}
    assert _nothing_is_left_of_the_worker(connection)


def test_an_attempt_that_swallows_its_timeout_is_named_and_fails_when_it_ends(start, ledger, connection):
    job = tasks.swallow.options(timeout=0.2, max_attempts=1).enqueue(connection, "gate").id
    worker = start()
    (line,) = eventually(lambda: worker.log("job_stuck"))
    assert line["job_id"] == job
    assert "swallowed its cancellation" in line["message"]
    assert row(connection, job).state == "running"
    ledger.open("gate")
    assert ended(connection, job).reason == "timeout"


def test_a_process_that_hears_nothing_any_more_is_killed_and_its_jobs_go_back(start, ledger, connection):
    """Stopped, or with an event loop that a job blocks: the grace period is the same for all."""
    jobs = [task.enqueue(connection, "never").id for task in (tasks.hold_thread, tasks.block_loop)]
    worker = start(grace=0.2, processes=2, concurrency=1)
    frozen, blocked = (ledger.wait_for("started", job).pid for job in jobs)
    os.kill(frozen, signal.SIGSTOP)
    eventually(lambda: worker.log("child_stopped"))

    began = time.monotonic()
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 1
    assert time.monotonic() - began < 0.2 + 10
    assert all(_can_start_now(connection, job) for job in jobs)
    assert {line["job_id"] for line in worker.log("job_rescued")} == set(jobs)
    for pid in (frozen, blocked):
        assert f"worker process {pid} did not stop in time: killed" in worker.text()
        assert not is_alive(pid)
    assert _nothing_is_left_of_the_worker(connection)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_worker_at_once(start, ledger, connection, number):
    jobs = [task.enqueue(connection, "never").id for task in (tasks.hold_thread, tasks.hold_slot, tasks.block_loop)]
    worker = start()  # with a grace period longer than the test
    children = {ledger.wait_for("started", job).pid for job in jobs}

    worker.signal(number)
    eventually(lambda: "claiming no more" in worker.text())
    worker.signal(number)

    assert worker.wait() == 1
    assert all(_can_start_now(connection, job) for job in jobs)
    assert _nothing_is_left_of_the_worker(connection)
    assert not any(is_alive(child) for child in children)


def test_a_worker_that_is_stopped_before_it_works_just_ends(start, connection):
    worker = start(processes=2)
    eventually(worker.children)

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert _nothing_is_left_of_the_worker(connection)


def _stopping(connection: psycopg.Connection[Any]) -> list[bool]:
    return [stopping for (stopping,) in connection.execute("select stopping from pgqueue.workers").fetchall()]


def _can_start_now(connection: psycopg.Connection[Any], job: int) -> bool:
    due = connection.execute("select run_at <= now() from pgqueue.jobs where id = %s", [job]).fetchone()
    return due == (True,) and row(connection, job)[:5] == ("queued", 0, 1, 0, None)


def _nothing_is_left_of_the_worker(connection: psycopg.Connection[Any]) -> bool:
    left = "select (select count(*) from pgqueue.workers) + (select count(*) from pgqueue.sleepers)"
    return connection.execute(left).fetchone() == (0,)
