"""--watch: the same command again and again, on a screen or into a pipe, until somebody has seen enough."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from pgqueue import PgQueue
from pgqueue.cli.screen import keys_of
from tests.cli.conftest import Fill, Run
from tests.cli.terminal import Terminal
from tests.cli.test_help import COMMANDS
from tests.cli.test_output import command
from tests.helpers import eventually

SHOWS_STATE = {
    ("jobs", "list"), ("jobs", "show"), ("dead", "list"), ("dead", "show"), ("schedules", "list"), ("why",),
    ("doctor",), ("stats",), ("workers", "list"), ("queues", "list"), ("tasks", "list"),
}  # fmt: skip


def test_every_command_that_shows_what_changes_can_be_watched() -> None:
    watched = {path for path, one in COMMANDS.items() if any(option.name == "watch" for option in one.params)}
    assert watched >= SHOWS_STATE
    assert all(path[-1] in ("list", "show", "why", "doctor", "stats", "logs") for path in watched)


def test_it_draws_over_what_it_showed_and_q_ends_it(pgqueue_database: str, fill: Fill) -> None:
    first = fill(task="shop.\x1b[2Jsend")
    with Terminal(pgqueue_database, "jobs", "list", "--watch", "0.1") as terminal:
        screen = terminal.until(lambda screen: str(first) in screen)
        assert screen.startswith("pgqueue jobs list  every 0.1 s")
        assert r"shop.\x1b[2Jsend" in screen
        second = fill(task="shop.resize")
        terminal.until(lambda screen: "shop.resize" in screen)
        assert terminal.said.count("\x1b[2J") == 2  # once for the page, once for its size: never again
        terminal.resize(60, 5)
        screen = terminal.until(lambda screen: "more lines: make the window taller" in screen)
        assert len(screen.splitlines()) == 5
        terminal.type("q")
        assert terminal.ended() == 0
        assert str(second) not in terminal.screen()  # the page is left, what was there before is there again


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_whatever_ends_it_gives_the_terminal_back(pgqueue_database: str, number: int, code: int) -> None:
    with Terminal(pgqueue_database, "stats", "--watch") as terminal:
        terminal.until(lambda screen: "no queues" in screen)
        os.kill(terminal.process.pid, number)
        assert terminal.ended() == code
        assert "Traceback" not in terminal.said


def test_while_the_database_is_away_it_says_so_and_goes_on(
    pgqueue_server: str, pgqueue_database: str, app: PgQueue, fill: Fill
) -> None:
    fill(queue="before")
    app.close()  # its connections are lost, too
    name = Identifier(pgqueue_database.rpartition("/")[2].partition("?")[0])
    with (
        psycopg.connect(pgqueue_server, autocommit=True) as outside,
        Terminal(pgqueue_database, "stats", "queues", "--watch", "0.1") as terminal,
    ):
        terminal.until(lambda screen: "before" in screen)
        outside.execute(SQL("alter database {} allow_connections false").format(name))
        try:
            outside.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgqueue'")
            screen = terminal.until(lambda screen: "waiting for the database; this was at" in screen)
            assert "before" in screen
        finally:
            outside.execute(SQL("alter database {} allow_connections true").format(name))
        terminal.until(lambda screen: "waiting for" not in screen)
        fill(queue="afterwards")
        terminal.until(lambda screen: "afterwards" in screen)
        terminal.type("q")
        assert terminal.ended() == 0


def test_when_the_database_is_back_the_schema_is_looked_at_again(
    pgqueue_database: str, app: PgQueue, connection: psycopg.Connection[Any]
) -> None:
    """It may have been migrated meanwhile, and a statement of this version do half of what it should."""
    app.close()
    cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgqueue' and datname = %s"
    with Terminal(pgqueue_database, "stats", "queues", "--watch", "0.1") as terminal:
        terminal.until(lambda screen: "no queues" in screen)
        (version,) = connection.execute("select version_num from pgqueue.alembic_version").fetchone() or ("",)
        connection.execute("update pgqueue.alembic_version set version_num = '0001'")
        connection.execute(cut, [connection.info.dbname])
        terminal.until(lambda screen: "stands at migration 0001" in screen)
        connection.execute("update pgqueue.alembic_version set version_num = %s", [version])
        terminal.until(lambda screen: "waiting for" not in screen)
        terminal.type("q")
        assert terminal.ended() == 0


def test_at_the_start_a_database_that_is_away_is_an_error_as_ever(on: Run) -> None:
    said = on("stats", "--watch", env={"PGQUEUE_DATABASE_URL": "postgresql://u:cAnArY@127.0.0.1:1/shop"}, code=3)
    assert said.stderr.startswith("pgqueue: cannot reach 127.0.0.1:1/shop: ")
    assert said.stdout == ""


def test_into_a_pipe_one_picture_follows_the_other_and_a_reader_that_is_gone_ends_it(
    pgqueue_database: str, fill: Fill
) -> None:
    fill(queue="email")
    line, environment = command(pgqueue_database, "stats", "queues", "--json", "--watch", "0.1")
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["queues"][0]["queue"] == "email"
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""


def test_a_reader_that_is_gone_is_noticed_before_the_next_picture(pgqueue_database: str) -> None:
    line, environment = command(pgqueue_database, "stats", "queues", "--watch", "3600")
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b"Z\n")
        assert process.stdout.readline() == b"no queues\n"
        process.stdout.close()
        assert process.wait(30) == 1


def test_ctrl_c_ends_a_watch_in_a_pipe_without_a_word(pgqueue_database: str) -> None:
    line, environment = command(pgqueue_database, "jobs", "list", "--watch", "3600")
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_what_a_watched_job_becomes_is_shown_and_one_that_is_gone_ends_the_watch(
    pgqueue_database: str, fill: Fill, connection: psycopg.Connection[Any]
) -> None:
    job_id = fill()
    line, environment = command(pgqueue_database, "jobs", "show", str(job_id), "--json", "--watch", "0.1")
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["state"] == "queued"
        connection.execute("delete from pgqueue.jobs where id = %s", [job_id])
        eventually(lambda: process.poll() is not None)
        assert process.returncode == 1
        assert process.stderr.read() == f"pgqueue: there is no job {job_id}\n"


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "0.01"])
def test_seconds_that_cannot_be_are_a_usage_error(refused: Run, seconds: str) -> None:
    refused("stats", "--watch", seconds, code=2)


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("q", ["q"]),
        ("\x1b[A\x1bOB\x1b[1;5C", ["up", "down", "right"]),
        ("\x1b[5~\x1b[6~\x1b[H\x1b[4~\x1b[Z", ["page up", "page down", "home", "end", "back tab"]),
        ("\r\t\x7f\x1b", ["enter", "tab", "backspace", "escape"]),
        ("\x1b[15~\x1b[200~x\x1b[201~\x00", ["x"]),  # F5; what is pasted comes without its frame
        ("é日", ["é", "日"]),
    ],
    ids=ascii,
)
def test_keys_are_told_apart(typed: str, keys: list[str]) -> None:
    assert keys_of(typed) == keys
