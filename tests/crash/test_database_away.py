"""The database goes away under a working worker: connections cut, a restart, an outage longer than any lease. The
worker waits, comes back by itself, and nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgqueue.embedded import EmbeddedPostgres
from pgqueue.migrate import upgrade
from pgqueue.testing import _temp_dir
from tests.crash import tasks
from tests.crash.processes import ended, health, is_alive, row
from tests.helpers import eventually

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server that can be stopped and started again on the same data."""
    with tempfile.TemporaryDirectory(dir=_temp_dir(), prefix="pgqueue-") as directory:
        os.chmod(directory, 0o755)  # as root, the server runs as somebody else
        kept = EmbeddedPostgres(Path(directory, "data"), fsync=False)
        kept.start()
        try:
            upgrade(kept.url(), schema="pgqueue")
            yield kept
        finally:
            kept.stop()


def test_every_job_is_run_once_while_all_connections_are_cut_again_and_again(start, ledger, connection):
    jobs = tasks.quick.enqueue_many(connection, [()] * 400)
    worker = start(processes=2, concurrency=2)

    def progress() -> int:
        return len({entry.job for entry in ledger.entries("finished")})

    cut = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name like 'pgqueue %' and datname = current_database()"
    )
    cuts, done = 0, 0
    while cuts < 12 and done < len(jobs):
        done = eventually(lambda done=done: (now := progress()) > done and now, timeout=30)
        cuts += bool(connection.execute(cut).fetchall())
    assert cuts >= 5

    for job in jobs:
        assert ended(connection, job)[:4] == ("completed", 1, row(connection, job).fence, 0)
    assert Counter(entry.job for entry in ledger.entries("started")) == Counter(jobs)
    assert not worker.log("claim_lost")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_restart_of_the_server_costs_a_worker_nothing(start, ledger, server):
    with psycopg.connect(server.url()) as connection:
        running = tasks.hold_thread.enqueue(connection, "gate").id
    worker = start(url=server.url(), concurrency=1)
    child = ledger.wait_for("started", running).pid
    with psycopg.connect(server.url()) as connection:
        before = tasks.quick.enqueue_many(connection, [()] * 20)

    server.stop()
    ledger.open("gate")
    ledger.wait_for("finished", running)  # and cannot tell anybody
    server.start()

    with psycopg.connect(server.url(), autocommit=True) as connection:
        assert ended(connection, running)[:4] == ("completed", 1, 1, 0)
        for job in before:
            assert ended(connection, job)[:4] == ("completed", 1, 1, 0)
    assert len(ledger.entries("started", running)) == 1
    assert worker.children() == [child]
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_process_that_cannot_renew_its_lease_is_killed_and_a_new_one_waits_for_the_database(start, ledger, server):
    with psycopg.connect(server.url()) as connection:
        job = tasks.hold_thread.enqueue(connection, "gate").id
    worker = start(url=server.url(), lease=1.5, metrics_port=0)
    child = ledger.wait_for("started", job).pid
    eventually(lambda: worker.log("probe") and health(worker) == (200, "ready\n"))

    server.stop()
    eventually(lambda: not is_alive(child))
    assert worker.log("lease_lost")
    eventually(worker.children)
    code, text = health(worker)
    assert (code, text.startswith("not ready: the database is away: ")) == (503, True), text
    server.start()
    eventually(lambda: health(worker) == (200, "ready\n"), timeout=30)

    second = ledger.wait_for("started", job, times=2)
    assert [second.pid] == worker.children()
    assert (second.fence, second.attempt) == (2, 1)
    ledger.open("gate")
    with psycopg.connect(server.url(), autocommit=True) as connection:
        assert ended(connection, job)[:4] == ("completed", 1, 2, 0)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_worker_can_be_stopped_while_the_database_is_away(start, ledger, server):
    with psycopg.connect(server.url()) as connection:
        job = tasks.quick.enqueue(connection).id
    worker = start(url=server.url(), grace=1)
    ledger.wait_for("finished", job)

    server.stop()
    try:
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 1  # its row is still there, to be removed by whoever finds its lease ended
    finally:
        server.start()


def test_what_could_not_be_written_before_the_end_is_named_and_the_end_comes_in_time(start, ledger, server):
    with psycopg.connect(server.url()) as connection:
        ends, stuck = (tasks.hold_thread.enqueue(connection, gate).id for gate in ("gate", "never"))
    worker = start(url=server.url(), grace=1)
    for job in (ends, stuck):
        ledger.wait_for("started", job)

    server.stop()
    try:
        ledger.open("gate")
        ledger.wait_for("finished", ends)
        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 1
        assert time.monotonic() - began < 1 + 10
        (line,) = worker.log("unsettled")
        assert str(ends) in line["message"]
        assert [line["job_id"] for line in worker.log("job_stuck")] == [stuck]
    finally:
        server.start()
