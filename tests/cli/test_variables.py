"""Options from the environment: one line that names the variable, whichever command reads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pgqueue import environment
from tests.cli.conftest import Run

CANARY = "cAnArY"


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_told", set())


OF_A_WORKER = sorted(environment.KNOWN - {"PGQUEUE_PG_BIN", "PGQUEUE_TEST_DATABASE_URL"})
NUMBERS = {"CONCURRENCY", "PROCESSES", "GRACE", "LEASE", "POLL_INTERVAL", "SWEEP_INTERVAL", "METRICS_PORT"}


@pytest.mark.parametrize("name", OF_A_WORKER)
def test_a_variable_that_is_empty_or_only_nearly_right_stops_a_worker_in_one_line_that_names_it(
    run: Run, name: str
) -> None:
    values = ["", " 5 ", "5s", "yes"] if name.removeprefix("PGQUEUE_") in NUMBERS else [""]
    for value in values:
        stderr = run("worker", "no_such_module:app", code=2, env={name: value}).stderr
        assert stderr.startswith(f"pgqueue: {name} "), stderr


def test_what_stands_on_the_command_line_counts_and_the_variable_is_not_read(run: Run) -> None:
    env = {"PGQUEUE_CONCURRENCY": "5s", "PGQUEUE_DATABASE_URL": "", "PGQUEUE_SCHEMA": ""}
    flags = ("--concurrency", "0", "--database-url", "postgresql://h/d", "--schema", "x")
    assert "concurrency must be" in run("worker", "m:a", *flags, code=2, env=env).stderr


@pytest.mark.parametrize("command", [("migrate",), ("jobs", "list"), ("dead", "list"), ("enqueue", "t")])
@pytest.mark.parametrize("name", ["PGQUEUE_DATABASE_URL", "PGQUEUE_SCHEMA"])
def test_every_command_refuses_an_empty_database_or_schema_by_name(
    refused: Run, command: tuple[str, ...], name: str
) -> None:
    assert refused(*command, code=2, env={name: ""}).stderr.startswith(f"pgqueue: {name} is empty")


def test_a_misspelled_variable_is_a_warning_without_its_value_and_the_command_goes_on(pgqueue_database: str) -> None:
    """In a process of its own: what is imported there may not look at the environment before the command does."""
    env = {"PGQUEUE_DATABASE_URL": pgqueue_database, "PGQUEUE_DATABSE_URL": CANARY}
    command = [sys.executable, "-m", "pgqueue", "jobs", "list", "--json"]
    result = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "[]\n")
    assert result.stderr == (
        "pgqueue: warning: the environment variable PGQUEUE_DATABSE_URL is no setting of pgqueue and changes nothing: "
        "did you mean PGQUEUE_DATABASE_URL?\n"
    )
