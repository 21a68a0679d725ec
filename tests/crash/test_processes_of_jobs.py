"""A process that a job starts hears SIGTERM, and does not outlive the worker process it was started in."""

from __future__ import annotations

import os
import signal

import pytest

from tests.crash import tasks
from tests.crash.processes import ended, is_alive
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
