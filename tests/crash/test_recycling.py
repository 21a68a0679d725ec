"""A process that has run its jobs, grown too large or too old is replaced, and nothing stands still or is lost."""

from __future__ import annotations

import os
import signal

import pytest

from tests.crash import tasks
from tests.crash.processes import ended, is_alive, row, workers
from tests.helpers import eventually

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")


def test_a_process_that_has_run_its_jobs_is_replaced_and_finishes_what_it_runs(start, ledger, connection):
    long = tasks.hold_thread.enqueue(connection, "gate").id
    few = [tasks.quick.enqueue(connection).id for _ in range(4)]
    worker = start(max_jobs_per_process=5, grace=0.1)
    first = ledger.wait_for("started", long).pid
    for job in few:
        assert ended(connection, job).state == "completed"
    assert worker.children() == [first]  # four are not enough, and the fifth has not ended

    assert ended(connection, tasks.quick.enqueue(connection).id).state == "completed"

    (line,) = eventually(lambda: worker.log("child_replaced"))
    assert line["message"] == f"worker process {first}: it has run 5 jobs; starting another in its place"
    eventually(lambda: _took_from(ledger, connection) != first)
    assert is_alive(first)  # its job has not ended, and no grace period cuts it off
    assert row(connection, long)[:3] == ("running", 1, 1)
    ledger.open("gate")
    assert ended(connection, long)[:4] == ("completed", 1, 1, 0)
    eventually(lambda: not is_alive(first) and first not in workers(connection))
    assert not worker.log("child_died")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_process_that_holds_too_much_memory_is_replaced_by_a_small_one(start, ledger, connection):
    worker = start(max_memory=300)
    kept = tasks.hoard.enqueue(connection, 400).id
    first = ledger.wait_for("finished", kept).pid
    eventually(lambda: not is_alive(first))
    (line,) = worker.log("child_replaced")
    assert "MB of memory" in line["message"]
    assert ended(connection, tasks.quick.enqueue(connection).id).state == "completed"
    assert len(worker.log("child_replaced")) == 1


def test_a_process_that_is_too_old_is_replaced_also_while_the_worker_stops(start, ledger, connection):
    worker = start(max_age=1, processes=2, concurrency=1)
    jobs = [tasks.hold_slot.enqueue(connection, "gate").id for _ in range(2)]
    first = {ledger.wait_for("started", job).pid for job in jobs}
    eventually(lambda: first <= {int(line["message"].split()[2].rstrip(":")) for line in worker.log("child_replaced")})
    eventually(lambda: _took_from(ledger, connection) not in first)
    worker.signal(signal.SIGTERM)
    ledger.open("gate")
    assert worker.wait() == 0
    for job in jobs:
        assert row(connection, job)[:4] == ("completed", 1, 1, 0)
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)


def test_jobs_that_pass_through_processes_of_ten_jobs_each_lose_no_attempt(start, ledger, connection):
    # Slower than the look at the limit, five times a second: quick ones are all done before it.
    jobs = tasks.slow.enqueue_many(connection, [(0.05,)] * 100)
    worker = start(max_jobs_per_process=10, processes=2, concurrency=1, drain=True)
    assert worker.wait() == 0
    ends = [row(connection, job)[:4] for job in jobs]  # a fence may be higher: what was claimed ahead is given back
    assert [(state, attempt, crashes) for state, attempt, _, crashes in ends] == [("completed", 1, 0)] * 100
    assert worker.log("child_replaced")
    assert not worker.log("child_died")


def test_a_process_with_a_thread_that_is_stuck_is_replaced_and_its_slots_are_whole_again(start, ledger, connection):
    job = tasks.overdue.enqueue(connection, "gate").id
    worker = start(concurrency=1, lease=2)
    first = ledger.wait_for("started", job).pid
    (line,) = eventually(lambda: worker.log("child_replaced"))
    assert f"job {job} is stuck" in line["message"]
    assert "is stuck: it ran longer than its hard_timeout of 0.3 s" in worker.log("job_stuck")[0]["message"]
    assert _took_from(ledger, connection) != first
    assert is_alive(first)
    assert row(connection, job)[:3] == ("running", 1, 1)
    ledger.open("gate")
    eventually(lambda: not is_alive(first))
    eventually(lambda: row(connection, job)[0] != "running")
    assert row(connection, job)[1:4] == (1, 1, 0)
    assert not worker.log("child_died")


def _took_from(ledger, connection) -> int:
    """Which process runs what is enqueued now."""
    job = tasks.quick.enqueue(connection).id
    return ledger.wait_for("finished", job).pid
