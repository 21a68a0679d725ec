"""Databases on which pgqueue cannot work: each is named in one line, with what to do, by whoever meets it first.

The server that is too old or no PostgreSQL is a real one that says so: its own answers are replaced, in one database.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier, Literal

from pgqueue import PgQueue, SchemaError, UnusableConnection, migrate
from pgqueue.doctor import examine
from pgqueue.embedded import EmbeddedPostgres
from pgqueue.monitor import unusable
from pgqueue.testing import _temp_dir
from tests.crash.processes import APP, ROOT, environment
from tests.life.callers import AUTOCOMMIT, KINDS, caller, done
from tests.migrate.pictures import picture
from tests.roles import new_role

COMMANDS = (("migrate",), ("worker", APP, "--grace", "5"), ("doctor",))


def said(url: str, *command: str) -> tuple[int, str]:
    """(exit code, the one line) of a command of its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue", *command],
        env=environment(PGQUEUE_DATABASE_URL=url),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    (line,) = done.stderr.splitlines() or [""]
    return done.returncode, line


def refused_by_all(url: str, says: str, *, commands: bool = True) -> None:
    """migrate, worker and doctor, as calls and, for a second each, as commands."""
    for command in COMMANDS if commands else ():
        code, line = said(url, *command)
        assert says in line, line
        assert line.startswith("pgqueue: ")
        assert code == 3
    app = PgQueue(url)
    for call in (lambda: migrate.upgrade(url), app.worker(drain=True).run, lambda: examine(url)):
        with pytest.raises(SchemaError) as caught:
            call()
        assert says in str(caught.value)
        assert str(caught.value).isprintable()
    app.close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_named_with_how_to_make_one(pgqueue_server: str, encoding: str) -> None:
    name = f"pgqueue_test_{encoding.lower()}"
    create = SQL("create database {} encoding {} locale 'C' template template0").format(
        Identifier(name), Literal(encoding)
    )
    with psycopg.connect(pgqueue_server, autocommit=True) as server:
        server.execute(create)
        try:
            url = make_conninfo(pgqueue_server, dbname=name)
            refused_by_all(url, f"the database's encoding is {encoding}", commands=encoding == "SQL_ASCII")
            with psycopg.connect(url) as connection:
                found = connection.execute("select count(*) from pg_namespace where nspname = 'pgqueue'").fetchone()
            assert found == (0,)
        finally:
            server.execute(SQL("drop database {} with (force)").format(Identifier(name)))


@pytest.mark.parametrize(
    ("version", "number", "says"),
    [
        (
            "PostgreSQL 13.14 (Debian 13.14-1.pgdg120+2) on x86_64-pc-linux-gnu, compiled by gcc",
            "130014",
            "the server is PostgreSQL 13.14: pgqueue needs PostgreSQL 14 or newer",
        ),
        (
            "CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu, built 2023/09/27 01:53:43, go1.19.10)",
            "130000",
            "the server is CockroachDB,",
        ),
        (
            "PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu, compiled by clang version 17.0.6",
            "150002",
            "the server is YugabyteDB,",
        ),
    ],
    ids=["PostgreSQL 13", "CockroachDB", "YugabyteDB"],
)
def test_a_server_that_is_too_old_or_no_postgresql_is_named(
    pgqueue_database: str, connection: psycopg.Connection[Any], version: str, number: str, says: str
) -> None:
    before = picture(connection)
    connection.execute("set allow_system_table_mods = on")
    connection.execute(
        SQL("create or replace function pg_catalog.version() returns text language sql as {}").format(
            Literal(SQL("select {}::text").format(Literal(version)).as_string())
        )
    )
    settings = {"server_version_num": number, "server_encoding": "UTF8"}
    cases = SQL(" ").join(SQL("when {} then {}").format(Literal(k), Literal(v)) for k, v in settings.items())
    body = SQL("select case $1 {} end").format(cases).as_string()
    connection.execute(
        SQL(
            "create or replace function pg_catalog.current_setting(text, boolean) returns text language sql as {}"
        ).format(Literal(body))
    )
    refused_by_all(pgqueue_database, says, commands="CockroachDB" in version)
    assert picture(connection) == before


@pytest.mark.parametrize(
    ("version", "number", "encoding", "standby", "says"),
    [
        ("PostgreSQL 14.0 on x86_64", 140000, "UTF8", False, None),
        ("PostgreSQL 18.1 (Debian 18.1-1) on aarch64", 180001, "UTF8", False, None),
        ("PostgreSQL 16.4 (EnterpriseDB Advanced Server 16.4.1) on x86_64", 160004, "UTF8", False, None),
        ("PostgreSQL 8.0.2 on i686, Redshift 1.0.77467", 80002, "UTF8", False, "Amazon Redshift"),
        ("CrateDB 5.4.0 (built 1/ea3f/Linux)", 105000, "", False, "the server is CrateDB, not PostgreSQL"),
        ("", 0, "", False, "the server is something else, not PostgreSQL"),
        ("PostgreSQL 12.3, compiled by Visual C++ build 1914, 64-bit, QuestDB", 120003, "UTF8", False, "12.3: "),
        ("PostgreSQL 17.2 on x86_64", 170002, "EUC_JP", False, "encoding is EUC_JP"),
        ("PostgreSQL 17.2 on x86_64", 170002, "UTF8", True, "a standby"),
    ],
)
def test_what_a_server_says_of_itself_decides(
    version: str, number: int, encoding: str, standby: bool, says: str | None
) -> None:
    why = unusable(version, number, encoding, standby)
    assert why is None if says is None else says in str(why)


# -- a standby --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standby() -> Iterator[str]:
    """URL of a server in recovery, with pgqueue's tables and a job: a primary that was stopped and told to follow
    nobody."""
    with tempfile.TemporaryDirectory(dir=_temp_dir()) as directory:
        Path(directory).chmod(0o755)  # for root the server runs as somebody else
        data = Path(directory, "data")
        with EmbeddedPostgres(data, fsync=False) as primary:
            migrate.upgrade(primary.url())
            app = PgQueue(primary.url())
            app.task(name="test.task")(lambda: None).delay()
            app.close()
        (data / "standby.signal").touch()
        with EmbeddedPostgres(data, fsync=False) as server:
            yield server.url()
        shutil.rmtree(data)


def test_a_standby_is_named_and_the_worker_does_not_wait_for_it_to_become_the_primary(standby: str) -> None:
    refused_by_all(standby, "the server is a standby, where nothing can be written: connect to the primary")
    code, line = said(standby, "enqueue", "test.task")
    assert (code, "the server is a standby" in line) == (3, True)
    app = PgQueue(standby)
    with pytest.raises(UnusableConnection, match="standby"):
        app.task(name="t")(lambda: None).delay()
    app.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_enqueue_on_a_standby_is_refused_before_any_sql_and_the_transaction_goes_on(kind: str, standby: str) -> None:
    task = PgQueue(standby).task(name="t")(lambda: None)

    async def application(isolation: str | None) -> None:
        async with caller(kind, standby, isolation) as mine:
            assert await mine.execute("select 1") == [(1,)]
            for call in (lambda: task.enqueue(mine.connection), lambda: task.enqueue_many(mine.connection, [()])):
                with pytest.raises(UnusableConnection, match=r"the server is a standby.*connect to the primary"):
                    await done(call())
            assert await mine.execute("select count(*)::int from pgqueue.jobs") == [(1,)]

    asyncio.run(application(None))
    asyncio.run(application(AUTOCOMMIT))


def test_what_only_reads_works_on_a_standby_and_what_writes_is_told_so_in_one_line(standby: str) -> None:
    app = PgQueue(standby)
    (job,) = app.jobs.list()
    assert app.jobs.get(job.id).task == "test.task"
    assert app.dead.list() == []
    with pytest.raises(UnusableConnection, match="standby"):
        app.jobs.cancel(job.id)
    app.close()
    for command in (("jobs", "list"), ("jobs", "show", str(job.id)), ("dead", "list")):
        assert said(standby, *command) == (0, "")
    for command in (("jobs", "cancel", str(job.id)), ("jobs", "retry", str(job.id)), ("dead", "purge", "--all")):
        code, line = said(standby, *command)
        assert (code, "the server is a standby" in line) == (3, True)
    with psycopg.connect(standby) as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute("select pgqueue.enqueue('t')")
    diag = refused.value.diag
    assert (diag.sqlstate, diag.message_hint) == ("PQ003", "Connect to the primary.")


def test_what_only_reads_works_where_a_role_may_only_read(pgqueue_database: str) -> None:
    read = ("usage on schema pgqueue", "select on all tables in schema pgqueue")
    with new_role(pgqueue_database, *read) as role:
        url = make_conninfo(pgqueue_database, user=role, options="-c default_transaction_read_only=on")
        assert said(url, "jobs", "list") == (0, "")
        code, line = said(url, "jobs", "cancel", "1")
        assert (code, "read-only" in line) == (3, True)


# -- tables and rights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("drop table pgqueue.sleepers cascade", "sleepers"),
        ("drop table pgqueue.dead_jobs cascade", "dead_jobs"),
        ("alter table pgqueue.workers drop column expires_at cascade", "expires_at"),
        ("drop function pgqueue.prune", "prune"),
    ],
)
def test_half_a_schema_is_named_at_the_start_by_what_is_missing(
    pgqueue_database: str, connection: psycopg.Connection[Any], damage: str, says: str
) -> None:
    connection.execute(damage)
    for command in COMMANDS[1:] if says != "prune" else COMMANDS[1:2]:  # without that function doctor can work
        code, line = said(pgqueue_database, *command)
        assert code == 3
        assert line.startswith('pgqueue: schema "pgqueue" stands at the right migration and is not whole (')
        assert says in line
    if says == "prune":
        assert any("function prune" in one.detail for one in examine(pgqueue_database) if one.level == "warning")
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)


@pytest.mark.parametrize("stands_at", ["0001", "9999"], ids=["older", "newer"])
def test_a_worker_process_and_doctor_refuse_another_versions_schema_and_name_both(
    pgqueue_database: str, connection: psycopg.Connection[Any], stands_at: str
) -> None:
    connection.execute("update pgqueue.alembic_version set version_num = %s", [stands_at])
    for command in COMMANDS[1:]:
        code, line = said(pgqueue_database, *command)
        assert code == 3
        assert f"stands at migration {stands_at}, this version of pgqueue needs {migrate.head()}" in line
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)


def test_a_version_table_without_a_version_is_no_schema(
    pgqueue_database: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("delete from pgqueue.alembic_version")
    code, line = said(pgqueue_database, *COMMANDS[1])
    assert (code, "holds no pgqueue tables: run `pgqueue migrate`" in line) == (3, True)
    code, line = said(pgqueue_database, *COMMANDS[0])  # the tables stand in the way of those it would make
    assert (code, 'changed nothing: relation "jobs" already exists' in line) == (3, True)


ALL = "select, insert, update, delete on all tables in schema pgqueue"


@pytest.mark.parametrize(
    ("grants", "revoked", "says"),
    [
        ((), None, "permission denied for schema pgqueue"),
        (("usage on schema pgqueue",), None, "permission denied for table alembic_version"),
        (
            ("usage on schema pgqueue", "select on pgqueue.alembic_version"),
            None,
            "permission denied for table",
        ),
        (("usage on schema pgqueue", ALL), "insert on pgqueue.dead_jobs", "permission denied for table dead_jobs"),
        (("usage on schema pgqueue", ALL), "update on pgqueue.jobs", "permission denied for table jobs"),
    ],
)
def test_a_role_that_lacks_a_right_is_told_which_and_the_worker_does_not_start(
    pgqueue_database: str,
    connection: psycopg.Connection[Any],
    grants: tuple[str, ...],
    revoked: str | None,
    says: str,
) -> None:
    with new_role(pgqueue_database, *grants) as role:
        if revoked:
            connection.execute(SQL("revoke {} from {}").format(SQL(revoked), Identifier(role)))
        code, line = said(make_conninfo(pgqueue_database, user=role), *COMMANDS[1])
    assert code == 3
    assert line.startswith("pgqueue: the role may not ")
    assert says in line
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)
