"""What a server may do to its clients, short of going away for good: crash, have no connection left, be set against
them. A worker gets over each by itself, and no job pays for it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from pgqueue.embedded import EmbeddedPostgres
from pgqueue.migrate import upgrade
from pgqueue.testing import _temp_dir
from tests.crash import tasks
from tests.crash.processes import ended, health
from tests.helpers import eventually

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")

CONNECTIONS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server of our own, with few connections."""
    with tempfile.TemporaryDirectory(dir=_temp_dir(), prefix="pgqueue-") as directory:
        os.chmod(directory, 0o755)  # as root, the server runs as somebody else
        settings = {"max_connections": str(CONNECTIONS), "superuser_reserved_connections": "0"}
        kept = EmbeddedPostgres(Path(directory, "data"), fsync=False, settings=settings)
        kept.start()
        try:
            upgrade(kept.url(), schema="pgqueue")
            yield kept
        finally:
            kept.stop()


def finish(worker, url: str, jobs: list[int]) -> None:
    """Every job ended in its first attempt, and the log holds no cry."""
    with psycopg.connect(url, autocommit=True) as connection:
        for job in jobs:
            assert ended(connection, job)[:2] == ("completed", 1)
        assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.text()


def test_a_crash_of_the_server_costs_no_job_anything(start, ledger, server):
    with psycopg.connect(server.url()) as connection:
        running = tasks.hold_thread.enqueue(connection, "gate").id
    worker = start(url=server.url(), concurrency=2)
    ledger.wait_for("started", running)
    with psycopg.connect(server.url()) as connection:
        waiting = tasks.quick.enqueue_many(connection, [()] * 50)
    os.kill(server.pid, signal.SIGQUIT)  # at once, without a word to the disk: recovery follows
    server.stop()
    ledger.open("gate")
    ledger.wait_for("finished", running)
    server.start()
    finish(worker, server.url(), [running, *waiting])
    assert len(ledger.entries("started", running)) == 1
    assert worker.log("database_away")
    assert worker.log("database_back")


def test_a_worker_that_gets_no_connection_waits_for_one(start, server):
    worker = start(url=server.url(), metrics_port=0)
    eventually(lambda: worker.log("worker_started"))
    with ExitStack() as others:
        first = others.enter_context(psycopg.connect(server.url(), autocommit=True))
        jobs = tasks.quick.enqueue_many(first, [()] * 10)
        taken = 1

        def take_all() -> bool:
            """Whether nothing of the server's is left for the worker, once it has lost all but its heart's."""
            nonlocal taken
            first.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'pgqueue %' and application_name <> 'pgqueue heartbeat'"
            )
            try:
                while True:
                    others.enter_context(psycopg.connect(server.url(), autocommit=True))
                    taken += 1
            except psycopg.OperationalError:
                return taken == CONNECTIONS - 1

        eventually(take_all)
        jobs += tasks.quick.enqueue_many(first, [()] * 10)
        eventually(lambda: [line for line in worker.log("database_away") if "too many clients" in line["message"]])
        _, text = eventually(lambda: (now := health(worker))[0] == 503 and now)
        assert "cannot reach the database: OperationalError: " in text
        assert "too many clients" in text
    eventually(lambda: health(worker) == (200, "ready\n"))
    finish(worker, server.url(), jobs)


@pytest.mark.parametrize("timeout", ["1ms", "100ms", "1s"])
@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_what_is_set_against_clients_hurts_no_job_whether_plain_retried_or_transactional(
    start, connection, pgqueue_database, isolation, timeout
):
    (name,) = connection.execute("select current_database()").fetchone()
    connection.execute("create table effects (job_id bigint, fence int)")
    settings = {
        "statement_timeout": timeout,
        "lock_timeout": timeout,
        "idle_session_timeout": "1s",
        "idle_in_transaction_session_timeout": timeout,
        "default_transaction_isolation": isolation,
    }
    if connection.info.server_version >= 170000:
        settings["transaction_timeout"] = "100ms"
    for setting, value in settings.items():
        connection.execute(SQL("alter database {} set {} = {}").format(Identifier(name), Identifier(setting), value))
    plain = tasks.quick.enqueue_many(connection, [()] * 20)
    retried = tasks.fail_once.enqueue_many(connection, [()] * 20)
    transactional = [
        job for task in (tasks.transact_thread, tasks.transact_slot) for job in task.enqueue_many(connection, [()] * 10)
    ]
    worker = start(processes=2, lease=9, sweep_interval=3)
    late = tasks.quick.options(delay=2).enqueue(connection).id  # so long the chores' connection has nothing to say

    ends = {job: ended(connection, job) for job in (*plain, *retried, *transactional, late)}
    for job, end in ends.items():
        own = ["RuntimeError: not yet"] if job in retried else []
        assert [error["error"] for error in end.errors or ()] == own
        assert (end.state, end.attempt, end.crashes) == ("completed", 1 + len(own), 0)
    effects = connection.execute("select job_id, fence from effects order by job_id").fetchall()
    assert effects == [(job, ends[job].fence) for job in sorted(transactional)]
    assert not worker.log("database_away")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
