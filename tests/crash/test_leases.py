"""Liveness: a worker that can no longer renew its lease loses its jobs, and can do no harm when it comes back; one that
is only slow, busy or blocked keeps them."""

from __future__ import annotations

import os
import signal
import time

import psycopg
import pytest

from tests.crash import tasks
from tests.crash.processes import DEFAULTS, ended, is_alive, is_stopped, row, workers
from tests.helpers import eventually, in_time

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")

BESIDE = tasks.hold_thread, tasks.hold_slot, tasks.hold_transaction


@pytest.mark.timeout(240)
def test_a_long_job_is_never_rescued_whatever_it_does_to_its_process_nor_is_one_beside_it(start, ledger, connection):
    holders = [
        *((task, "gate") for task in (tasks.hold_slot, tasks.hold_thread, tasks.block_loop, tasks.hold_gil)),
        (tasks.hold_gil_at_once, 6),
    ]
    connection.execute("create table effects (job_id bigint, fence int)")
    neighbours, inside, jobs = [], [], []
    for number, (task, how) in enumerate(holders):  # each in a process of its own, with others that were there before
        queue = f"q{number}"
        start(queues=queue, concurrency=4, lease=2.5)
        beside = [one.options(queue=queue).enqueue(connection, "gate").id for one in BESIDE]
        for job in beside:
            ledger.wait_for("started", job)
        neighbours += beside[:-1]
        inside += beside[-1:]
        jobs.append(task.options(queue=queue).enqueue(connection, how).id)
        assert ledger.wait_for("started", jobs[-1]).pid == ledger.wait_for("started", beside[0]).pid
    start(lease=2.5)  # would take what another loses, and looks for it all the time
    eventually(lambda: len(workers(connection)) == len(holders) + 1, timeout=30)

    since = connection.execute("select clock_timestamp()").fetchone()
    renewed = "select count(*) from pgqueue.workers where heartbeat_at > %s::timestamptz + interval '5.5 s'"
    eventually(lambda: connection.execute(renewed, since).fetchone() == (6,), timeout=30)  # more than two leases

    ledger.open("gate")
    for job in (*jobs, *neighbours):
        assert ended(connection, job)[:4] == ("completed", 1, 1, 0)
        assert len(ledger.entries("started", job)) == 1
    at_once = jobs[-1]
    held = ledger.wait_for("finished", at_once).at - ledger.wait_for("started", at_once).at
    assert held > 2 * 2.5e9
    # A transaction may be idle for a lease at most, and one whose process gets nowhere is: then its job runs again, by
    # the same worker, as if it had not been started.
    ends = [ended(connection, job) for job in inside]
    assert [end[:2] for end in ends] == [("completed", 1)] * len(inside)
    assert [end.fence for end in ends[:3]] == [1] * 3
    assert not any(end.crashes for end in ends)
    assert all("(no attempt used)" in error["error"] for end in ends for error in end.errors or ())
    effects = connection.execute("select job_id, fence from effects order by job_id").fetchall()
    assert effects == [(job, end.fence) for job, end in zip(inside, ends, strict=True)]


def test_with_the_defaults_the_jobs_of_a_dead_machine_start_elsewhere_within_twenty_seconds(start, ledger, connection):
    survivor = start(**DEFAULTS, queues="default")
    gates = iter("abc")

    def take() -> float:
        """Seconds from the death to the last of the starts, as the jobs tell it."""
        gate = next(gates)
        doomed = start(**DEFAULTS, queues="doomed,default")
        jobs = tasks.hold_thread.options(queue="doomed").enqueue_many(connection, [(gate,)] * 4)
        (child,) = {ledger.wait_for("started", job).pid for job in jobs}
        connection.execute("update pgqueue.jobs set queue = 'default'")  # for both; what runs is not asked
        for pid in (doomed.pid, child):
            os.kill(pid, signal.SIGSTOP)  # or the child would have a moment in which it is without a supervisor
        for pid in (doomed.pid, child):
            os.kill(pid, signal.SIGKILL)
        died = time.monotonic_ns()
        again = [ledger.wait_for("started", job, times=2) for job in jobs]
        assert {entry.pid for entry in again} <= set(survivor.children())
        ledger.open(gate)
        assert [ended(connection, job)[:4] for job in jobs] == [("completed", 1, 2, 0)] * 4
        return (max(entry.at for entry in again) - died) / 1e9

    in_time(take, 20.0)


def test_when_its_supervisor_is_killed_a_process_ends_and_another_worker_runs_its_jobs(start, ledger, connection):
    jobs = [task.enqueue(connection, "gate").id for task in (tasks.hold_thread, tasks.hold_gil)]
    first = start(lease=2, processes=2, concurrency=1)
    for job in jobs:
        ledger.wait_for("started", job)
    children = first.children()
    registered = set(workers(connection).values())
    second = start(lease=10)

    first.signal(signal.SIGKILL)

    eventually(lambda: not any(is_alive(child) for child in children))
    again = [ledger.wait_for("started", job, times=2) for job in jobs]
    assert {entry.pid for entry in again} == set(second.children())
    assert [(entry.fence, entry.attempt) for entry in again] == [(2, 1)] * 2
    assert not registered & set(workers(connection).values())
    ledger.open("gate")
    for job in jobs:
        assert ended(connection, job)[:4] == ("completed", 1, 2, 0)  # a lapsed lease is no crash
        assert len(ledger.entries("finished", job)) == 1


def test_a_process_frozen_for_a_moment_keeps_its_job(start, ledger, connection):
    job = tasks.hold_thread.enqueue(connection, "gate").id
    worker = start()
    child = ledger.wait_for("started", job).pid

    os.kill(child, signal.SIGSTOP)
    eventually(lambda: worker.log("child_stopped"))
    beat = _heartbeat(connection)
    os.kill(child, signal.SIGCONT)

    eventually(lambda: _heartbeat(connection) > beat)  # it goes on without waiting for its turn, 10 s from now
    ledger.open("gate")
    assert ended(connection, job)[:4] == ("completed", 1, 1, 0)
    assert worker.children() == [child]


def test_a_frozen_process_is_killed_before_its_lease_ends_and_its_job_runs_in_another(start, ledger, connection):
    job = tasks.hold_thread.enqueue(connection, "gate").id
    worker = start(lease=2, processes=2)
    first = ledger.wait_for("started", job)

    os.kill(first.pid, signal.SIGSTOP)

    second = ledger.wait_for("started", job, times=2)
    assert not is_alive(first.pid)
    assert (second.fence, second.attempt) == (2, 1)
    assert second.pid != first.pid
    eventually(lambda: len(worker.children()) == 2)
    ledger.open("gate")
    assert ended(connection, job)[:4] == ("completed", 1, 2, 0)


def test_when_its_supervisor_is_frozen_a_process_ends_its_jobs_before_the_lease_ends(start, ledger, connection):
    """Whatever they do to their process; and they run elsewhere, as often as if the machine had gone."""
    kinds = (tasks.beat_thread, tasks.beat_slot, tasks.beat_loop)
    jobs = [kind.enqueue(connection, "gate").id for kind in kinds]
    frozen = start(lease=3, processes=3, concurrency=1)
    for job in jobs:
        ledger.wait_for("effect", job)
    children = frozen.children()
    rescuer = start(lease=30, concurrency=3)
    eventually(lambda: set(rescuer.children()) & set(workers(connection)))

    frozen.signal(signal.SIGSTOP)
    eventually(lambda: is_stopped(frozen.pid))
    ends = (
        "select id, extract(epoch from expires_at - clock_timestamp())::float8 from pgqueue.workers where pid = any(%s)"
    )
    expiry = {str(w): time.monotonic() + left for w, left in connection.execute(ends, [children]).fetchall()}
    assert len(expiry) == 3

    for job in jobs:
        ledger.wait_for("started", job, times=2)
    eventually(lambda: not any(is_alive(child) for child in children))
    for entry in ledger.entries("effect"):
        if entry.worker in expiry:
            assert entry.at / 1e9 < expiry[entry.worker]
    assert {line["event"] for line in frozen.log("lease_lost")} == {"lease_lost"}
    ledger.open("gate")
    for job in jobs:
        assert ended(connection, job)[:4] == ("completed", 1, 2, 0)
        assert len(ledger.entries("started", job)) == 2

    frozen.signal(signal.SIGCONT)
    eventually(lambda: len(frozen.children()) == 3 and not set(frozen.children()) & set(children))
    assert all(row(connection, job)[:4] == ("completed", 1, 2, 0) for job in jobs)


def test_a_worker_frozen_as_a_whole_can_do_no_harm_when_it_wakes(start, ledger, connection):
    job = tasks.hold_thread.enqueue(connection, "gate").id
    frozen = start(lease=2)
    first = ledger.wait_for("started", job)
    healthy = start(lease=10)
    eventually(lambda: set(healthy.children()) & set(workers(connection)))
    for pid in (frozen.pid, first.pid):
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda pid=pid: is_stopped(pid))

    second = ledger.wait_for("started", job, times=2)
    assert second.pid in healthy.children()
    held = row(connection, job)

    # The process alone comes back first: it sees that its lease is over, and ends.
    ledger.open("gate")
    os.kill(first.pid, signal.SIGCONT)
    eventually(lambda: frozen.log("lease_lost") and not is_alive(first.pid))
    end = ended(connection, job)
    assert end[:4] == ("completed", 1, 2, 0)
    assert end.worker == held.worker

    os.kill(frozen.pid, signal.SIGCONT)
    eventually(lambda: set(frozen.children()) - {first.pid} and not is_alive(first.pid))
    eventually(lambda: len(workers(connection)) == 2)
    healthy.signal(signal.SIGTERM)
    assert healthy.wait() == 0
    after = tasks.quick.enqueue(connection).id
    assert ended(connection, after).state == "completed"
    assert ledger.wait_for("finished", after).pid in frozen.children()
    assert row(connection, job) == end


def _heartbeat(connection: psycopg.Connection) -> object:
    return connection.execute("select heartbeat_at from pgqueue.workers").fetchone()[0]
