"""A process that a job starts hears SIGTERM, and does not outlive the worker process it was started in."""

from __future__ import annotations

import os
import signal

import pytest

from tests.crash import harm, surroundings, tasks
from tests.crash.processes import ended, is_alive, row
from tests.helpers import eventually

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")


def test_what_a_job_started_dies_with_the_killed_worker_and_hears_sigterm_in_the_next(
    start, ledger, connection, tmp_path
):
    job = tasks.start_a_process.enqueue(connection, "gate").id
    worker = start(concurrency=1)
    first = ledger.wait_for("started", job)
    orphan = int(next(tmp_path.rglob("process-1")).read_text())
    assert is_alive(orphan)

    os.kill(first.pid, signal.SIGKILL)

    eventually(lambda: not is_alive(orphan))
    ledger.wait_for("started", job, times=2)
    ledger.open("gate")
    assert ended(connection, job).state == "completed"
    result = connection.execute("select result from pgqueue.finished_jobs where id = %s", [job]).fetchone()[0]
    assert result == -signal.SIGTERM
    assert worker.children()


@pytest.mark.parametrize("task", [tasks.fork_thread, tasks.fork_slot], ids=["in a thread", "on the event loop"])
def test_a_job_that_forks_and_returns_twice_is_done_once_and_its_copy_ends(start, ledger, connection, task):
    jobs = [job for _ in range(5) for job in (task.enqueue(connection).id, tasks.quick.enqueue(connection).id)]
    worker = start(concurrency=10)
    for job in jobs:
        assert ended(connection, job)[:2] == ("completed", 1)
        assert len(ledger.entries("started", job)) == 1
    results = connection.execute("select result from pgqueue.finished_jobs where task = %s", [task.name]).fetchall()
    assert len({pid for (pid,) in results}) == 5
    for (pid,) in results:
        eventually(lambda pid=pid: not is_alive(pid))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert not [line for line in worker.log() if line["level"] == "error"]


@pytest.mark.parametrize("what", harm.DAMAGE)
def test_what_a_job_leaves_behind_in_its_process_harms_no_other_and_the_worker_ends_well(
    start, ledger, connection, what
):
    neighbours = [task.enqueue(connection, "gate").id for task in (tasks.hold_thread, tasks.hold_slot)]
    worker = start(concurrency=4)
    for job in neighbours:
        ledger.wait_for("started", job)

    culprit = tasks.damage.enqueue(connection, what).id
    ledger.wait_for("finished", culprit)
    after = tasks.quick.enqueue_many(connection, [()] * 5)
    for job in after:
        assert ended(connection, job)[:2] == ("completed", 1)
    ledger.open("gate")
    for job in neighbours:
        assert ended(connection, job)[:2] == ("completed", 1)
    end = ended(connection, culprit)
    # Whoever closes its process's descriptors breaks it, and may do so again until its crashes are used up.
    assert end.state == "completed" or (what, end.reason) == ("descriptors", "crashed")
    if what != "descriptors":
        assert end[:4] == ("completed", 1, 1, 0)
        assert not worker.log("child_died")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_process_that_runs_a_job_ends_with_its_worker_and_is_no_crash_of_another(start, ledger, connection):
    job = tasks.hold_process.enqueue(connection, "gate").id
    worker = start()
    own = ledger.wait_for("started", job).pid
    (child,) = worker.children()
    assert own != child
    os.kill(child, signal.SIGKILL)
    eventually(lambda: not is_alive(own))
    assert ledger.wait_for("started", job, times=2).pid not in (own, child)
    ledger.open("gate")
    assert ended(connection, job).state == "completed"


def test_the_death_of_a_jobs_own_process_leaves_its_worker_and_its_neighbours_alone(start, ledger, connection):
    neighbour = tasks.hold_thread.enqueue(connection, "gate").id
    job = tasks.hold_process.enqueue(connection, "gate").id
    worker = start()
    ledger.wait_for("started", neighbour)
    (child,) = worker.children()
    os.kill(ledger.wait_for("started", job).pid, signal.SIGKILL)
    again = ledger.wait_for("started", job, times=2)  # with nothing beside it: in a child of its own
    assert worker.log("job_crashed")
    assert child in worker.children()
    assert row(connection, neighbour)[:4] == ("running", 1, 1, 0)
    assert row(connection, job)[3] == 1
    ledger.open("gate")
    for one in (neighbour, job):
        assert ended(connection, one).state == "completed"
    assert again.attempt == 1
    assert not worker.log("child_died")


def test_a_job_in_its_own_process_has_its_apps_middleware_and_lifespans_around_it(start, ledger, connection):
    jobs = [surroundings.named.enqueue(connection).id, surroundings.known.enqueue(connection).id]
    worker = start("tests.crash.surroundings:app", concurrency=1)
    assert [ended(connection, job).state for job in jobs] == ["completed", "completed"]
    told = [[entry.event for entry in ledger.entries(job=job)] for job in jobs]
    assert told == [["before", "own", "started", "after_1"], ["before", "own", "after_2"]]
    (own,) = {entry.pid for job in jobs for entry in ledger.entries(job=job)}
    assert own not in worker.children()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    for event in ("opened", "closed"):
        pids = [entry.pid for entry in ledger.entries(event)]
        assert len(pids) == len(set(pids)) == 2  # the worker's own and the job's
        assert own in pids
