"""No search_path matters, set on the role or on the database: enqueue, worker, SQL functions, migrations, views and
commands do what they do, in our tables and with the server's functions."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from pgqueue import PgQueue, migrate
from pgqueue.cli import cli
from tests.migrate.pictures import picture
from tests.roles import new_role

# Tables named like ours, functions like the server's: whoever reaches one is caught by a division by zero, or by a row.
EVIL = """
create schema evil;
create table evil.jobs (like pgqueue.jobs including all);
create table evil.finished_jobs (id bigint);
create table evil.dead_jobs (id bigint);
create table evil.job_errors (job_id bigint);
create table evil.workers (id uuid);
create table evil.queues (name text);
create table evil.retention (task text);
create table evil.sleepers as select gen_random_uuid() as worker_id, '*' as queue, 'infinity'::timestamptz as until;
create table evil.alembic_version (version_num text);
create view evil.all_jobs as select 1 as one;
create view evil.job_history as select 1 as one;
create function evil.statement_timestamp() returns timestamptz language sql as 'select now() + 1 / 0 * interval ''1s''';
create function evil.pg_notify(text, text) returns void language sql as 'select 1 / 0';
create function evil.set_config(text, text, boolean) returns text language sql as 'select (1 / 0)::text';
create function evil.current_setting(text) returns text language sql as 'select (1 / 0)::text';
create function evil.current_setting(text, boolean) returns text language sql as 'select (1 / 0)::text';
create function evil.replace(text, text, text) returns text language sql as 'select (1 / 0)::text';
create function evil.concat(variadic "any") returns text language internal as 'text_concat';
create function evil.left(text, int) returns text language sql as 'select (1 / 0)::text';
create function evil.pg_get_serial_sequence(text, text) returns text language sql as 'select (1 / 0)::text';
create function evil.string_to_table(text, text) returns setof text language sql as 'select (1 / 0)::text';
create function evil.nextval(regclass) returns bigint language sql as 'select 1::bigint / 0';
create function evil.isfinite(timestamptz) returns boolean language sql as 'select 1 / 0 = 1';
create function evil.jsonb_typeof(jsonb) returns text language sql as 'select (1 / 0)::text';
create function evil.same(text, text) returns boolean language sql as 'select 1 / 0 = 1';
"""
# Operators are looked up in the same way, and no statement can name one in full and be read by people: whoever works on
# a connection of ours, or in a function, has a path of ours; an enqueue in Python has the application's.
OPERATORS = "create operator evil.= (leftarg = text, rightarg = text, function = evil.same);"

PATHS = ["''", "nowhere", "pg_temp", "evil", "evil, pg_temp, pg_catalog"]
LEVELS = [("role", path) for path in PATHS] + [("database", PATHS[0]), ("database", PATHS[-1])]


def set_on(connection: psycopg.Connection[Any], role: str, level: str, path: str) -> None:
    """The search_path, where an administrator sets it."""
    whom = Identifier(role) if level == "role" else Identifier(connection.info.dbname)
    connection.execute(
        SQL("alter {} {} set search_path = {}").format(SQL("role" if level == "role" else "database"), whom, SQL(path))
    )


def allowed(connection: psycopg.Connection[Any], role: str) -> None:
    """Everything in both schemas: it is the path that keeps them apart."""
    for schema in ("pgqueue", "evil"):
        for what in (
            "usage, create on schema {}",
            "all on all tables in schema {}",
            "all on all sequences in schema {}",
        ):
            grant = SQL(what).format(Identifier(schema))
            connection.execute(SQL("grant {} to {}").format(grant, Identifier(role)))
        connection.execute(
            SQL("grant execute on all functions in schema {} to {}").format(Identifier(schema), Identifier(role))
        )


@pytest.mark.parametrize(("level", "path"), LEVELS)
def test_a_job_goes_all_the_way_whatever_the_search_path_is(
    pgqueue_database: str, connection: psycopg.Connection[Any], level: str, path: str
) -> None:
    connection.execute(EVIL)
    connection.execute("insert into pgqueue.sleepers select gen_random_uuid(), '*', 'infinity'")  # to notify
    seen: list[str] = []
    with new_role(pgqueue_database) as role:
        allowed(connection, role)
        set_on(connection, role, level, path)
        url = make_conninfo(pgqueue_database, user=role)
        app = PgQueue(url)

        @app.task(name="t", max_attempts=1)
        def task(number: int) -> int:
            with psycopg.connect(url) as theirs:
                seen.append(str((theirs.execute("show search_path").fetchone() or ("",))[0]))
            if number == 2:
                raise ValueError
            return 10 * number

        with psycopg.connect(url) as theirs:
            one = task.enqueue(theirs, 1).id
            dies = task.options(unique_key="k").enqueue(theirs, 2).id
            same = task.options(unique_key="k").enqueue(theirs, 2)
            many = task.enqueue_many(theirs, [(3,), (4,)])
            more = app.enqueue_many(theirs, [task.options(priority=1).job(5), task.job(6)])
            by_sql = theirs.execute("select pgqueue.enqueue('t', '[7]')").fetchone() or ()
        result = CliRunner().invoke(cli, ["enqueue", "t", "[8]", "--database-url", url], catch_exceptions=False)
        assert (result.exit_code, result.stderr) == (0, "")
        assert same.id == dies
        if path == "evil, pg_temp, pg_catalog":
            connection.execute(OPERATORS)
        app.worker(drain=True, poll_interval=0.02, sweep_interval=0.02).run()
        if path == "evil, pg_temp, pg_catalog":
            connection.execute("drop operator evil.= (text, text)")
        assert len(seen) == 8
        assert all((shown == '""') if path == "''" else (shown == path) for shown in seen)
        jobs = {job.id: job for job in app.jobs.list(limit=100)}
        assert [jobs[each].result for each in (one, *many, *more, *by_sql)] == [10, 30, 40, 50, 60, 70]
        assert jobs[dies].state == "dead"
        for command in (
            ("jobs", "list"),
            ("dead", "list"),
            ("dead", "redrive", str(dies)),
            ("jobs", "cancel", str(dies)),
        ):
            result = CliRunner().invoke(cli, [*command, "--database-url", url], catch_exceptions=False)
            assert (result.exit_code, result.stderr) == (0, "")
        with psycopg.connect(url) as theirs:
            assert theirs.execute("select queue, queued from pgqueue.queue_stats").fetchall() == []
            assert theirs.execute("select count(*) from pgqueue.all_jobs").fetchone() == (8,)
            assert theirs.execute("select pgqueue.redrive(1)").fetchone() == (False,)
            assert theirs.execute("select made from pgqueue.prune(7, 86400)").fetchone() == (0,)
        app.close()
    for table in ("jobs", "finished_jobs", "dead_jobs", "job_errors", "workers", "queues", "retention"):
        assert connection.execute(f"select count(*) from evil.{table}").fetchone() == (0,)


@pytest.mark.parametrize(("level", "path"), LEVELS)
def test_a_migration_makes_the_same_schema_whatever_the_search_path_is(
    pgqueue_database: str, connection: psycopg.Connection[Any], level: str, path: str
) -> None:
    """What a view or a default means is looked up once, when it is made: the server's own, or evil's for good."""
    wanted = picture(connection)
    connection.execute(EVIL + OPERATORS)
    connection.execute("drop schema pgqueue cascade")
    with new_role(pgqueue_database) as role:
        connection.execute(
            SQL("grant create on database {} to {}").format(Identifier(connection.info.dbname), Identifier(role))
        )
        connection.execute(SQL("grant usage, create on schema evil to {}").format(Identifier(role)))
        connection.execute(SQL("grant all on all tables in schema evil to {}").format(Identifier(role)))
        set_on(connection, role, level, path)
        url = make_conninfo(pgqueue_database, user=role)

        def like_before(found: list[str]) -> bool:
            return [line.replace(f"{role}=", "postgres=").replace(f"/{role}", "/postgres") for line in found] == [
                line.replace(f"{connection.info.user}=", "postgres=").replace(f"/{connection.info.user}", "/postgres")
                for line in wanted
            ]

        migrate.upgrade(url)
        assert migrate.check(url).differences == []
        connection.execute("set search_path = public")
        assert like_before(picture(connection))
        migrate.to(url, "pgqueue", "0001")
        migrate.downgrade(url)
        connection.execute("drop schema pgqueue cascade")
        with psycopg.connect(url, autocommit=True) as theirs:
            theirs.execute(migrate.script().encode())
        assert like_before(picture(connection))
        connection.execute("drop schema pgqueue cascade")
    assert connection.execute("select count(*) from evil.alembic_version").fetchone() == (0,)
