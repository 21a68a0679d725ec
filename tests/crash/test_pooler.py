"""PgBouncer in transaction mode before the database: workers do their work, by polling, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url

from tests.crash import tasks
from tests.crash.processes import ended
from tests.helpers import eventually

PGBOUNCER = Path("/usr/sbin/pgbouncer")

pytestmark = pytest.mark.skipif(not PGBOUNCER.exists(), reason="pgbouncer is not installed")


@pytest.fixture
def pooled(pgqueue_database: str) -> Iterator[str]:
    """The test's database by way of a PgBouncer that has two connections to it."""
    known = conninfo_to_dict(pgqueue_database)
    password = f" password='{known['password']}'" if known.get("password") else ""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pgqueue-") as directory:
        ini = Path(directory, "pgbouncer.ini")
        ini.write_text(
            f"[databases]\n* = host={known.get('host', '127.0.0.1')} port={known.get('port', 5432)}"
            f" user={known['user']}{password}\n"
            f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n"
            "pool_mode=transaction\ndefault_pool_size=2\nignore_startup_parameters=extra_float_digits\n"
        )
        os.chmod(directory, 0o755)
        user = {"user": "nobody"} if os.geteuid() == 0 else {}  # it refuses root
        bouncer = subprocess.Popen(
            [PGBOUNCER, "-q", ini], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **user
        )
        url = make_url(pgqueue_database).set(host="127.0.0.1", port=port).difference_update_query(["host", "port"])
        made = url.render_as_string(hide_password=False)
        try:
            eventually(lambda: answers(made))
            yield made
        finally:
            bouncer.send_signal(signal.SIGINT)
            bouncer.wait(10)


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url):
            return True
    except psycopg.OperationalError:
        return False


def test_workers_behind_a_pooler_poll_and_leave_no_setting_behind(start, connection, pooled, ledger):
    (name,) = connection.execute("select current_database()").fetchone()
    connection.execute(
        SQL("alter database {} set default_transaction_isolation = serializable").format(Identifier(name))
    )
    workers = [start(url=pooled, concurrency=2) for _ in range(2)]
    jobs = tasks.quick.enqueue_many(connection, [()] * 60)
    for job in jobs:
        assert ended(connection, job)[:2] == ("completed", 1)
        assert len(ledger.entries("started", job)) == 1

    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as other:
        for _ in range(10):
            left = (
                "select current_setting('statement_timeout'), current_setting('enable_seqscan'), current_setting('jit')"
            )
            assert other.execute(left).fetchone() == ("0", "on", "on")
            assert other.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
    assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)
    for worker in workers:
        eventually(lambda worker=worker: worker.log("no_listener"))
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert len(worker.log("no_listener")) == 1
        assert not worker.log("database_away")
        assert "Traceback" not in worker.text()


def test_a_direct_url_for_listen_wakes_a_worker_behind_a_pooler(start, connection, pooled, pgqueue_database):
    worker = start(url=pooled, listen_url=pgqueue_database, poll_interval=3_000)
    eventually(
        lambda: (
            connection.execute(
                "select count(*) from pg_stat_activity where application_name = 'pgqueue listener'"
                " and datname = current_database() and query ilike '%cancelling is not null%' and state = 'idle'"
            ).fetchone()
            == (1,)
        )
    )
    eventually(lambda: connection.execute("select count(*) from pgqueue.sleepers").fetchone() == (1,))
    jobs = [tasks.quick.enqueue(connection).id for _ in range(3)]
    for job in jobs:
        assert ended(connection, job).state == "completed"
    assert not worker.log("no_listener")


def test_a_pause_and_a_cancel_reach_a_worker_that_cannot_listen(start, ledger, connection, pooled):
    worker = start(url=pooled, poll_interval=3_000)
    job = tasks.hold_slot.enqueue(connection, "never").id
    ledger.wait_for("started", job)
    tasks.app.tasks.pause(tasks.quick, connection=connection)
    assert tasks.app.jobs.cancel(job, connection=connection) is True
    assert ended(connection, job).state == "cancelled"
    late = tasks.quick.enqueue(connection).id
    tasks.app.tasks.resume(tasks.quick, connection=connection)
    assert ended(connection, late).state == "completed"
    assert worker.log("no_listener")


def test_connections_cut_behind_a_pooler_cost_no_job_anything(start, connection, pooled):
    worker = start(url=pooled)
    jobs = tasks.quick.enqueue_many(connection, [()] * 20)
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid()"
    )
    jobs += tasks.quick.enqueue_many(connection, [()] * 20)
    for job in jobs:
        assert ended(connection, job)[:2] == ("completed", 1)
    assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)
    assert "Traceback" not in worker.text()


def test_a_job_s_own_transaction_works_through_a_pooler_and_hands_its_settings_to_nobody(start, connection, pooled):
    connection.execute("create table effects (job_id bigint, fence int)")
    worker = start(url=pooled)
    jobs = [
        *tasks.transact_thread.enqueue_many(connection, [()] * 20),
        *tasks.transact_slot.enqueue_many(connection, [()] * 20),
    ]
    for job in jobs:
        assert ended(connection, job)[:2] == ("completed", 1)
    effects = "select job_id, count(*) from effects group by 1"
    assert dict(connection.execute(effects).fetchall()) == dict.fromkeys(jobs, 1)
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as other:
        left = "select current_setting('idle_in_transaction_session_timeout')"
        for _ in range(10):
            assert other.execute(left).fetchone() == ("0",)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert not worker.log("claim_lost")
    assert "Traceback" not in worker.text()
