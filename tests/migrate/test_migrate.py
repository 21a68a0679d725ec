"""Migrations: made once, from however many machines; taken back without a trace; refused in one clear line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from pgqueue import ConfigurationError, PgQueue, SchemaError, migrate
from pgqueue.sql import source
from tests.helpers import eventually
from tests.migrate.pictures import picture
from tests.roles import new_role


@pytest.fixture
def blank(pgqueue_blank_database: str) -> str:
    return pgqueue_blank_database


@pytest.fixture
def eyes(blank: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(blank, autocommit=True) as connection:
        yield connection


def relations(connection: psycopg.Connection[Any], schema: str = "pgqueue") -> set[str]:
    query = "select relname from pg_class where relnamespace = %s::regnamespace and relkind in ('r', 'p', 'v')"
    return {name for (name,) in connection.execute(query, [schema]).fetchall()}


# -- up ------------------------------------------------------------------------------------------------------------


def test_a_blank_database_gets_the_whole_schema(blank: str, eyes: psycopg.Connection[Any]) -> None:
    assert migrate.current(blank) is None
    migrate.upgrade(blank)
    assert migrate.current(blank) == migrate.head()
    expected = {"jobs", "job_errors", "finished_jobs", "dead_jobs", "workers", "sleepers", "queues", "retention"}
    expected |= {"schedules", "progress", "paused_tasks", "unique_periods", "job_logs", "waiters"}
    views = {name for name, _ in source("view")}
    assert {name for name in relations(eyes) if not name.startswith("finished_jobs_")} == expected | views | {
        "alembic_version"
    }


def test_nothing_outside_of_the_schema_is_touched(blank: str, eyes: psycopg.Connection[Any]) -> None:
    outside = (
        "select oid from pg_class where relnamespace::regnamespace::text not in ('pgqueue', 'pg_toast') "
        "union all select oid from pg_proc where pronamespace::regnamespace::text <> 'pgqueue' "
        "union all select oid from pg_extension"
    )
    before = sorted(eyes.execute(outside).fetchall())
    migrate.upgrade(blank)
    assert sorted(eyes.execute(outside).fetchall()) == before


def test_a_second_migration_changes_nothing(blank: str, eyes: psycopg.Connection[Any]) -> None:
    migrate.upgrade(blank)
    eyes.execute("insert into pgqueue.jobs (task) values ('t')")
    before = picture(eyes), eyes.execute("select xmin, id from pgqueue.jobs").fetchall()
    migrate.upgrade(blank)
    migrate.to(blank, "pgqueue", migrate.head())
    assert (picture(eyes), eyes.execute("select xmin, id from pgqueue.jobs").fetchall()) == before


def test_four_machines_at_once_make_one_schema(blank: str, eyes: psycopg.Connection[Any]) -> None:
    command = [sys.executable, "-W", "error", "-m", "pgqueue", "migrate"]
    environment = {**os.environ, "PGQUEUE_DATABASE_URL": blank}
    machines = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [machine.communicate(timeout=60) for machine in machines]
    assert [machine.returncode for machine in machines] == [0] * 4, said
    assert all(err == "" for _, err in said)
    assert migrate.current(blank) == migrate.head()
    assert eyes.execute("select count(*) from pgqueue.alembic_version").fetchone() == (1,)


def test_four_threads_at_once_make_one_schema(blank: str) -> None:
    errors: list[BaseException] = []

    def up() -> None:
        try:
            migrate.upgrade(blank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert migrate.current(blank) == migrate.head()


def test_a_migration_that_waits_in_vain_for_another_says_so(
    blank: str, eyes: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_WAIT", 50)
    with eyes.transaction():
        eyes.execute("select pg_advisory_xact_lock(hashtextextended('pgqueue migrate pgqueue', 0))")
        with pytest.raises(SchemaError, match="another migration of this schema is under way"):
            migrate.upgrade(blank)
        migrate.upgrade(blank, "another")  # of another schema is another matter
    migrate.upgrade(blank)


def test_no_connection_is_left_open(blank: str, eyes: psycopg.Connection[Any]) -> None:
    migrate.upgrade(blank)
    migrate.downgrade(blank)
    query = "select 1 from pg_stat_activity where datname = current_database() and application_name like 'pgqueue%'"
    eventually(lambda: not eyes.execute(query).fetchall())


# -- down ----------------------------------------------------------------------------------------------------------


def test_the_way_down_leaves_an_empty_schema_and_the_way_up_again_the_same_one(
    blank: str, eyes: psycopg.Connection[Any]
) -> None:
    migrate.upgrade(blank)
    before = picture(eyes)
    eyes.execute("insert into pgqueue.jobs (task) values ('t')")
    migrate.downgrade(blank)
    assert relations(eyes) == {"alembic_version"}
    assert eyes.execute("select count(*) from pgqueue.alembic_version").fetchone() == (0,)
    for catalogue in ("pg_proc where pronamespace", "pg_type where typrelid = 0 and typelem = 0 and typnamespace"):
        assert eyes.execute(f"select count(*) from {catalogue} = 'pgqueue'::regnamespace").fetchone() == (0,)
    assert migrate.current(blank) is None
    migrate.upgrade(blank)
    assert picture(eyes) == before


def test_the_way_to_and_from_retention_keeps_the_rights_on_prune_and_what_it_does(
    blank: str, eyes: psycopg.Connection[Any]
) -> None:
    migrate.to(blank, "pgqueue", "0002")
    before = picture(eyes)
    migrate.to(blank, "pgqueue", "0003")
    with new_role(blank, "execute on function pgqueue.prune(integer, double precision)") as role:
        may = f"select has_function_privilege('{role}', 'pgqueue.prune(integer, double precision)', 'execute')"
        for revision in ("0002", "0003", "0002"):
            migrate.to(blank, "pgqueue", revision)
            assert eyes.execute("select made from pgqueue.prune(7, 86400)").fetchone() == (0,)
            assert eyes.execute(may).fetchone() == (True,)
    assert picture(eyes) == before


def test_who_may_enqueue_from_sql_still_may_when_the_function_has_got_another_parameter(
    blank: str, eyes: psycopg.Connection[Any]
) -> None:
    def rights() -> set[tuple[Any, ...]]:
        query = (
            "select case grantee when 0 then 'public' else pg_get_userbyid(grantee) end, is_grantable"
            " from pg_proc, aclexplode(proacl) where proname = 'enqueue' and grantee <> proowner"
        )
        return set(eyes.execute(query).fetchall())

    migrate.to(blank, "pgqueue", "0004")
    before = picture(eyes)
    with new_role(blank, "usage on schema pgqueue") as one, new_role(blank) as other:
        eyes.execute(f"grant execute on all functions in schema pgqueue to {one} with grant option")
        eyes.execute(f"grant execute on all functions in schema pgqueue to {other}")
        eyes.execute("grant execute on all functions in schema pgqueue to public")
        granted = {("public", False), (one, True), (other, False)}
        for revision in ("0005", "0004", "0005"):
            migrate.to(blank, "pgqueue", revision)
            assert rights() == granted
        eyes.execute("revoke execute on all functions in schema pgqueue from public")
        migrate.to(blank, "pgqueue", "0004")
        assert rights() == granted - {("public", False)}
    migrate.to(blank, "pgqueue", "0005")
    assert rights() == set()
    migrate.to(blank, "pgqueue", "0004")
    assert picture(eyes) == before


def test_to_goes_up_or_down_whichever_way_it_is(blank: str) -> None:
    for revision, expected in (
        ("base", None),
        ("0001", "0001"),
        ("base", None),
        ("base", None),
        ("head", migrate.head()),
    ):
        migrate.to(blank, "pgqueue", revision)
        assert migrate.current(blank) == expected


@pytest.mark.parametrize("revision", ["9999", "", "000", "-1", "+1", "0001:base", "x; drop table y"])
def test_a_migration_that_does_not_exist_is_refused_with_those_that_do(blank: str, revision: str) -> None:
    with pytest.raises(ConfigurationError, match=r"there are base, 0001"):
        migrate.to(blank, "pgqueue", revision)
    assert migrate.current(blank) is None


# -- for a DBA to read -------------------------------------------------------------------------------------------------


def psql(url: str, text: str) -> None:
    """Runs it as a DBA does: `psql shop < file`, without a further option."""
    done = subprocess.run(["psql", url], input=text, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("psql") is None, reason="no psql here")
@pytest.mark.parametrize("schema", ["pgqueue", '100% "odd": :name \\d $$', "it's; {schema}"])
def test_the_printed_sql_is_what_psql_takes_up_and_down_and_makes_the_same_schema(
    blank: str, eyes: psycopg.Connection[Any], schema: str
) -> None:
    every = migrate.revisions()
    psql(blank, migrate.script(schema))
    printed = picture(eyes, schema)
    assert migrate.current(blank, schema) == migrate.head()
    migrate.upgrade(blank, schema)  # finds nothing to do
    assert picture(eyes, schema) == printed
    assert migrate.check(blank, schema).differences == []
    for later, earlier in reversed(list(zip(every[1:], every, strict=False))):
        psql(blank, migrate.script(schema, f"{later}:{earlier}"))
        assert migrate.current(blank, schema) == earlier
    psql(blank, migrate.script(schema, f"{every[0]}:head"))
    assert picture(eyes, schema) == printed
    psql(blank, migrate.script(schema, "head:base"))
    assert migrate.current(blank, schema) is None
    migrate.upgrade(blank, schema)
    assert picture(eyes, schema) == printed


def test_printing_the_sql_needs_no_database() -> None:
    text = migrate.script()
    assert text.startswith("BEGIN;\n")
    assert text.rstrip().endswith("COMMIT;")
    assert ";;" not in text


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_migration_that_fails_midway_changes_nothing(blank: str, eyes: psycopg.Connection[Any]) -> None:
    eyes.execute("create schema pgqueue")
    eyes.execute("create view pgqueue.queue_stats as select 1 as one")  # in the way of the last step but one
    with pytest.raises(SchemaError, match='changed nothing: relation "queue_stats" already exists'):
        migrate.upgrade(blank)
    assert relations(eyes) == {"queue_stats"}


def test_a_role_that_may_not_create_a_schema_is_told_so_in_one_line(blank: str, eyes: psycopg.Connection[Any]) -> None:
    with new_role(blank) as role:
        with pytest.raises(SchemaError) as caught:
            migrate.upgrade(_as(blank, role))
        message = str(caught.value)
        assert message.isprintable()
        assert message.startswith("the role may not migrate, and nothing was changed: permission denied for database")
        assert message.endswith(f'GRANT CREATE ON DATABASE "{eyes.info.dbname}" TO "{role}"')
        assert caught.value.__suppress_context__
    assert eyes.execute("select to_regnamespace('pgqueue')").fetchone() == (None,)


def test_a_role_without_create_on_the_database_migrates_a_schema_that_was_made_for_it(
    blank: str, eyes: psycopg.Connection[Any]
) -> None:
    with new_role(blank) as role:
        eyes.execute(psycopg.sql.SQL("create schema pgqueue authorization {}").format(psycopg.sql.Identifier(role)))
        migrate.upgrade(_as(blank, role))
        migrate.upgrade(_as(blank, role))
        assert migrate.current(_as(blank, role)) == migrate.head()


def _as(url: str, role: str) -> str:
    return (
        url.replace("postgres@", f"{role}@", 1)
        if "postgres@" in url
        else psycopg.conninfo.make_conninfo(url, user=role)
    )


def test_an_unreachable_database_is_an_operational_error() -> None:
    nowhere = "postgresql://127.0.0.1:1/nowhere"
    for act in (migrate.upgrade, migrate.downgrade, migrate.current):
        with pytest.raises((psycopg.OperationalError, OperationalError)):
            act(nowhere)


@pytest.mark.parametrize(
    ("stands_at", "what_to_do"),
    [("0000", "run `pgqueue migrate`"), ("9999", "install the version that migrated it")],
    ids=["older", "newer"],
)
def test_a_worker_refuses_another_versions_schema_and_names_both(
    app: PgQueue, connection: psycopg.Connection[Any], stands_at: str, what_to_do: str
) -> None:
    connection.execute("update pgqueue.alembic_version set version_num = %s", [stands_at])
    with pytest.raises(SchemaError) as caught:
        app.worker(drain=True).run()
    for part in ('"pgqueue"', stands_at, migrate.head(), what_to_do):
        assert part in str(caught.value)


@pytest.mark.parametrize("state", ["no schema", "migrated away"])
def test_a_worker_refuses_a_database_without_tables(blank: str, state: str) -> None:
    if state == "migrated away":
        migrate.upgrade(blank)
        migrate.downgrade(blank)
    with pytest.raises(SchemaError, match="holds no pgqueue tables: run `pgqueue migrate`"):
        PgQueue(blank).worker(drain=True).run()


def test_a_schema_from_the_future_is_not_migrated_and_the_message_names_both_versions(
    pgqueue_database: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("update pgqueue.alembic_version set version_num = '9999'")
    before = picture(connection)
    for act in (migrate.upgrade, migrate.downgrade):
        with pytest.raises(SchemaError) as caught:
            act(pgqueue_database)
        assert "9999" in str(caught.value)
        assert migrate.head() in str(caught.value)
    assert picture(connection) == before
