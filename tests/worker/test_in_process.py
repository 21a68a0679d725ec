"""A worker inside an application: `app.worker(...).run()` and `run_async()`."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
from typing import Any

import psycopg
import pytest

from pgqueue import ConfigurationError, PgQueue, SchemaError
from pgqueue.worker.heartbeat import Heart
from tests.crash import tasks
from tests.crash.processes import ROOT, ended, environment, row
from tests.helpers import eventually

PROGRAM = """
import logging
from tests.crash.tasks import app
logging.basicConfig(level=logging.INFO)
app.worker(poll_interval=0.05, grace=30).run()
print("returned")
"""


def _workers(connection: psycopg.Connection[Any]) -> list[Any]:
    return [worker_id for (worker_id,) in connection.execute("select id from pgqueue.workers").fetchall()]


def test_stop_from_another_thread_lets_the_running_job_finish(app, work, connection):
    begun, gate = threading.Event(), threading.Event()

    @app.task
    def wait() -> None:
        begun.set()
        gate.wait(30)

    job, late = wait.enqueue_many(connection, [(), ()])
    worker = work(concurrency=1)
    assert begun.wait(10)
    worker.stop()
    gate.set()
    assert ended(connection, job)[:3] == ("completed", 1, 1)
    eventually(lambda: not _workers(connection))
    assert row(connection, late)[:3] == ("queued", 0, 0)


def test_a_stop_before_the_start_counts(app):
    worker = app.worker()
    worker.stop()
    asyncio.run(asyncio.wait_for(worker.run_async(), 20))


def test_a_worker_can_be_run_again(app, connection):
    done: list[int] = []

    @app.task
    def note(number: int) -> None:
        done.append(number)

    worker = app.worker(drain=True, poll_interval=0.05)
    for number in (1, 2):
        note.enqueue(connection, number)
        worker.run()
    assert done == [1, 2]
    assert not _workers(connection)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_main_thread_stops_it_gracefully(ledger, pgqueue_database, connection, number):
    job = tasks.hold_thread.enqueue(connection, "gate").id
    env = environment(PGQUEUE_DATABASE_URL=pgqueue_database, TEST_LEDGER=str(ledger.path))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=env, stdout=subprocess.PIPE) as process:
        try:
            ledger.wait_for("started", job)
            process.send_signal(number)
            ledger.open("gate")
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert output == b"returned\n"
    assert ended(connection, job)[:3] == ("completed", 1, 1)
    assert not _workers(connection)


def test_a_worker_that_lost_its_lease_interrupts_its_jobs_and_starts_a_new_life(app, work, connection, logged):
    runs: list[str] = []
    gate = threading.Event()

    @app.task
    async def wait() -> None:
        runs.append("started")
        try:
            while not gate.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            runs.append("interrupted")
            raise
        runs.append("finished")

    job = wait.enqueue(connection).id
    work(lease=1.0)
    eventually(lambda: runs)
    (before,) = _workers(connection)
    connection.execute("delete from pgqueue.workers")  # as another worker does when it finds a lease ended

    eventually(lambda: runs[:3] == ["started", "interrupted", "started"])
    (after,) = _workers(connection)
    assert after != before
    assert logged("lease_lost")
    assert row(connection, job)[:4] == ("running", 1, 2, 0)
    gate.set()
    assert ended(connection, job)[:3] == ("completed", 1, 2)
    assert runs == ["started", "interrupted", "started", "finished"]


def test_a_cancelled_worker_gives_its_jobs_back_and_leaves_nothing_behind(app, connection):
    runs: list[str] = []

    @app.task
    async def wait() -> None:
        runs.append("started")
        try:
            await asyncio.sleep(60)
        finally:
            runs.append("ended")

    async def application() -> None:
        working = asyncio.create_task(app.worker(poll_interval=0.05).run_async())
        while not runs:
            await asyncio.sleep(0.01)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert asyncio.all_tasks() == {asyncio.current_task()}

    job = wait.enqueue(connection).id
    asyncio.run(application())
    assert runs == ["started", "ended"]
    assert row(connection, job)[:3] == ("queued", 0, 1)
    assert not _workers(connection)


def test_a_worker_waiting_for_the_database_can_be_stopped(app, work, connection, logged, monkeypatch):
    """Its lease has ended meanwhile, and the row of its next life cannot be written."""
    away, waiting, ending = threading.Event(), threading.Event(), threading.Event()
    perform, register, end = Heart.perform, Heart.register, Heart.end

    def refuse(self: Heart, steps: Any) -> Any:
        if away.is_set():
            raise psycopg.OperationalError("connection refused")
        return perform(self, steps)

    def note(event: threading.Event, method: Any) -> Any:
        return lambda *args, **kwargs: (method(*args, **kwargs), event.set() if away.is_set() else None)[0]

    monkeypatch.setattr(Heart, "perform", refuse)
    monkeypatch.setattr(Heart, "register", note(waiting, register))
    monkeypatch.setattr(Heart, "end", lambda self, seconds: (ending.set(), end(self, seconds))[1])
    worker = work(lease=0.6)
    eventually(lambda: _workers(connection))
    away.set()
    assert waiting.wait(10)
    assert logged("lease_lost")

    worker.stop()
    assert ending.wait(10)
    away.clear()
    eventually(lambda: not _workers(connection))


def test_an_unusable_database_is_an_error_at_the_start(pgqueue_blank_database):
    for app, error in (
        (PgQueue(pgqueue_blank_database), SchemaError),
        (PgQueue("postgresql://localhost:1/none?connect_timeout=2"), psycopg.OperationalError),
    ):
        with pytest.raises(error):
            app.worker().run()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pgqueue-")]


@pytest.mark.parametrize(
    "wrong", [{"processes": 2}, {"concurrency": 0}, {"lease": float("nan")}, {"speed": 9}, {"max_memory": 100}]
)
def test_a_setting_that_cannot_work_is_refused_and_named(app, wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        app.worker(**wrong)


def test_the_application_s_own_logging_is_left_alone(drain):
    handlers = list(logging.getLogger().handlers)
    drain()
    assert logging.getLogger().handlers == handlers
    assert not logging.getLogger("pgqueue").handlers
