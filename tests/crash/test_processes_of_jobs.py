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
