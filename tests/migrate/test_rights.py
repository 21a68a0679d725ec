"""A role that lacks a right is told which, and the GRANT: a DBA runs what the error says, as it is, and it works."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from pgqueue import MissingRight, PgQueue, migrate
from pgqueue.cli import cli
from pgqueue.enqueue import NewJob, Options
from tests.helpers import job_in
from tests.life.callers import django_database
from tests.roles import new_role

ODD = 'a"; drop table x; --'
Act = Callable[[str], object]


@pytest.fixture
def dba(pgqueue_database: str) -> Iterator[psycopg.Connection[Any]]:
    """On a database with pgqueue's tables in its usual schema."""
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        yield connection


def grants_in(message: str) -> str:
    """What is to be run. No error says anything behind it."""
    assert message.isprintable()
    return message.partition("what it lacks: ")[2]


def insist(dba: psycopg.Connection[Any], url: str, act: Act) -> list[str]:
    """Runs `act` and whatever GRANT its error asks for, until it succeeds; the messages."""
    said: list[str] = []
    while len(set(said)) == len(said):
        try:
            act(url)
        except MissingRight as error:
            said.append(str(error))
            dba.execute(grants_in(said[-1]).encode())
        else:
            return said
    raise AssertionError(f"the GRANT did not help: {said}")


# -- enqueue in Python ---------------------------------------------------------------------------------------------


def by_psycopg(app: PgQueue, url: str) -> None:
    with psycopg.connect(url) as connection:
        app.tasks["t"].enqueue(connection)


def by_autocommit(app: PgQueue, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        app.tasks["t"].enqueue(connection)


def by_psycopg2(app: PgQueue, url: str) -> None:
    connection = psycopg2.connect(url)
    try:
        app.tasks["t"].enqueue(connection)
        connection.commit()
    finally:
        connection.close()


def by_sqlalchemy(app: PgQueue, url: str) -> None:
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=sa.NullPool)
    with engine.begin() as connection:
        app.tasks["t"].enqueue(connection)


def by_session(app: PgQueue, url: str) -> None:
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=sa.NullPool)
    with Session(engine) as session, session.begin():
        app.tasks["t"].enqueue(session)


def by_django(app: PgQueue, url: str) -> None:
    with django_database(url) as (connection, _):
        app.tasks["t"].enqueue(connection)


def by_many(app: PgQueue, url: str) -> None:
    with psycopg.connect(url) as connection:
        app.tasks["t"].options(unique_key="k").enqueue_many(connection, [(), ()])


def by_delay(app: PgQueue, url: str) -> None:
    other = PgQueue(url, schema=app.schema)
    try:
        other.enqueue_alone(app.tasks["t"].options(unique_key="k").job())
    finally:
        other.close()


def by_asyncpg(app: PgQueue, url: str) -> None:
    async def enqueue() -> None:
        known = conninfo_to_dict(url)
        connection = await asyncpg.connect(
            user=known["user"], host=known["host"], port=known["port"], database=known["dbname"]
        )
        try:
            async with connection.transaction():
                await app.tasks["t"].enqueue(connection)
        finally:
            await connection.close()

    asyncio.run(enqueue())


def by_sqlalchemy_on_asyncpg(app: PgQueue, url: str) -> None:
    async def enqueue() -> None:
        known = conninfo_to_dict(url)
        place = sa.URL.create(
            "postgresql+asyncpg",
            username=str(known["user"]),
            database=str(known["dbname"]),
            query={"host": str(known["host"]), "port": str(known["port"])},
        )
        engine = create_async_engine(place, poolclass=sa.NullPool)
        async with engine.begin() as connection:
            await app.tasks["t"].enqueue(connection)

    asyncio.run(enqueue())


WAYS = [
    by_psycopg,
    by_autocommit,
    by_psycopg2,
    by_sqlalchemy,
    by_session,
    by_django,
    by_many,
    by_delay,
    by_asyncpg,
    by_sqlalchemy_on_asyncpg,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_enqueue_names_each_right_that_its_role_lacks_until_it_works(
    pgqueue_database: str, dba: psycopg.Connection[Any], way: Callable[[PgQueue, str], None]
) -> None:
    app = PgQueue(pgqueue_database)
    app.task(name="t")(lambda: None)
    with new_role(pgqueue_database) as role:
        said = insist(dba, make_conninfo(pgqueue_database, user=role), lambda url: way(app, url))
        expected = [
            "the role may not do this: permission denied for schema pgqueue; what it lacks: "
            'GRANT USAGE ON SCHEMA "pgqueue" TO "web"',
            "the role may not do this: permission denied for table jobs; what it lacks: "
            'GRANT SELECT, INSERT ON "pgqueue"."jobs" TO "web"',
            "the role may not do this: permission denied for table sleepers; what it lacks: "
            'GRANT SELECT ON "pgqueue"."sleepers" TO "web"',
        ]
        if way is by_many:  # which takes its ids beforehand
            expected.append(
                "the role may not do this: permission denied for sequence jobs_id_seq; what it lacks: "
                'GRANT USAGE ON SEQUENCE "pgqueue"."jobs_id_seq" TO "web"'
            )
        assert [one.replace(role, "web") for one in said] == expected
    (count,) = dba.execute("select count(*) from pgqueue.jobs").fetchone() or ()
    assert count > 0


def test_a_refused_enqueue_leaves_the_transaction_usable_from_the_savepoint_before_it(
    pgqueue_database: str, dba: psycopg.Connection[Any]
) -> None:
    app = PgQueue(pgqueue_database)
    task = app.task(name="t")(lambda: None)
    with (
        new_role(pgqueue_database, "usage on schema pgqueue") as role,
        psycopg.connect(make_conninfo(pgqueue_database, user=role)) as connection,
    ):
        with pytest.raises(MissingRight) as caught, connection.transaction():
            task.enqueue(connection)
        assert isinstance(caught.value.__cause__, psycopg.errors.InsufficientPrivilege)
        assert connection.execute("select 1").fetchone() == (1,)


def test_what_a_policy_refuses_is_the_drivers_own_error_and_asks_for_no_grant(
    pgqueue_database: str, dba: psycopg.Connection[Any]
) -> None:
    app = PgQueue(pgqueue_database)
    task = app.task(name="t")(lambda: None)
    dba.execute("alter table pgqueue.jobs enable row level security")
    rights = ("usage on schema pgqueue", "select, insert on pgqueue.jobs", "select on pgqueue.sleepers")
    with (
        new_role(pgqueue_database, *rights) as role,
        psycopg.connect(make_conninfo(pgqueue_database, user=role)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
    ):
        task.enqueue(connection)


# -- the SQL functions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "grants"),
    [
        ("enqueue('t')", ["GRANT SELECT, INSERT ON {}.jobs TO web", "GRANT SELECT ON {}.sleepers TO web"]),
        (
            "redrive({dead})",
            [
                "GRANT SELECT, DELETE ON {}.dead_jobs TO web",
                "GRANT SELECT, INSERT ON {}.jobs TO web",
                "GRANT SELECT ON {}.sleepers TO web",
            ],
        ),
        ("pause('q')", ["GRANT SELECT, INSERT, UPDATE ON {}.queues TO web", "GRANT SELECT ON {}.workers TO web"]),
        ("resume('q')", ["GRANT SELECT, UPDATE ON {}.queues TO web", "GRANT SELECT ON {}.workers TO web"]),
        (
            "pause_task('t')",
            ["GRANT SELECT, INSERT, UPDATE ON {}.paused_tasks TO web", "GRANT SELECT ON {}.workers TO web"],
        ),
        ("resume_task('t')", ["GRANT SELECT, DELETE ON {}.paused_tasks TO web", "GRANT SELECT ON {}.workers TO web"]),
        (
            "cancel({queued})",
            [
                "GRANT SELECT, UPDATE, DELETE ON {}.jobs TO web",
                "GRANT INSERT ON {}.finished_jobs TO web",
                "GRANT SELECT, DELETE ON {}.job_errors TO web",
                "GRANT SELECT ON {}.job_history TO web",
                "GRANT SELECT ON {}.workers TO web",
            ],
        ),
        ("change({queued}, 5)", ["GRANT SELECT, UPDATE ON {}.jobs TO web", "GRANT SELECT ON {}.sleepers TO web"]),
        ("retry_now({queued})", ["GRANT SELECT, UPDATE ON {}.jobs TO web", "GRANT SELECT ON {}.sleepers TO web"]),
    ],
)
@pytest.mark.parametrize("schema", ["pgqueue", ODD, "it's \\ 100%"])
def test_the_sql_functions_hint_at_the_grant(
    pgqueue_blank_database: str, schema: str, call: str, grants: list[str]
) -> None:
    url = pgqueue_blank_database
    migrate.upgrade(url, schema)
    home = Identifier(schema).as_string(None)
    app = PgQueue(url, schema=schema)
    with psycopg.connect(url, autocommit=True) as dba, new_role(url) as role:
        ids = {state: job_in(app, dba, state) for state in ("dead", "queued")}
        app.close()
        query = f"select {home}.{call.format(**ids)}"
        dba.execute(f"grant usage on schema {home} to {role}".encode())
        dba.execute(f"grant execute on all functions in schema {home} to {role}".encode())
        said = []
        with psycopg.connect(make_conninfo(url, user=role), autocommit=True) as connection:
            for _ in grants:
                with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
                    connection.execute(query.encode())
                hint = caught.value.diag.message_hint or ""
                assert re.match(rf"permission denied for table \w+: role {role} may not", str(caught.value))
                said.append(hint.replace(role, "web"))
                dba.execute(hint.encode())
            connection.execute(query.encode())
        plain = "pgqueue" if schema == "pgqueue" else home
        assert said == [grant.format(plain) for grant in grants]


def test_a_role_with_rights_on_columns_only_may_enqueue_from_sql(
    pgqueue_database: str, dba: psycopg.Connection[Any]
) -> None:
    columns = (
        "task, args, queue, priority, run_at, max_attempts, unique_key, expires_at, timeout, tags, meta"  # not crashes
    )
    rights = (
        "usage on schema pgqueue",
        "execute on all functions in schema pgqueue",
        f"insert ({columns}) on pgqueue.jobs",
        "select (id, unique_key) on pgqueue.jobs",
        "select on pgqueue.sleepers",
    )
    with (
        new_role(pgqueue_database, *rights) as role,
        psycopg.connect(make_conninfo(pgqueue_database, user=role)) as connection,
    ):
        assert connection.execute("select pgqueue.enqueue('t', unique_key => 'k') > 0").fetchone() == (True,)


# -- the command line and the worker -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "enqueue t --unique-key k",
        "jobs list",
        "jobs show {queued}",
        "jobs cancel {queued}",
        "jobs retry {queued}",
        "dead list",
        "dead show {dead}",
        "dead redrive {dead}",
        "dead purge {dead}",
        "schedules list",
        "schedules add n t --every 60",
        "schedules pause {schedule}",
        "schedules resume {schedule}",
        "schedules run {schedule}",
        "schedules remove {schedule}",
    ],
)
def test_a_command_names_all_rights_that_it_needs_at_once_and_exits_3(
    app: PgQueue, pgqueue_database: str, dba: psycopg.Connection[Any], command: str
) -> None:
    later = app.enqueue_alone(NewJob("t", "{}", Options(delay=3600))).id
    if "{schedule}" in command:
        app.schedules.add(name="s", task="t", every=60)
    words = command.format(queued=later, dead=job_in(app, dba, "dead"), schedule="s").split()

    def act(url: str) -> None:
        result = CliRunner().invoke(cli, [*words, "--database-url", url], catch_exceptions=False)
        if result.exit_code == 3:
            assert result.stderr.startswith("pgqueue: the role may not do this: permission denied for ")
            assert result.stderr.count("\n") == 1
            raise MissingRight(result.stderr.rstrip())
        assert (result.exit_code, result.stderr) == (0, "")

    with new_role(pgqueue_database) as role:
        said = insist(dba, make_conninfo(pgqueue_database, user=role), act)
    assert len(said) == 1
    assert 'GRANT USAGE ON SCHEMA "pgqueue" TO' in said[0]
    assert '"alembic_version"' in said[0]


def test_a_role_that_may_not_look_up_the_version_is_not_trusted_with_the_tables(
    pgqueue_database: str, dba: psycopg.Connection[Any]
) -> None:
    rights = ("usage on schema pgqueue", "select, insert on pgqueue.jobs", "select on pgqueue.sleepers")
    with new_role(pgqueue_database, *rights) as role:
        url = make_conninfo(pgqueue_database, user=role)
        result = CliRunner().invoke(cli, ["enqueue", "t", "--database-url", url], catch_exceptions=False)
        assert result.exit_code == 3
        assert result.stderr.endswith(f'what it lacks: GRANT SELECT ON "pgqueue"."alembic_version" TO "{role}"\n')
    assert dba.execute("select count(*) from pgqueue.jobs").fetchone() == (0,)


def test_a_worker_names_all_rights_at_once_and_with_them_does_everything(pgqueue_blank_database: str) -> None:
    url = pgqueue_blank_database
    migrate.upgrade(url, ODD)
    ran: list[int] = []

    def work(url: str) -> None:
        app = PgQueue(url, schema=ODD)

        @app.task(name="t", keep=1, max_attempts=1)
        def task(number: int) -> None:
            ran.append(number)
            if number == 2:
                raise ValueError

        try:
            app.worker(drain=True, poll_interval=0.02, sweep_interval=0.02).run()
        finally:
            app.close()

    owner = PgQueue(url, schema=ODD)
    task = owner.task(name="t")(lambda number: None)
    task.delay(1)
    task.options(max_attempts=1).delay(2)
    with psycopg.connect(url, autocommit=True) as dba, new_role(url) as role:
        said = insist(dba, make_conninfo(url, user=role), work)
    assert sorted(ran) == [1, 2]
    assert len(said) == 1
    for table in (
        "jobs",
        "job_errors",
        "finished_jobs",
        "dead_jobs",
        "workers",
        "sleepers",
        "queues",
        "retention",
        "schedules",
        "progress",
        "job_logs",
    ):
        assert f'"."{table}"' in said[0]
    assert said[0].count("GRANT EXECUTE ON FUNCTION") == 1
    assert [owner.jobs.list(state=state)[0].task for state in ("completed", "dead")] == ["t", "t"]
    owner.close()


@pytest.mark.parametrize(
    ("revoked", "grant"),
    [
        ("insert on pgqueue.dead_jobs", 'GRANT INSERT ON "pgqueue"."dead_jobs" TO "w"'),
        ("update, delete on pgqueue.jobs", 'GRANT UPDATE, DELETE ON "pgqueue"."jobs" TO "w"'),
        (
            "execute on function pgqueue.prune(int, float8)",
            'GRANT EXECUTE ON FUNCTION "pgqueue"."prune" TO "w"',
        ),
        ("select on pgqueue.alembic_version", 'GRANT SELECT ON "pgqueue"."alembic_version" TO "w"'),
    ],
)
def test_a_worker_that_lacks_one_right_is_told_that_one(
    pgqueue_database: str, dba: psycopg.Connection[Any], revoked: str, grant: str
) -> None:
    rights = (
        "usage on schema pgqueue",
        "select, insert, update, delete on all tables in schema pgqueue",
        "execute on function pgqueue.prune(int, float8)",
    )
    with new_role(pgqueue_database, *rights) as role:
        dba.execute(SQL("revoke {} from {}").format(SQL(revoked), Identifier(role)))
        app = PgQueue(make_conninfo(pgqueue_database, user=role))
        with pytest.raises(MissingRight) as caught:
            app.worker(drain=True).run()
        app.close()
        assert grants_in(str(caught.value)).replace(role, "w") == grant


# -- migrate -----------------------------------------------------------------------------------------------------------


def test_whoever_may_not_make_the_schema_is_told_the_grant_on_the_database(pgqueue_blank_database: str) -> None:
    with psycopg.connect(pgqueue_blank_database, autocommit=True) as dba, new_role(pgqueue_blank_database) as role:
        url = make_conninfo(pgqueue_blank_database, user=role)
        said = insist(dba, url, lambda url: migrate.upgrade(url, ODD))
        assert len(said) == 1
        assert f'GRANT CREATE ON DATABASE "{dba.info.dbname}" TO "{role}"' in said[0]
        assert migrate.current(url, ODD) == migrate.head()


def test_whoever_may_not_create_in_a_schema_that_was_made_for_it_is_told_the_grant_on_it(
    pgqueue_blank_database: str,
) -> None:
    with psycopg.connect(pgqueue_blank_database, autocommit=True) as dba, new_role(pgqueue_blank_database) as role:
        dba.execute("create schema pgqueue")
        url = make_conninfo(pgqueue_blank_database, user=role)
        said = insist(dba, url, lambda url: migrate.to(url, "pgqueue", "0001"))
        assert len(said) == 1
        assert grants_in(said[0]) == f'GRANT USAGE, CREATE ON SCHEMA "pgqueue" TO "{role}"'
        migrate.upgrade(url)
        assert migrate.current(url) == migrate.head()


def test_whoever_does_not_own_the_tables_is_told_who_does_and_the_membership(pgqueue_blank_database: str) -> None:
    blank = pgqueue_blank_database
    with psycopg.connect(blank, autocommit=True) as dba, new_role(blank) as owner, new_role(blank) as role:
        dba.execute(SQL("grant create on database {} to {}").format(Identifier(dba.info.dbname), Identifier(owner)))
        migrate.to(make_conninfo(blank, user=owner), "pgqueue", "0001")
        said = insist(dba, make_conninfo(blank, user=role), migrate.upgrade)
        assert len(said) == 1
        assert f"run it as their owner {owner}, or " in said[0]
        assert grants_in(said[0]) == f'GRANT "{owner}" TO "{role}"'
        assert migrate.current(blank) == migrate.head()


def test_nobody_is_told_to_become_a_superuser(pgqueue_database: str, dba: psycopg.Connection[Any]) -> None:
    before = migrate.current(pgqueue_database)
    with new_role(pgqueue_database) as role:
        result = CliRunner().invoke(
            cli, ["migrate", "0001", "--database-url", make_conninfo(pgqueue_database, user=role)]
        )
    assert result.exit_code == 3
    assert result.stderr.endswith(f"run it as their owner {dba.info.user}\n")
    assert "GRANT" not in result.stderr
    assert migrate.current(pgqueue_database) == before


def test_check_names_the_rights_it_needs(pgqueue_database: str, dba: psycopg.Connection[Any]) -> None:
    dba.execute(SQL("revoke temporary on database {} from public").format(Identifier(dba.info.dbname)))
    with new_role(pgqueue_database) as role:
        url = make_conninfo(pgqueue_database, user=role)
        said = insist(dba, url, migrate.check)
        assert len(said) == 1
        for grant in ("USAGE ON SCHEMA", "SELECT ON", "TEMPORARY ON DATABASE"):
            assert f"GRANT {grant}" in said[0]
        assert migrate.check(url).differences == []
