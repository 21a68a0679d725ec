"""pgqueue migrate: up, down, in print."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgqueue import migrate
from tests.cli.conftest import Run
from tests.roles import new_role

HEAD = migrate.head()


@pytest.fixture
def on(run: Run, pgqueue_blank_database: str) -> Run:
    """`run` on an empty database."""

    def invoke(*arguments: str, code: int = 0) -> Any:
        return run(*arguments, code=code, env={"PGQUEUE_DATABASE_URL": pgqueue_blank_database})

    return invoke


def test_migrate_goes_up_and_down_and_says_from_where_to_where(on: Run) -> None:
    for arguments, said in (
        (("migrate",), f"migrated from base to {HEAD}"),
        (("migrate",), f"at {HEAD}, nothing to do"),
        (("migrate", "base"), f"migrated from {HEAD} to base"),
        (("migrate", "base"), "at base, nothing to do"),
        (("migrate", "0001"), "migrated from base to 0001"),
        (("migrate", "head", "--schema", "other"), f"migrated from base to {HEAD}"),
    ):
        text = on(*arguments).stdout
        assert text.startswith(f'schema "{"other" if "other" in arguments else "pgqueue"}" of ')
        assert text.endswith(f": {said}\n")


def test_migrate_prints_json(on: Run) -> None:
    for before in ("base", HEAD):
        assert json.loads(on("migrate", "--json").stdout) == {"schema": "pgqueue", "from": before, "to": HEAD}


def test_the_printed_sql_runs_as_it_is(run: Run, pgqueue_blank_database: str) -> None:
    text = run("migrate", "--sql", "--schema", 'odd "name" 100%').stdout  # no database needed
    with psycopg.connect(pgqueue_blank_database, autocommit=True) as connection:
        connection.execute(text)
    assert migrate.current(pgqueue_blank_database, 'odd "name" 100%') == HEAD


def test_the_way_between_two_migrations_is_printed_too(run: Run, pgqueue_blank_database: str) -> None:
    with psycopg.connect(pgqueue_blank_database, autocommit=True) as connection:
        for way, stands in (("base:0001", "0001"), ("0001:head", HEAD), (f"{HEAD}:0001", "0001"), ("0001:base", None)):
            connection.execute(run("migrate", way, "--sql").stdout)
            assert migrate.current(pgqueue_blank_database) == stands
    assert "nothing to print" in run("migrate", "0001:0001", "--sql", code=2).stderr


def test_a_migration_that_does_not_exist_is_a_usage_error(on: Run) -> None:
    said = f"there is no migration '9999'; there are base, {', '.join(migrate.revisions())}"
    for arguments in (("9999",), ("9999", "--sql"), ("0001:9999", "--sql"), ("9999:head", "--sql")):
        assert said in on("migrate", *arguments, code=2).stderr
    assert "there is no migration '0001:head'" in on("migrate", "0001:head", code=2).stderr


def test_a_table_that_stays_in_use_is_one_line_and_exit_3(
    run: Run, pgqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_BOUND", 0.02)
    monkeypatch.setattr(migrate, "PATIENCE", 0.0)
    with psycopg.connect(pgqueue_database) as reader:
        reader.execute("select count(*) from pgqueue.jobs")
        result = run("migrate", "0001", "--database-url", pgqueue_database, code=3)
    assert "changed nothing: somebody's transaction has been holding pgqueue's tables" in result.stderr


def test_a_role_without_the_right_gets_one_line(run: Run, pgqueue_blank_database: str) -> None:
    with new_role(pgqueue_blank_database) as role:
        url = psycopg.conninfo.make_conninfo(pgqueue_blank_database, user=role)
        result = run("migrate", "--database-url", url, code=3)
    assert "permission denied for database" in result.stderr
    assert result.stderr.endswith(f'TO "{role}"\n')


def test_a_schema_from_the_future_is_left_alone(run: Run, pgqueue_database: str) -> None:
    with psycopg.connect(pgqueue_database, autocommit=True) as connection:
        connection.execute("update pgqueue.alembic_version set version_num = '9999'")
    result = run("migrate", "--database-url", pgqueue_database, code=3)
    assert "9999" in result.stderr
    assert HEAD in result.stderr
