"""A process that works is killed, or kills itself: its supervisor sees it at once, and no job is lost."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pgqueue.worker import supervisor
from pgqueue.worker.supervisor import free_memory
from tests.crash import tasks
from tests.crash.processes import DEFAULTS, ended, is_alive, row, waited, workers
from tests.helpers import eventually, in_time

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")


def test_the_jobs_of_a_killed_process_run_again_at_once_each_in_its_own_and_lose_no_attempt(start, ledger, connection):
    jobs = [
        tasks.hold_thread.enqueue(connection, "gate").id,
        tasks.hold_slot.enqueue(connection, "gate").id,
        tasks.block_loop.enqueue(connection, "gate").id,
    ]
    worker = start(concurrency=3)
    first = [ledger.wait_for("started", job) for job in jobs]
    (child,) = worker.children()
    assert {entry.pid for entry in first} == {child}
    dead_worker = workers(connection)[child]

    os.kill(child, signal.SIGKILL)

    again = [ledger.wait_for("started", job, times=2) for job in jobs]  # none of them can end before the gate opens
    homes = {entry.pid for entry in again}
    assert len(homes) == 3
    assert [(entry.fence, entry.attempt) for entry in again] == [(2, 1)] * 3
    assert [row(connection, job).crashes for job in jobs] == [1, 1, 1]
    assert dead_worker not in workers(connection).values()
    assert {line["job_id"] for line in worker.log("job_rescued")} == set(jobs)
    fresh = tasks.quick.enqueue(connection).id  # what nobody suspects goes on beside it
    assert ended(connection, fresh).state == "completed"
    assert ledger.wait_for("started", fresh).pid not in (child, *homes)

    ledger.open("gate")
    for job in jobs:
        end = ended(connection, job)
        assert (end.state, end.attempt, end.fence, end.crashes) == ("completed", 1, 2, 1)
        assert [error["error"] for error in end.errors] == ["the worker process was killed by SIGKILL"]
        assert len(ledger.entries("finished", job)) == 1
        told = ledger.wait_for("rescued", job)
        assert told.pid not in (child, worker.pid)  # a process that has the application, not the supervisor
        assert told.attempt == 0
    eventually(lambda: not any(is_alive(home) for home in homes))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_with_the_defaults_the_jobs_of_a_killed_process_start_again_within_two_seconds(start, ledger, connection):
    worker = start(**DEFAULTS)
    gates = iter("abc")

    def take() -> float:
        """Seconds from the death to the last of the starts, as the jobs tell it, but for the wait for a processor."""
        gate = next(gates)
        jobs = tasks.hold_thread.enqueue_many(connection, [(gate,)] * 4)
        (child,) = {ledger.wait_for("started", job).pid for job in jobs}
        os.kill(child, signal.SIGKILL)
        died = time.monotonic_ns()
        again = [ledger.wait_for("started", job, times=2) for job in jobs]
        took = max((entry.at - died) / 1e9 - waited(entry.pid) for entry in again)
        ledger.open(gate)
        assert [ended(connection, job)[:3] for job in jobs] == [("completed", 1, 2)] * 4
        return took

    in_time(take, 2.0)
    assert not worker.log("lease_lost")


def test_a_job_that_takes_its_process_along_three_times_is_dead_and_nobody_else_notices(start, ledger, connection):
    neighbour = tasks.hold_thread.enqueue(connection, "gate").id
    worker = start(processes=2, concurrency=1)
    home = ledger.wait_for("started", neighbour).pid
    poison = tasks.die.enqueue(connection, ["exit 0", "kill", "segfault"]).id

    end = ended(connection, poison)
    assert (end.state, end.reason, end.crashes, end.fence) == ("dead", "crashed", 3, 3)
    assert [error["error"] for error in end.errors] == [
        "the worker process exited with code 0",
        "the worker process was killed by SIGKILL",
        "the worker process was killed by SIGSEGV",
    ]
    runs = ledger.entries("started", poison)
    assert [entry.attempt for entry in runs] == [1, 1, 1]
    assert len({entry.pid for entry in runs}) == 3
    assert len(worker.log("child_died")) == 3

    after = tasks.quick.enqueue(connection).id  # for the next child: the other is busy
    assert ended(connection, after).state == "completed"
    assert ledger.wait_for("dead_lettered", poison).pid in worker.children()
    ledger.open("gate")
    assert ended(connection, neighbour)[:4] == ("completed", 1, 1, 0)
    assert [entry.pid for entry in ledger.entries("started", neighbour)] == [home]
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_job_that_exits_as_a_worker_does_is_a_crash_all_the_same(start, ledger, connection):
    """With the codes of a drained process, of a stuck one and of one that broke by itself."""
    poison = tasks.die.enqueue(connection, ["exit 0", "exit 1", "exit 70"]).id
    worker = start(drain=True)
    assert worker.wait() == 0
    assert row(connection, poison)[:4] == ("dead", 1, 3, 3)
    assert len(worker.log("child_died")) == 3


def test_what_a_neighbour_had_started_goes_down_with_a_process_that_a_job_ends_with_code_0(start, ledger, connection):
    neighbour = tasks.start_a_process.enqueue(connection, "gate").id
    start(concurrency=2)
    ledger.wait_for("started", neighbour)
    left = int((ledger.path.parent / "process-1").read_text())
    tasks.die.enqueue(connection, ["exit 0"] * 3)

    ledger.wait_for("started", neighbour, times=2)
    eventually(lambda: not is_alive(left))  # else it would go on beside the next attempt's
    ledger.open("gate")
    assert ended(connection, neighbour).state == "completed"


def test_a_process_whose_channel_a_job_has_closed_is_replaced(start, ledger, connection):
    """It lives, and can be told nothing any more: no lease, no stop."""
    jobs = [tasks.hold_thread.enqueue(connection, "gate").id, tasks.close_channel.enqueue(connection, "gate").id]
    worker = start(concurrency=2)
    (half_dead,) = {ledger.wait_for("started", job).pid for job in jobs}

    again = {ledger.wait_for("started", job, times=2).pid for job in jobs}
    assert not is_alive(half_dead)
    assert len(again) == 2
    assert len(worker.log("child_deaf")) == 1
    ledger.open("gate")
    for job in jobs:  # a suspect, since nothing but a job can have closed it; cleared, and no attempt is used
        assert ended(connection, job)[:4] == ("completed", 1, 2, 1)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.skipif(free_memory() < 0.5, reason="needs room for a dozen processes")
def test_however_many_jobs_a_killed_process_had_none_of_them_waits_for_the_end_of_another(start, ledger, connection):
    """More than are started at a time."""
    number = min(supervisor._STARTING + 3, 12)
    jobs = [tasks.hold_slot.enqueue(connection, "gate").id for _ in range(number)]
    worker = start(concurrency=number)
    first = [ledger.wait_for("started", job).pid for job in jobs]
    (child,) = set(first)
    os.kill(child, signal.SIGKILL)
    assert len({ledger.wait_for("started", job, times=2).pid for job in jobs}) == number
    ledger.open("gate")
    for job in jobs:
        assert ended(connection, job)[:4] == ("completed", 1, 2, 1)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
