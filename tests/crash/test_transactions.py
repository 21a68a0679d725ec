"""Workers killed and frozen in the midst of hundreds of short transactional jobs: each has its effect exactly once.

The effect is a row in a table that would take any number of them; only the fence in the completion keeps it single.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.crash import tasks
from tests.crash.processes import ROOT, Ledger, environment, is_stopped, workers
from tests.helpers import eventually

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")

IN_PROCESS = (
    "from tests.crash.tasks import app;"
    "app.worker(concurrency=20, lease=1.0, grace=5.0, poll_interval=0.1, sweep_interval=0.1).run()"
)
AGAIN = "select count(*) from pgqueue.all_jobs where id = any(%s) and fence > 1"
# What was frozen between COMMIT and its answer has ended, and is nobody's to take.
UNTOUCHED = "select count(*) from pgqueue.all_jobs where id = any(%s) and fence = 1 and state <> 'completed'"
RUNNING = "select id from pgqueue.jobs where state = 'running' and worker_id = %s"


@pytest.fixture
def jobs(connection: psycopg.Connection[Any]) -> list[int]:
    connection.execute("create table effects (job_id bigint, fence int)")
    ids = [
        tasks.transact_thread.enqueue_many(connection, [()] * 400),
        tasks.transact_slot.enqueue_many(connection, [()] * 400),
    ]
    return [id for pair in zip(*ids, strict=True) for id in pair]


@pytest.fixture
def frozen(start: Any, ledger: Ledger, pgqueue_database: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker inside an application: nobody ends it when it comes back to life, so all that it ran goes on."""
    env = environment(TEST_LEDGER=str(ledger.path), PGQUEUE_DATABASE_URL=pgqueue_database)
    process = subprocess.Popen([sys.executable, "-c", IN_PROCESS], cwd=ROOT, env=env)
    yield process
    process.kill()
    process.wait()


def count(connection: psycopg.Connection[Any]) -> int:
    return connection.execute("select count(*) from effects").fetchone()[0]  # type: ignore[index]


def progress(connection: psycopg.Connection[Any], more: int) -> None:
    before = count(connection)
    eventually(lambda: count(connection) >= before + more, timeout=30)


def once_each(connection: psycopg.Connection[Any], jobs: list[int]) -> None:
    left = "select count(*) from pgqueue.jobs"
    eventually(lambda: connection.execute(left).fetchone() == (0,), timeout=60)
    states = dict(connection.execute("select id, state from pgqueue.all_jobs").fetchall())
    assert states == dict.fromkeys(jobs, "completed")
    assert connection.execute("select count(*), count(distinct job_id) from effects").fetchone() == (len(jobs),) * 2
    # And it is of the run that completed the job: nobody has completed it in the name of another.
    fences = dict(connection.execute("select id, fence from pgqueue.finished_jobs").fetchall())
    assert dict(connection.execute("select job_id, fence from effects").fetchall()) == fences


def test_frozen_past_its_lease_and_back_a_worker_adds_no_effect_to_those_had_elsewhere(jobs, frozen, start, connection):
    progress(connection, 5)
    other = start(concurrency=20)
    taken = 0
    while taken < 10:
        worker_id = eventually(lambda: workers(connection).get(frozen.pid))
        held = eventually(lambda worker_id=worker_id: connection.execute(RUNNING, [worker_id]).fetchall())
        frozen.send_signal(signal.SIGSTOP)
        eventually(lambda: is_stopped(frozen.pid))
        held = [row[0] for row in connection.execute(RUNNING, [worker_id])]
        eventually(lambda held=held: connection.execute(UNTOUCHED, [held]).fetchone() == (0,), timeout=30)
        taken += connection.execute(AGAIN, [held]).fetchone()[0]
        frozen.send_signal(signal.SIGCONT)
    once_each(connection, jobs)
    assert frozen.poll() is None
    other.signal(signal.SIGTERM)
    assert other.wait() == 0


def test_killed_in_the_midst_workers_leave_no_effect_without_its_completion(jobs, start, connection):
    first, second = start(concurrency=5), start(concurrency=5, lease=1)
    progress(connection, 50)
    (child,) = first.children()
    os.kill(child, signal.SIGKILL)  # its supervisor sees it
    progress(connection, 50)
    second.process.kill()  # a machine that vanishes: its jobs wait for the end of the lease
    once_each(connection, jobs)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
