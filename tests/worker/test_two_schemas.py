"""Two schemas in one database, a worker beside each, enqueues in both: no job, no key and no wake-up crosses over."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from pgqueue import PgQueue, migrate
from pgqueue.worker.wake import channel
from tests.crash.processes import Ledger, Start, environment
from tests.helpers import eventually
from tests.worker.conftest import _working

ODD, MIXED = 'a"; drop table x; --', "MiXeD"
HOMES = (ODD, MIXED)


@pytest.fixture
def connection(pgqueue_blank_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Eyes; on a database with both schemas, and with a table that the name of one would drop."""
    for home in HOMES:
        migrate.upgrade(pgqueue_blank_database, home)
    with psycopg.connect(pgqueue_blank_database, autocommit=True) as made:
        made.execute("create table x ()")
        yield made
        assert made.execute("select to_regclass('public.x') is not null").fetchone() == (True,)


def sleepers(connection: psycopg.Connection[Any], home: str) -> list[tuple[UUID, str]]:
    """(worker, version of its row) of who lies down in a schema."""
    return connection.execute(SQL("select worker_id, xmin::text from {}.sleepers").format(Identifier(home))).fetchall()


def test_each_worker_runs_and_is_woken_for_the_jobs_of_its_own_schema(
    pgqueue_blank_database: str, connection: psycopg.Connection[Any], asleep: Callable[..., None]
) -> None:
    url = pgqueue_blank_database
    ran: dict[str, list[int]] = {home: [] for home in HOMES}
    apps = {home: PgQueue(url, schema=home) for home in HOMES}
    for home, app in apps.items():

        def run(number: int, home: str = home) -> None:
            ran[home].append(number)

        app.task(name="t")(run)
    with ExitStack() as working:
        for app in apps.values():  # a poll would find whatever a wake-up missed: there is none
            working.enter_context(_working(app, poll_interval=600.0, sweep_interval=600.0))
        asleep(workers=2)
        beds = {home: sleepers(connection, home) for home in HOMES}
        ids = {home: bed[0][0] for home, bed in beds.items()}
        for worker_id in ids.values():
            connection.execute(SQL("listen {}").format(Identifier(channel(worker_id))))

        # One job: one worker is woken, the other sleeps on.
        for home, other in (HOMES, HOMES[::-1]):
            before = sleepers(connection, other)
            apps[home].tasks["t"].options(unique_key="same").delay(1)
            eventually(lambda home=home: ran[home] == [1])
            told = {notify.channel for notify in connection.notifies(timeout=0)}
            assert told <= {channel(ids[home])}
            assert sleepers(connection, other) == before
            asleep(workers=2)

        # Many at once, from both sides, in Python and from SQL, under keys of the same names.
        def enqueue(home: str, start: int) -> None:
            with psycopg.connect(url, autocommit=True) as own:
                for number in range(start, start + 60, 2):
                    apps[home].tasks["t"].options(unique_key=f"k{number}").enqueue(own, number)
                    query = SQL("select {}.enqueue('t', jsonb_build_array(%s::int), unique_key => %s)")
                    own.execute(query.format(Identifier(home)), [number + 1, f"k{number + 1}"])

        threads = [threading.Thread(target=enqueue, args=(home, 100 * (n + 1))) for n, home in enumerate(HOMES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for n, home in enumerate(HOMES):
            wanted = [1, *range(100 * (n + 1), 100 * (n + 1) + 60)]
            eventually(lambda home=home, wanted=wanted: sorted(ran[home]) == wanted)
    for app in apps.values():
        app.close()


def test_two_worker_processes_and_the_command_line_keep_to_their_schemas(
    pgqueue_blank_database: str,
    connection: psycopg.Connection[Any],
    start: Start,
    ledger: Ledger,
    asleep: Callable[..., None],
) -> None:
    url = pgqueue_blank_database
    processes = {
        MIXED: start(url=url, schema=MIXED, poll_interval=600),
        ODD: start(url=url, env={"PGQUEUE_SCHEMA": ODD}, poll_interval=600),
    }
    for home in HOMES:
        there = SQL("select from {}.workers").format(Identifier(home))
        eventually(lambda there=there: connection.execute(there).fetchall(), timeout=60)
    asleep(workers=2)
    for home in HOMES:
        done = subprocess.run(
            [sys.executable, "-m", "pgqueue", "--schema", home, "enqueue", "tests.crash.tasks.quick"],
            env=environment(PGQUEUE_DATABASE_URL=url),
            cwd=os.getcwd(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
    finished = SQL("select worker_id::text from {}.finished_jobs where state = 'completed'")
    for home in HOMES:
        look = finished.format(Identifier(home))
        (row,) = eventually(lambda look=look: connection.execute(look).fetchall(), timeout=30)
        registered = connection.execute(SQL("select id::text, pid from {}.workers").format(Identifier(home))).fetchall()
        assert dict(registered).keys() == {row[0]}
        assert set(dict(registered).values()) <= set(processes[home].children())
    assert len(ledger.entries("finished")) == 2
    for process in processes.values():
        process.signal(15)  # type: ignore[arg-type]
    assert [process.wait() for process in processes.values()] == [0, 0]
