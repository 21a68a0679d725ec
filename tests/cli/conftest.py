"""The command line in this process: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgqueue import PgQueue
from pgqueue.cli import cli
from pgqueue.testing import _new_database, _url
from tests.helpers import job_in

Run = Callable[..., Result]
Fill = Callable[..., int]


@pytest.fixture(autouse=True)
def no_settings_of_the_person_who_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PGQUEUE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def run() -> Run:
    """`run("jobs", "list", code=0)`: the result, after a look at its exit code, and that an error is one line."""

    def invoke(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(cli, arguments, prog_name="pgqueue", env=env, catch_exceptions=False)
        assert result.exit_code == code, result.output
        if code == 0:
            assert result.stderr == ""
        elif not result.stderr.startswith("Usage:"):  # click's own, which shows the usage first
            assert result.stderr.startswith("pgqueue: ")
            assert result.stderr.count("\n") == 1
            assert result.stderr.rstrip("\n").isprintable()
        return result

    return invoke


@pytest.fixture
def on(run: Run, pgqueue_database: str) -> Run:
    """`run` on the test's own database."""

    def invoke(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
        return run(*arguments, code=code, env={"PGQUEUE_DATABASE_URL": pgqueue_database, **(env or {})})

    return invoke


@pytest.fixture(scope="session")
def _untouched(pgqueue_server: str, pgqueue_template: str) -> Iterator[str]:
    with _new_database(pgqueue_server, pgqueue_template) as name:
        yield _url(pgqueue_server, name)


@pytest.fixture
def refused(run: Run, _untouched: str) -> Iterator[Run]:
    """`run` on a migrated database that many tests share, for commands that write nothing: that is looked at."""

    def invoke(*arguments: str, code: int, env: dict[str, str] | None = None) -> Result:
        return run(*arguments, code=code, env={"PGQUEUE_DATABASE_URL": _untouched, **(env or {})})

    yield invoke
    with psycopg.connect(_untouched, autocommit=True) as connection:
        assert connection.execute("select count(*) from pgqueue.all_jobs").fetchone() == (0,)


@pytest.fixture
def fill(app: PgQueue, connection: psycopg.Connection[Any]) -> Fill:
    """`fill("dead", task="shop.charge", error="…")`: a job in a state, with columns as given; its id."""

    def make(state: str = "queued", task: str = "shop.send", **columns: Any) -> int:
        job_id = job_in(app, connection, state, task)
        table = {"dead": "dead_jobs", "queued": "jobs", "running": "jobs", "blocked": "jobs"}.get(
            state, "finished_jobs"
        )
        for name, value in columns.items():
            value = json.dumps(value) if isinstance(value, dict | list) else value
            assignment = psycopg.sql.SQL("update pgqueue.{} set {} = %s where id = %s").format(
                psycopg.sql.Identifier(table), psycopg.sql.Identifier(name)
            )
            connection.execute(assignment, [value, job_id])
        return job_id

    return make
