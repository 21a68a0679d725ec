"""Bars on long work: on a terminal, on standard error, and gone when it is done; nowhere else."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, control, migrate
from tests.cli.conftest import Fill, Run
from tests.cli.terminal import Terminal

Connection = psycopg.Connection[Any]


@pytest.fixture
def graves(fill: Fill, connection: Connection) -> int:
    """So many dead jobs that they take several batches."""
    fill("dead")
    columns = "queue, task, priority, run_at, max_attempts, attempt, fence, created_at, args, died_at, reason"
    text = (
        "insert into pgqueue.dead_jobs (id, {0}) select id + n, {0} from pgqueue.dead_jobs, generate_series(1, %s) as n"
    )
    connection.execute(text.format(columns).encode(), [2 * control.BATCH])
    return 2 * control.BATCH + 1


@pytest.mark.parametrize(("verb", "what"), [("redrive", "redriving"), ("purge", "removing")])
def test_many_dead_jobs_are_done_with_a_bar_that_is_gone_afterwards(
    pgqueue_database: str, graves: int, verb: str, what: str
) -> None:
    with Terminal(pgqueue_database, "dead", verb, "--all") as terminal:
        assert terminal.ended(60) == 0
        assert what in terminal.said
        assert f"/{graves}" in terminal.said
        assert what not in terminal.screen()
        assert terminal.screen().startswith(f"{graves} jobs")


@pytest.fixture
def waiting(fill: Fill, connection: Connection) -> int:
    """So many scheduled jobs that they take several batches."""
    text = (
        "insert into pgqueue.jobs (task, run_at) select 'shop.send', now() + interval '1 h' from generate_series(1, %s)"
    )
    connection.execute(text.encode(), [2 * control.BATCH + 1])
    return 2 * control.BATCH + 1


@pytest.mark.parametrize(
    ("words", "doing", "done"),
    [
        (("cancel", "--yes"), "cancelling", "cancelled"),
        (("change", "--priority", "5"), "changing", "changed"),
        (("retry",), "making due", "due now"),
    ],
)
def test_many_live_jobs_are_done_with_a_bar_that_is_gone_afterwards(
    pgqueue_database: str, waiting: int, words: tuple[str, ...], doing: str, done: str
) -> None:
    with Terminal(pgqueue_database, "jobs", *words, "--task", "shop.send") as terminal:
        assert terminal.ended(60) == 0
        assert f"/{waiting}" in terminal.said
        assert f"{doing} " in terminal.said.replace("\x1b[", " ")
        assert "━" not in terminal.screen()
        assert f"{waiting} jobs {done}" in terminal.screen()


def test_what_is_done_in_one_step_shows_no_bar(pgqueue_database: str, fill: Fill) -> None:
    fill("queued")
    with Terminal(pgqueue_database, "jobs", "cancel", "--all", "--yes") as terminal:
        assert terminal.ended(60) == 0
        assert "━" not in terminal.said
        assert "1 job cancelled" in terminal.screen()


@pytest.mark.parametrize("way", [("migrate",), ("migrate", "base")], ids=["up", "down"])
def test_a_migration_shows_a_bar_that_is_gone_afterwards(pgqueue_blank_database: str, way: tuple[str, ...]) -> None:
    if "base" in way:
        migrate.upgrade(pgqueue_blank_database)
    with Terminal(pgqueue_blank_database, *way) as terminal:
        assert terminal.ended(60) == 0
        assert "migrating" in terminal.said
        assert f"/{len(migrate.revisions())}" in terminal.said
        assert "━" not in terminal.screen()
        assert "migrated from " in terminal.screen().replace("\n", " ")


def test_without_a_terminal_there_is_no_bar(on: Run, graves: int) -> None:
    assert len(json.loads(on("dead", "purge", "--all", "--json").stdout)["ids"]) == graves  # `on` sees standard error


def test_a_redrive_that_fails_in_its_last_batch_has_redriven_nothing(
    app: PgQueue, connection: Connection, graves: int
) -> None:
    """It reports after each batch, and is one transaction all the same."""
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2 * control.BATCH:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="plug"):
        app.perform(control.redrive(app.statements, everything=True, told=tell))
    assert told == [(start, graves) for start in (0, control.BATCH, 2 * control.BATCH)]
    assert connection.execute("select count(*) from pgqueue.dead_jobs").fetchone() == (graves,)


def test_a_migration_tells_of_each_revision_up_and_down(pgqueue_blank_database: str) -> None:
    told: list[tuple[int, int]] = []
    every = len(migrate.revisions())
    for revision in ("head", "head", migrate.revisions()[0], "base"):
        migrate.to(pgqueue_blank_database, "pgqueue", revision, told=lambda done, total: told.append((done, total)))
    assert told == [
        *((done, every) for done in range(every + 1)), (0, 0),
        *((done, every - 1) for done in range(every)), (0, 1), (1, 1),
    ]  # fmt: skip


def test_a_bench_shows_how_far_each_measure_is(pgqueue_blank_database: str) -> None:
    with Terminal(pgqueue_blank_database, "bench", "--jobs", "2500") as terminal:
        assert terminal.ended(100) == 0
        for what in ("enqueue, a commit each", "enqueue_many", "run", "start"):
            assert f"{what} " in terminal.said
        assert "━" not in terminal.screen()
        assert "jobs/s" in terminal.screen()
