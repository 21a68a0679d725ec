"""One line for an error, an exit code that means something, and no password anywhere; where options may stand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import psycopg
import pytest
import sqlalchemy as sa

from pgqueue import PgQueue, migrate
from pgqueue.cli.common import explain
from tests.cli.conftest import Fill, Run
from tests.cli.test_help import COMMANDS as TREE
from tests.roles import new_role

CANARY = "cAnArY"

# What a command's arguments may be, by their names, and what else it must be told.
ARGUMENTS = {"job_id": "1", "ids": "1", "queue": "default", "task": "shop.send", "name": "nightly", "names": "nightly"}
BESIDES = {("jobs", "change"): ("--priority", "1"), ("schedules", "add"): ("--every", "60")}


def commands() -> Iterator[tuple[str, ...]]:
    """Each command that goes to the database, as it may be called. A worker wants an application besides, and top a
    terminal: they have tests of their own (tests/crash/test_start.py, tests/migrate/test_servers.py, test_top.py)."""
    for path, command in TREE.items():
        flags = {flag for one in command.params for flag in one.opts}
        if (
            "--database-url" in flags
            and path not in {(), ("worker",), ("top",)}
            and not isinstance(command, click.Group)
        ):
            wanted = [
                ARGUMENTS[str(one.name)]
                for one in command.params
                if isinstance(one, click.Argument) and (one.required or one.name == "ids")
            ]
            yield (*path, *wanted, *BESIDES.get(path, ()))


COMMANDS = list(commands())
ON_TABLES = [command for command in COMMANDS if command[0] not in ("migrate", "bench")]  # these make their own

every_command = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


# -- exit codes ----------------------------------------------------------------------------------------------------


@every_command
def test_without_a_database_it_is_a_usage_error_that_says_how_to_name_one(run: Run, command: tuple[str, ...]) -> None:
    for env in ({}, {"PGQUEUE_DATABASE_URL": ""}):
        assert "PGQUEUE_DATABASE_URL" in run(*command, code=2, env=env).stderr


@every_command
def test_a_malformed_url_is_a_usage_error_without_its_password(run: Run, command: tuple[str, ...]) -> None:
    for url in (
        f"postgresql//u:{CANARY}@h/d",
        f"mysql://u:{CANARY}@h/d",
        f"postgresql://u:{CANARY}%zz@h/d",
        f"password={CANARY} x",
    ):
        for result in (
            run(*command, "--database-url", url, code=2),
            run(*command, code=2, env={"PGQUEUE_DATABASE_URL": url}),
        ):
            assert "database URL" in result.stderr
            assert CANARY not in result.output


@every_command
def test_an_unreachable_database_is_exit_3_and_named_without_its_password(run: Run, command: tuple[str, ...]) -> None:
    for url in (
        f"postgresql://u:{CANARY}@127.0.0.1:1/shop",
        f"host=127.0.0.1 port=1 dbname=shop user=u password={CANARY}",
        f"postgresql:///shop?host=/nowhere&user=u&password={CANARY}",
    ):
        result = run(*command, "--database-url", url, code=3)
        assert "cannot reach" in result.stderr
        assert "/shop" in result.stderr
        assert CANARY not in result.output


@every_command
def test_a_database_that_does_not_exist_is_exit_3(run: Run, pgqueue_server: str, command: tuple[str, ...]) -> None:
    url = psycopg.conninfo.make_conninfo(pgqueue_server, dbname="no_such_database")
    assert 'database "no_such_database" does not exist' in run(*command, "--database-url", url, code=3).stderr


@pytest.mark.parametrize(
    "command",
    [
        *[("jobs", verb) for verb in ("show", "cancel", "retry")],
        ("jobs", "change", "--priority", "1"),
        *[("dead", verb) for verb in ("show", "redrive", "purge")],
        ("jobs", "list", "--before"),
        ("dead", "list", "--before"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_an_id_beyond_all_ids_is_a_usage_error_that_says_so(on: Run, command: tuple[str, ...]) -> None:
    said = on(*command, str(2**63), code=2).stderr
    what = "before" if "--before" in command else "a job's id"
    assert said == f"pgqueue: {what} must be between 0 and {2**63 - 1}, not {2**63}\n"


@pytest.mark.parametrize("schema", ["pgqueue", "migrated_away"])
def test_a_database_without_tables_is_exit_3_and_says_what_to_do(
    run: Run, pgqueue_blank_database: str, schema: str
) -> None:
    if schema == "migrated_away":
        migrate.upgrade(pgqueue_blank_database, schema)
        migrate.downgrade(pgqueue_blank_database, schema)
    for command in ON_TABLES:
        result = run(*command, "--database-url", pgqueue_blank_database, "--schema", schema, code=3)
        assert "holds no pgqueue tables: run `pgqueue migrate`" in result.stderr


@pytest.mark.parametrize("stands_at", ["0000", "9999"], ids=["older", "newer"])
def test_another_versions_schema_is_exit_3_names_both_versions_and_is_left_alone(
    run: Run, pgqueue_database: str, connection: psycopg.Connection[Any], stands_at: str
) -> None:
    connection.execute("insert into pgqueue.jobs (task) values ('t')")
    connection.execute("update pgqueue.alembic_version set version_num = %s", [stands_at])
    before = connection.execute("select xmin, id from pgqueue.jobs").fetchall()
    for command in ON_TABLES:
        result = run(*command, "--database-url", pgqueue_database, code=3)
        assert f"stands at migration {stands_at}, this version of pgqueue needs {migrate.head()}" in result.stderr
    assert connection.execute("select xmin, id from pgqueue.jobs").fetchall() == before


def test_what_a_person_got_wrong_is_said_before_anybody_asks_the_database(run: Run) -> None:
    run("enqueue", "a b", "--database-url", "postgresql://127.0.0.1:1/nowhere", code=2)


def test_a_role_without_rights_is_told_so(run: Run, pgqueue_database: str) -> None:
    with new_role(pgqueue_database) as role:
        url = psycopg.conninfo.make_conninfo(pgqueue_database, user=role)
        for command in ON_TABLES:
            result = run(*command, "--database-url", url, code=3)
            assert "permission denied for schema pgqueue" in result.stderr


@pytest.mark.parametrize("schema", ["", "x" * 41, "pg_x", "ü" * 21])
def test_a_schema_name_that_cannot_be_is_a_usage_error(refused: Run, schema: str) -> None:
    for command in (*ON_TABLES, ("migrate",)):
        assert "schema must" in refused(*command, "--schema", schema, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing argument 'MODULE:APP'"),
        (("shop.tasks",), "must be MODULE:APP"),
        ((":app",), "must be MODULE:APP"),
        (("shop.tasks:",), "must be MODULE:APP"),
        (("m:a", "--concurrency", "0"), "concurrency must be a whole number between 1 and 10000"),
        (("m:a", "--concurrency", "-1"), "concurrency must be a whole number between 1 and 10000"),
        (("m:a", "--concurrency", "1000000000"), "concurrency must be a whole number between 1 and 10000"),
        (("m:a", "--concurrency", "1e9"), "is not a valid integer"),
        (("m:a", "--concurrency", "many"), "is not a valid integer"),
        (("m:a", "--processes", "0"), "processes must be"),
        (("m:a", "--grace", "-1"), "grace must be"),
        (("m:a", "--lease", "nan"), "lease must be"),
        (("m:a", "--poll-interval", "0"), "poll_interval must be"),
        (("m:a", "--queues", ","), "queues must name at least one"),
        (("m:a", "--log-format", "xml"), "'xml' is not one of"),
        (("m:a", "--schema", "x" * 41), "schema must be"),
        (("m:a", "--database-url", f"postgresql://u:{CANARY}%zz@h/d"), "database URL is malformed"),
        (("m:a", "--listen-url", f"postgresql://u:{CANARY}%zz@h/d"), "database URL is malformed"),
    ],
)
def test_a_worker_that_cannot_be_started_so_is_a_usage_error(run: Run, arguments: tuple[str, ...], says: str) -> None:
    result = run("worker", *arguments, code=2)
    assert says in result.stderr
    assert CANARY not in result.output


@pytest.mark.parametrize(
    ("variable", "value"), [("PGQUEUE_CONCURRENCY", "5x"), ("PGQUEUE_GRACE", "soon"), ("PGQUEUE_DRAIN", "perhaps")]
)
def test_a_variable_that_cannot_be_read_is_a_usage_error_that_names_it(run: Run, variable: str, value: str) -> None:
    assert value in run("worker", "m:a", code=2, env={variable: value}).stderr


# -- where the database options stand ----------------------------------------------------------------------------------


@pytest.fixture
def two(pgqueue_database: str, app: PgQueue, fill: Fill) -> tuple[str, int]:
    """A database in which schema `other` holds one job of its own, and its URL."""
    migrate.upgrade(pgqueue_database, "other")
    fill()
    other = PgQueue(pgqueue_database, schema="other")
    other.task(name="elsewhere")(lambda: None).delay()
    other.close()
    return pgqueue_database, 1


def tasks(result: Any) -> list[str]:
    return [job["task"] for job in json.loads(result.stdout)]


def test_url_and_schema_may_stand_before_or_after_the_command_or_in_the_environment(
    run: Run, two: tuple[str, int]
) -> None:
    url = two[0]
    options = ("--database-url", url, "--schema", "other")
    variables = {"PGQUEUE_DATABASE_URL": url, "PGQUEUE_SCHEMA": "other"}
    assert tasks(run(*options, "jobs", "list", "--json")) == ["elsewhere"]
    assert tasks(run("jobs", "list", "--json", *options)) == ["elsewhere"]
    assert tasks(run("jobs", "list", "--json", env=variables)) == ["elsewhere"]
    assert tasks(run(*options[:2], "jobs", "list", *options[2:], "--json")) == ["elsewhere"]
    assert tasks(run(*options[2:], "jobs", "list", *options[:2], "--json")) == ["elsewhere"]


def test_what_stands_on_the_line_counts_before_the_environment_and_the_later_before_the_earlier(
    run: Run, two: tuple[str, int]
) -> None:
    url = two[0]
    wrong = {"PGQUEUE_DATABASE_URL": f"postgresql://u:{CANARY}@127.0.0.1:1/x", "PGQUEUE_SCHEMA": "nowhere"}
    right = ("--database-url", url, "--schema", "other")
    false = ("--database-url", "postgresql://127.0.0.1:1/x", "--schema", "nowhere")
    assert tasks(run(*right, "jobs", "list", "--json", env=wrong)) == ["elsewhere"]
    assert tasks(run("jobs", "list", "--json", *right, env=wrong)) == ["elsewhere"]
    assert tasks(run(*false, "jobs", "list", "--json", *right, env=wrong)) == ["elsewhere"]
    run(*right, "jobs", "list", *false, code=3)


# -- passwords that came with the URL, wherever the message comes from -------------------------------------------------


def test_no_password_is_in_what_a_command_prints(pgqueue_database: str, run: Run) -> None:
    """The server's authentication is trust: it lets any password in."""
    url = psycopg.conninfo.make_conninfo(pgqueue_database, password=CANARY)
    for arguments, code in (
        (("migrate",), 0),
        (("migrate", "--json"), 0),
        (("jobs", "list"), 0),
        (("jobs", "show", "7"), 1),
        (("enqueue", "a b"), 2),
        (("migrate", "9999"), 2),
        (("jobs", "list", "--schema", "nowhere"), 3),
    ):
        assert CANARY not in run(*arguments, "--database-url", url, code=code).output


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{CANARY}@h/d",
        f"postgresql://h/d?user=u&password={CANARY}",
        f"host=h dbname=d password={CANARY}",
    ],
)
def test_a_message_of_the_driver_that_repeats_the_url_is_scrubbed(url: str) -> None:
    for error in (psycopg.OperationalError(f'connection to "{url}" failed'), psycopg.InterfaceError(url)):
        for wrapped in (error, sa.exc.OperationalError(url, {"password": CANARY}, error)):
            line, code = explain(wrapped, url)
            assert CANARY not in line
            assert code == (3 if isinstance(error, psycopg.OperationalError) else 1)
