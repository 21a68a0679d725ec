"""What the migrations make is what schema.py and sql/ declare: tables, constraints, functions, views; who may what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from pgqueue import migrate, rights
from pgqueue.schema import INVOKERS, INVOKERS_SINCE, STORAGE, VERSION_TABLE, metadata
from pgqueue.sql import definitions, source
from pgqueue.testing import _new_database, _url
from tests.roles import new_role

DECLARED = metadata("pgqueue")
PARTITION = re.compile(r"finished_jobs_\d{8}")


@pytest.fixture(scope="module")
def database(pgqueue_server: str, pgqueue_template: str) -> Iterator[str]:
    """A migrated database, and beside it a schema `of_the_code` that is made from schema.py and sql/ alone."""
    with _new_database(pgqueue_server, pgqueue_template) as name:
        url = _url(pgqueue_server, name)
        engine = _engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text("create schema of_the_code"))
            metadata("of_the_code").create_all(connection)
            for _, text in definitions("of_the_code"):
                connection.exec_driver_sql(text.replace("%", "%%"))
        engine.dispose()
        yield url


def _engine(url: str) -> sa.Engine:
    return sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool)


@pytest.fixture(scope="module")
def look(database: str) -> Iterator[Any]:
    """Rows of a query."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield lambda query, *params: connection.execute(query, params or None).fetchall()


# -- tables ------------------------------------------------------------------------------------------------------------


def differences(url: str) -> list[Any]:
    """What Alembic would change to make the database as declared; the partitions of days are nobody's business."""

    def ours(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name == "pgqueue"
        return not PARTITION.match((name if kind == "table" else parents.get("table_name")) or "")

    options = {
        "include_schemas": True,
        "include_name": ours,
        "compare_type": True,
        "compare_server_default": True,
        "version_table_schema": "pgqueue",
    }
    engine = _engine(url)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts=options), DECLARED)
    engine.dispose()
    return found


def test_alembic_finds_nothing_to_change_in_a_migrated_database(database: str) -> None:
    assert differences(database) == []


@pytest.mark.parametrize(
    "change",
    [
        "alter table pgqueue.jobs add column colour text",
        "alter table pgqueue.retention alter column keep type bigint",
        "alter table pgqueue.jobs alter column queue drop default",
        "alter table pgqueue.dead_jobs alter column reason drop not null",
        "drop index pgqueue.jobs_expiring",
        "drop table pgqueue.queues cascade",
        "comment on column pgqueue.jobs.fence is 'something else'",
    ],
)
def test_alembic_would_find_what_somebody_changed(pgqueue_database: str, change: str) -> None:
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        connection.execute(change)
    assert differences(pgqueue_database)


def test_check_finds_nothing_to_name_in_a_migrated_database(database: str) -> None:
    """What it names when there is something: tests/migrate/test_check.py."""
    found = migrate.check(database)
    assert (found.version, found.differences, found.notes) == (migrate.head(), [], [])


def expressions(look: Any, schema: str) -> dict[str, str]:
    """What Alembic does not compare: every constraint and index as PostgreSQL writes it, by table and name."""
    rows = look(
        "select conrelid::regclass::text || ' ' || conname, pg_get_constraintdef(oid) from pg_constraint "
        "where connamespace = %s::regnamespace and contype <> 'n' union all "
        "select tablename || ' ' || indexname, indexdef from pg_indexes where schemaname = %s",
        schema,
        schema,
    )
    plain = {name.replace(f"{schema}.", ""): text.replace(f"{schema}.", "") for name, text in rows}
    return {name: text for name, text in plain.items() if not PARTITION.match(name) and VERSION_TABLE not in name}


def test_every_constraint_and_index_is_as_declared(look: Any) -> None:
    """Expressions and all; and every one that schema.py names has that name."""
    migrated = expressions(look, "pgqueue")
    assert expressions(look, "of_the_code") == migrated
    named = {f"{table.name} {one.name}" for table in DECLARED.tables.values() for one in table.constraints if one.name}
    assert len(named) > 10
    assert named <= migrated.keys()


def test_every_table_is_logged_or_not_as_declared(look: Any) -> None:
    """UNLOGGED is empty after a crash: only the sleepers may be, and who waits for jobs."""
    query = (
        "select relname from pg_class where relkind in ('r', 'p') and relnamespace = %s::regnamespace "
        "and relpersistence = 'u' order by relname"
    )
    assert look(query, "pgqueue") == look(query, "of_the_code") == [("sleepers",), ("waiters",)]


def test_every_constraint_begins_with_its_tables_name(look: Any) -> None:
    """An error of PostgreSQL's then says where to look."""
    rows = look(
        "select conrelid::regclass::text, conname from pg_constraint "
        "where connamespace = 'pgqueue'::regnamespace and contype <> 'n' and conrelid <> 0"
    )
    assert rows
    for table, name in rows:
        assert name.startswith(PARTITION.sub("finished_jobs", table.removeprefix("pgqueue.").split("_20")[0])), (
            table,
            name,
        )


def test_storage_parameters_are_as_declared(look: Any) -> None:
    rows = look(
        "select relname, reloptions from pg_class "
        "where relnamespace = 'pgqueue'::regnamespace and reloptions is not null"
    )
    found = {name: dict(one.split("=") for one in options) for name, options in rows}
    ((server,),) = look("select current_setting('server_version_num')::int / 10000")
    views = {view: {"security_invoker": "true"} for view in INVOKERS} if (server,) >= INVOKERS_SINCE else {}
    assert found == STORAGE | views


def test_a_view_shows_a_role_no_more_than_the_tables_do_but_the_one_that_says_why() -> None:
    assert {name for name, _ in source("view")} - set(INVOKERS) == rights.BY_OWNER


def test_partitions_lie_ready_for_today_and_the_week_ahead(look: Any) -> None:
    ready = look(
        "select pg_get_expr(relpartbound, oid) from pg_class where relispartition and relkind = 'r' "
        "and relnamespace = 'pgqueue'::regnamespace order by relname"
    )
    days = look("select (now() at time zone 'utc')::date + i from generate_series(0, 8) as i")
    assert len(ready) == 8
    for (bounds,), (first,), (second,) in zip(ready, days[:-1], days[1:], strict=True):
        assert re.findall(r"\d{4}-\d\d-\d\d", bounds) == [str(first), str(second)]


# -- functions and views -----------------------------------------------------------------------------------------------

FUNCTIONS = (
    "select proname, pg_get_functiondef(oid) from pg_proc where pronamespace = %s::regnamespace",
    "select viewname, definition from pg_views where schemaname = %s",
)


def texts(look: Any, schema: str) -> dict[str, str]:
    found = {name: text for query in FUNCTIONS for name, text in look(query, schema)}
    # Not the other way round: "pgqueue" also begins the names of settings that the view of the database's health reads.
    return {name: re.sub(r"\bof_the_code\b", "pgqueue", text) for name, text in found.items()}


def test_functions_and_views_of_a_migrated_database_are_those_of_sql(look: Any) -> None:
    declared, migrated = texts(look, "of_the_code"), texts(look, "pgqueue")
    assert declared.keys() == migrated.keys() == {name for name, _ in source("function", "view")}
    for name in declared:
        assert declared[name] == migrated[name], name


def test_each_migration_keeps_the_texts_that_it_was_written_with() -> None:
    """A migration must make the same in five years: it may not read a file that somebody edits."""
    versions = migrate.location() / "versions"
    for revision in migrate.revisions():
        (module,) = versions.glob(f"{revision}_*.py")
        code = module.read_text(encoding="utf-8")
        assert "definitions" not in code
        assert "pgqueue.schema" not in code
        frozen = versions / revision
        assert not frozen.is_dir() or f'"{revision}"' in code
    newest = {}
    for revision in migrate.revisions():
        for file in (versions / revision).glob("*.sql"):
            newest[re.sub(r"^\d+_", "", file.stem)] = file.read_text(encoding="utf-8")
    assert newest == dict(source("view", "function")), "sql/ was changed: write a migration that replaces what it makes"


INVOKER_FUNCTIONS = {"enqueue", "redrive", "why", "cancel", "change", "retry_now"}
INVOKER_FUNCTIONS |= {"pause", "resume", "pause_task", "resume_task"}
INVOKER_FUNCTIONS |= {"add_schedule", "pause_schedule", "resume_schedule", "remove_schedule", "run_schedule"}


@pytest.mark.parametrize("security", [True, False], ids=["definer", "invoker"])
def test_no_function_depends_on_its_callers_search_path_or_is_everybodys_to_call(look: Any, security: bool) -> None:
    rows = look(
        "select proname, proconfig, has_function_privilege('public', oid, 'execute') from pg_proc "
        "where pronamespace = 'pgqueue'::regnamespace and prosecdef = %s",
        security,
    )
    assert {row[0] for row in rows} == ({"prune"} if security else INVOKER_FUNCTIONS)
    for name, settings, everybody in rows:
        assert "search_path=pg_catalog, pg_temp" in settings, name
        assert not everybody, name


def test_a_definers_function_ends_up_in_its_own_tables_whatever_the_caller_has_put_in_the_way(
    pgqueue_database: str,
) -> None:
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        connection.execute("create temp table finished_jobs (id int)")
        connection.execute("create schema evil")
        connection.execute(
            "create function evil.to_char(timestamptz, text) returns text language sql as $$ select 'evil' $$"
        )
        connection.execute(
            "create function evil.format(text, text, text) returns text language sql as $$ select 'x' $$"
        )
        connection.execute("set search_path = evil, pg_temp, pg_catalog, public")
        assert connection.execute("select made from pgqueue.prune(9, 86400)").fetchone() == (2,)
        assert connection.execute("select count(*) from pg_temp.finished_jobs").fetchone() == (0,)


def test_a_role_without_rights_can_call_none_of_them(pgqueue_database: str) -> None:
    with (
        new_role(pgqueue_database, "usage on schema pgqueue") as role,
        psycopg.connect(pgqueue_database, autocommit=True, user=role) as connection,
    ):
        for call in (
            "enqueue('t')",
            "redrive(1)",
            "why(1)",
            "prune(7, 86400)",
            "add_schedule('s', 't')",
            "run_schedule('s')",
            "cancel(1)",
            "pause('q')",
            "change(1, 2)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for function"):
                connection.execute(f"select pgqueue.{call}")


def test_a_role_that_may_call_prune_makes_partitions_without_a_right_to_make_tables(pgqueue_database: str) -> None:
    rights = ("usage on schema pgqueue", "execute on function pgqueue.prune(integer, double precision)")
    with (
        new_role(pgqueue_database, *rights) as role,
        psycopg.connect(pgqueue_database, autocommit=True, user=role) as connection,
    ):
        assert connection.execute("select made from pgqueue.prune(9, 86400)").fetchone() == (2,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("create table pgqueue.mine ()")


def test_which_migrations_there_are_is_told_by_their_names_as_alembic_tells_it() -> None:
    scripts = ScriptDirectory(str(migrate.location()))
    assert tuple(reversed([one.revision for one in scripts.walk_revisions()])) == migrate.revisions()
    assert scripts.get_current_head() == migrate.head()


def test_where_the_migrations_are_is_found_in_a_checkout() -> None:
    assert migrate.location() == Path(migrate.__file__).parent.parent / "alembic"
    assert migrate.revisions()[-1] == migrate.head()
