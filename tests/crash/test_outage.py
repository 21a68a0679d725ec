"""A whole minute without a database, four times a worker's lease: it waits, says so, and costs no job an attempt."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.crash import tasks
from tests.crash.processes import DEFAULTS, ended, health
from tests.helpers import eventually, in_time

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")

OUTAGE, BACK = 60.0, 10.0
AWAY = "not ready: the database is away: "


@pytest.mark.timeout(420)
def test_after_a_minute_of_refused_connections_the_backlog_drains_within_ten_seconds(start, proxy, connection, ledger):
    worker = start(url=proxy.url, processes=2, metrics_port=0, **DEFAULTS)
    eventually(lambda: worker.log("probe") and health(worker) == (200, "ready\n"))
    gates = iter("abc")

    def take() -> float:
        """Seconds from the end of the outage to that of the last job, as the jobs tell it."""
        gate = next(gates)
        running = [task.enqueue(connection, gate).id for task in (tasks.hold_thread, tasks.hold_slot)]
        for job in running:
            ledger.wait_for("started", job)
        proxy.refuse()
        until = time.monotonic() + OUTAGE
        backlog = tasks.quick.enqueue_many(connection, [()] * 200)
        eventually(lambda: AWAY in (text := health(worker)[1]) and "refused" in text)
        while time.monotonic() < until:
            code, text = health(worker)
            assert (code, AWAY in text) == (503, True)
            assert "refused" in text
            time.sleep(0.5)
        assert not any(ledger.entries("started", job) for job in backlog)
        assert worker.process.poll() is None

        ledger.open(gate)
        back = time.monotonic_ns()
        proxy.accept()
        for job in running:  # their processes could not renew their leases; that is nobody's failure
            assert ended(connection, job)[:4] == ("completed", 1, 2, 0)
        for job in backlog:
            assert ended(connection, job)[:4] == ("completed", 1, 1, 0)
        assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)
        eventually(lambda: health(worker) == (200, "ready\n"))
        return (max(entry.at for entry in ledger.entries("finished")) - back) / 1e9

    in_time(take, BACK)
    assert worker.log("database_back")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.text()
