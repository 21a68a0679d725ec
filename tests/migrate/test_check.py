"""`pgqueue migrate --check`: silent about a schema that is as declared, and names whatever somebody changed in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from pgqueue import migrate
from pgqueue.sql import source
from pgqueue.testing import _new_database, _url
from tests.cli.conftest import Run, run
from tests.migrate.pictures import picture
from tests.roles import new_role

__all__ = ["run"]  # a fixture


@pytest.fixture(scope="module")
def shared(pgqueue_server: str, pgqueue_template: str) -> Iterator[str]:
    """A database that each test leaves as it was."""
    with _new_database(pgqueue_server, pgqueue_template) as name:
        yield _url(pgqueue_server, name)


# What somebody did, what is said of it, and how it is taken back.
CHANGES = [
    ("alter table jobs add column colour text", "column colour of jobs: not declared"),
    ("alter table retention drop column changed_at", "column changed_at of retention: missing"),
    ("alter table retention alter column keep type bigint",
     "column keep of retention: type is bigint, declared is integer"),
    ("alter table dead_jobs alter column reason drop not null",
     "column reason of dead_jobs: nullability is nullable, declared is not null"),
    ("alter table jobs alter column queue drop default",
     "column queue of jobs: default is none, declared is 'default'::text"),
    ("alter table jobs alter column id drop identity", "column id of jobs: identity is none, declared is d"),
    ("comment on column jobs.fence is 'x'",
     "column fence of jobs: comment is x, declared is counts claims; never given back"),
    ("alter table jobs drop constraint jobs_owner", "constraint jobs_owner of jobs: missing"),
    ("alter table jobs drop constraint jobs_priority, add constraint jobs_priority check (priority < 5)",
     "constraint jobs_priority of jobs: definition is CHECK (priority < 5), declared is "
     "CHECK (priority >= '-100'::integer AND priority <= 100)"),
    ("alter table queues drop constraint queues_pkey", "constraint queues_pkey of queues: missing"),
    ("alter table jobs add constraint mine check (id > 0)", "constraint mine of jobs: not declared"),
    ("drop index jobs_expiring", "index jobs_expiring of jobs: missing"),
    ("drop index jobs_due; create index jobs_due on jobs (queue, priority desc, run_at, id)",
     "index jobs_due of jobs: definition is CREATE INDEX jobs_due ON jobs USING btree "
     "(queue, priority DESC, run_at, id), declared is CREATE INDEX jobs_due ON jobs USING btree "
     "(queue, priority DESC, run_at, id) WHERE state = 'queued'::text"),
    ("drop index jobs_due; create index jobs_due on jobs (queue, priority, run_at, id) where state = 'queued'",
     "index jobs_due of jobs: definition is CREATE INDEX jobs_due ON jobs USING btree (queue, priority, run_at, id) "
     "WHERE state = 'queued'::text, declared is CREATE INDEX jobs_due ON jobs USING btree "
     "(queue, priority DESC, run_at, id) WHERE state = 'queued'::text"),
    ("update pg_index set indisvalid = false where indexrelid = 'jobs_due'::regclass",
     "index jobs_due of jobs: validity is not valid: drop it and make it anew, declared is valid"),
    ("create unique index mine on jobs (task)", "index mine of jobs: not declared"),
    ("create trigger mine before insert on jobs for each row execute function suppress_redundant_updates_trigger()",
     "trigger mine of jobs: not declared"),
    ("alter table jobs reset (fillfactor)",
     "table jobs: storage parameters is autovacuum_analyze_scale_factor=0.05, autovacuum_vacuum_cost_delay=0, "
     "autovacuum_vacuum_scale_factor=0.02, declared is autovacuum_analyze_scale_factor=0.05, "
     "autovacuum_vacuum_cost_delay=0, autovacuum_vacuum_scale_factor=0.02, fillfactor=85"),
    ("alter table queues set unlogged", "table queues: persistence is unlogged, declared is logged"),
    ("alter table sleepers set logged", "table sleepers: persistence is logged, declared is unlogged"),
    ("alter table jobs enable row level security", "table jobs: row security is on, declared is none"),
    ("drop table job_errors cascade", "table job_errors: missing"),
    ("drop view queue_stats", "view queue_stats: missing"),
    ("create or replace view job_history {options} as select job_id, '[]'::jsonb as errors from job_errors",
     "view job_history: its text is not the declared one"),
    ("drop function redrive", "function redrive(bigint): missing"),
    ("create or replace function redrive(job_id bigint) returns boolean language sql as 'select true'",
     "function redrive(bigint): its text is not the declared one"),
    ("grant execute on function redrive to public",
     "function redrive(bigint): callers is everybody, declared is whom the owner names"),
    ("alter function prune security invoker",
     "function prune(integer, double precision): security is invoker, declared is definer"),
    ("alter function prune reset search_path",
     "function prune(integer, double precision): settings is {lock_timeout=100ms,TimeZone=UTC}, declared is "
     '{"search_path=pg_catalog, pg_temp",lock_timeout=100ms,TimeZone=UTC}'),
    ("create function enqueue(text) returns bigint language sql as 'select 1::bigint'",
     "function enqueue(text): not declared"),
    ("update alembic_version set version_num = '0001'",
     f"migration: stands at 0001, this version declares {migrate.head()}"),
    ("do $$ begin execute 'drop table finished_jobs_' || to_char(now() at time zone 'utc', 'YYYYMMDD'); end $$",
     "partition finished_jobs_TODAY of finished_jobs: missing, nothing can finish today; a worker makes it, and so "
     "does pgqueue's function prune(7, 86400)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line"), CHANGES, ids=[line for _, line in CHANGES])
def test_check_names_what_somebody_changed(pgqueue_database: str, change: str, line: str) -> None:
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        connection.execute("set search_path = pgqueue")
        options = "with (security_invoker = true)" if connection.info.server_version >= 150_000 else ""
        connection.execute(change.replace("{options}", options))
    found = migrate.check(pgqueue_database)
    assert line in [re.sub(r"_\d{8}\b", "_TODAY", one) for one in found.differences]
    # One change, one line: what a missing table is made of is not told too, nor what hung on it.
    others = {f"view {name}: missing" for name, _ in source("view")}
    others |= {one for one in found.differences if one.startswith("function redrive")}
    assert len(set(found.differences) - others) <= 1


def test_check_names_a_view_that_shows_more_than_the_tables_would(pgqueue_database: str) -> None:
    """As pg_upgrade leaves those of a PostgreSQL 14."""
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        if connection.info.server_version < 150_000:
            pytest.skip("all views of this server run with their owner's rights")
        connection.execute("alter view pgqueue.all_jobs reset (security_invoker)")
    line = "view all_jobs: storage parameters is none, declared is security_invoker=true"
    assert migrate.check(pgqueue_database).differences == [line]


@pytest.mark.parametrize(
    ("addition", "line"),
    [
        ("create index mine on pgqueue.jobs (task)", "index mine of jobs: not pgqueue's"),
        ("create table pgqueue.mine (id int primary key, x text)", "table mine: not pgqueue's"),
        ("create view pgqueue.mine as select 1 as one", "view mine: not pgqueue's"),
        ("create function pgqueue.mine() returns int language sql as 'select 1'", "function mine(): not pgqueue's"),
    ],
)
def test_what_an_operator_put_beside_ours_is_a_note_and_no_difference(
    run: Run, pgqueue_database: str, addition: str, line: str
) -> None:
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        connection.execute(addition)
    result = run("migrate", "--check", "--database-url", pgqueue_database)
    assert result.stdout.splitlines()[0] == f"note: {line}"
    assert result.stdout.endswith(f": at {migrate.head()}, as declared\n")


def test_check_prints_a_line_for_each_difference_and_exits_1(run: Run, pgqueue_database: str) -> None:
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        connection.execute("drop index pgqueue.jobs_expiring")
        connection.execute("alter table pgqueue.workers alter column host drop not null")
        before = picture(connection)
        options = ("migrate", "--check", "--database-url", pgqueue_database)
        lines = [
            "column host of workers: nullability is nullable, declared is not null",
            "index jobs_expiring of jobs: missing",
        ]
        result = run(*options, code=1)
        assert result.stdout.splitlines() == lines
        assert "2 differences from what this version declares" in result.stderr
        document = {"schema": "pgqueue", "at": migrate.head(), "differences": lines, "notes": []}
        assert json.loads(run(*options, "--json", code=1).stdout) == document
        assert picture(connection) == before


def test_every_migration_but_the_newest_is_found_to_differ(run: Run, pgqueue_blank_database: str) -> None:
    for revision in migrate.revisions()[:-1]:
        migrate.to(pgqueue_blank_database, "pgqueue", revision)
        result = run("migrate", "--check", "--database-url", pgqueue_blank_database, code=1)
        assert f"migration: stands at {revision}, this version declares {migrate.head()}\n" in result.stdout
    migrate.upgrade(pgqueue_blank_database)
    run("migrate", "--check", "--database-url", pgqueue_blank_database)


@pytest.mark.parametrize("state", ["nothing", "migrated away", "another name"])
def test_without_tables_check_is_exit_3(run: Run, pgqueue_blank_database: str, state: str) -> None:
    if state != "nothing":
        migrate.upgrade(pgqueue_blank_database, "other" if state == "another name" else "pgqueue")
    if state == "migrated away":
        migrate.downgrade(pgqueue_blank_database)
    result = run("migrate", "--check", "--database-url", pgqueue_blank_database, code=3)
    assert "holds no pgqueue tables: run `pgqueue migrate`" in result.stderr


def test_an_unreachable_database_is_exit_3(run: Run) -> None:
    result = run("migrate", "--check", "--database-url", "postgresql://127.0.0.1:1/nowhere", code=3)
    assert "cannot reach" in result.stderr


@pytest.mark.parametrize("arguments", [("0001",), ("--sql",), ("base", "--sql")])
def test_check_stands_alone(run: Run, arguments: tuple[str, ...]) -> None:
    assert "give it alone" in run("migrate", "--check", *arguments, code=2).stderr


@pytest.mark.parametrize("schema", ["a\"b; %s 'c' $$ {schema} $function$", "public", "MiXeD", "pg temp", "x" * 40])
def test_a_schema_of_any_name_is_compared(shared: str, schema: str) -> None:
    migrate.upgrade(shared, schema)
    assert migrate.check(shared, schema).differences == []
    with psycopg.connect(shared, autocommit=True) as connection:
        options = "with (security_invoker = true)" if connection.info.server_version >= 150_000 else ""
        drop = "create or replace view {} {} as select 1::bigint as job_id, '[]'::jsonb as errors"
        connection.execute(SQL(drop).format(Identifier(schema, "job_history"), SQL(options)))
    assert migrate.check(shared, schema).differences == ["view job_history: its text is not the declared one"]
    assert migrate.check(shared).differences == []
    migrate.downgrade(shared, schema)


def test_a_role_that_may_only_look_up_the_version_can_check_whatever_its_settings(
    pgqueue_database: str,
) -> None:
    with (
        new_role(pgqueue_database, "usage on schema pgqueue", "select on pgqueue.alembic_version") as role,
        psycopg.connect(pgqueue_database, autocommit=True) as connection,
    ):
        for setting in ("search_path = pgqueue, public", "default_transaction_read_only = on"):
            connection.execute(SQL("alter role {} set ").format(Identifier(role)) + SQL(setting))
        url = psycopg.conninfo.make_conninfo(pgqueue_database, user=role)
        assert migrate.check(url).differences == []
        connection.execute("drop index pgqueue.jobs_due")
        assert migrate.check(url).differences == ["index jobs_due of jobs: missing"]
