"""pgqueue top: what it draws and what keys do are functions, and are asked; then the whole of it, in a terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from rich.cells import cell_len

from pgqueue import PgQueue, stats
from pgqueue.cli.topview import LETTERS, Rates, View, Wish, draw, press, sparkline
from pgqueue.migrate import head
from pgqueue.stats import Hand, Held, Lane, Picture
from tests.cli.conftest import Fill, Run
from tests.cli.terminal import Terminal, shown

AT = 1_800_000_000.5
QUEUES = [Lane(f"q{n}", n, 2 * n, 3, 0, 1, float(n) or None, n == 3) for n in range(30)]
WORKERS = [Hand(f"{n:08x}-0000", "host", n, 8, n, 1.5, 0.5, n != 2, False, None) for n in range(9)]
JOBS = [Held(n, f"shop.tasks.send_{n}", "q1", 1, 4, WORKERS[n % 9].id, 100.0 - n) for n in range(50)]
PICTURE = Picture(
    AT, AT - 60, QUEUES, WORKERS, JOBS,
    {("q1", WORKERS[1].id, int(AT) - age): age for age in range(1, 40)}, {("q1", int(AT) - 2): 5},
)  # fmt: skip


@pytest.fixture
def rates() -> Rates:
    made = Rates()
    made.add(PICTURE)
    return made


Press = Callable[..., View]


@pytest.fixture
def after(rates: Rates) -> Press:
    """`after("3", "down")`: the view once these keys were pressed."""

    def pressed(*keys: str, view: View | None = None) -> View:
        view = view or View()
        for key in keys:
            view, _ = press(view, key, PICTURE, rates)
        return view

    return pressed


@pytest.mark.parametrize("columns", [1, 10, 40, 80, 119, 300])
@pytest.mark.parametrize("lines", [1, 2, 5, 12, 24, 100])
@pytest.mark.parametrize("keys", [(), ("3", "end"), ("?",), ("/", "日")], ids=str)
def test_it_fills_every_terminal_and_no_line_is_wider(
    rates: Rates, after: Press, columns: int, lines: int, keys: tuple[str, ...]
) -> None:
    wide = replace(PICTURE, queues=[*QUEUES, QUEUES[1]._replace(queue="日本のジョブ" * 20)])
    drawn = draw(wide, rates, after(*keys), (columns, lines), title="shop", trouble="gone " * 99)
    assert len(drawn) == lines
    assert all(cell_len(line.plain) <= columns for line in drawn)


def test_nothing_that_a_job_holds_steers_the_terminal(rates: Rates) -> None:
    hostile = "\x1b[2J\x9b1m\n\u202e"
    picture = Picture(
        AT, AT - 60, [QUEUES[0]._replace(queue=hostile)], [WORKERS[0]._replace(host=hostile)],
        [JOBS[0]._replace(task=hostile, queue=hostile)],
    )  # fmt: skip
    filtered = View(filter=hostile)
    for view in (View(), View(opened=(hostile,)), View(said=hostile), filtered, replace(filtered, typing=True)):
        for line in draw(picture, rates, view, (120, 30), title=hostile, trouble=hostile):
            assert line.plain.isprintable(), ascii(line.plain)


@pytest.mark.parametrize("pane", ["1", "2", "3"])
def test_the_chosen_row_is_always_to_be_seen(rates: Rates, after: Press, pane: str) -> None:
    view = after(pane)
    for key in ["down"] * 60 + ["up"] * 60 + ["end", "home", "page down", "page up"]:
        view = after(key, view=view)
        marked = [line for line in shown(draw(PICTURE, rates, view, (120, 24))).splitlines() if line.startswith("> ")]
        assert len(marked) == 1
    assert after(pane, "down", "down").chosen != after(pane, "down").chosen


def test_a_row_stays_chosen_when_others_come_before_it(rates: Rates, after: Press) -> None:
    view = after("down", "down")
    chosen = view.chosen["queues"]
    more = replace(PICTURE, queues=[QUEUES[0]._replace(queue="a"), *QUEUES])
    (marked,) = [line for line in shown(draw(more, rates, view, (120, 60))).splitlines() if line.startswith("> ")]
    assert marked.split()[1] == chosen


def test_keys_sort_filter_and_hold(rates: Rates, after: Press) -> None:
    def first(view: View) -> str:
        lines = shown(draw(PICTURE, rates, view, (120, 60))).splitlines()
        return lines[4].split()[1 if lines[4].startswith(">") else 0]

    assert first(after()) == "q0"
    assert first(after("s", "S")) == "q29"  # by queued, the most first
    assert first(after("/", "q", "2", "9", "enter")) == "q29"
    assert first(after("/", "q", "2", "9", "escape")) == "q0"
    assert first(after("/", "q", "2", "9", "backspace", "8", "enter")) == "q28"
    assert after("/", "p", "q").filter == "pq"  # no commands while a text is typed
    assert after("p").held
    assert press(after("p"), "p", PICTURE, rates) == (View(), Wish("look"))
    assert "held: p goes on" in shown(draw(PICTURE, rates, after("p"), (120, 24)))


def test_a_job_is_cancelled_only_after_a_yes(rates: Rates, after: Press) -> None:
    asking = after("3", "c")
    assert "cancel job 0? y: yes" in shown(draw(PICTURE, rates, asking, (120, 24))).splitlines()[-1]
    assert press(asking, "y", PICTURE, rates) == (after("3"), Wish("cancel", 0))
    for other in ("n", "enter", "c", "escape", "q", " "):
        assert press(asking, other, PICTURE, rates) == (after("3"), None)
    assert press(after("3", "down"), "enter", PICTURE, rates)[1] == Wish("why", 1)
    assert "running job first" in after("1", "c").said  # and nothing is asked
    assert press(View(pane="jobs"), "c", replace(PICTURE, jobs=[]), rates)[1] is None


def test_a_queue_and_a_worker_are_opened_by_showing_their_jobs(after: Press) -> None:
    view = after("2", "down", "enter")
    assert (view.pane, view.filter) == ("jobs", WORKERS[1].id[:8])


def test_pictures_that_overlap_count_nothing_twice_and_lose_nothing() -> None:
    """A settle that was under way when the first was taken is told of by the second."""
    rates = Rates()
    rates.add(Picture(100.5, 40.5, failed={("q", 60): 1, ("q", 99): 2}))  # 99: redriven, so told of no more
    rates.add(
        Picture(
            100.5, 40.5, failed={("q", 60): 1}, completed={("q", None, 98): 5, ("q", None, 99): 1, ("q", None, 100): 1}
        )
    )
    rates.add(Picture(101.5, 95.5, completed={("q", None, 98): 5, ("q", None, 99): 7, ("q", None, 100): 3}))
    assert sum(rates.completed.values()) == 15
    assert rates.failed == {("q", 60): 1}
    assert rates.rate("q") == 1.5
    assert rates.rate("other") == 0
    assert rates.bars(3, "q") == [0, 0, 5]  # 96 to 98; that of 99 to 101 is under way
    rates.add(Picture(1_000.5, 940.5))
    assert rates.completed == {}


def test_a_sparkline_shows_a_nought_as_nothing_and_the_most_as_the_tallest() -> None:
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 1, 1_000]) == " ▁█"
    assert sparkline([5, 5]) == "██"
    assert sparkline([]) == ""
    assert sparkline([0, 1, 8], LETTERS) == " _#"


def test_a_picture_is_what_the_views_say(app: PgQueue, fill: Fill, connection: psycopg.Connection[Any]) -> None:
    for state in ("queued", "running", "completed", "dead", "blocked"):
        fill(state, "shop.send")
    connection.execute("update pgqueue.jobs set started_at = '-infinity' where state = 'running'")  # as plain SQL may
    found = app.look(stats.picture(app.statements, 60.0, 10))
    (lane,) = found.queues
    assert (lane.queued, lane.running, lane.blocked, lane.dead, lane.paused) == (1, 1, 1, 1, False)
    rows = connection.execute("select id::text, running from pgqueue.worker_stats order by 1").fetchall()
    assert sorted((one.id, one.running) for one in found.workers) == rows
    assert [(job.task, job.seconds) for job in found.jobs] == [("shop.send", None)]
    assert sum(found.completed.values()) == 1
    assert sum(found.failed.values()) == len(connection.execute("select from pgqueue.failed_attempts").fetchall()) == 1


# -- the whole of it ---------------------------------------------------------------------------------------------------


def test_without_a_terminal_it_says_what_to_take_instead(refused: Run) -> None:
    assert "`pgqueue stats`" in refused("top", code=2).stderr
    refused("top", "--interval", "0", code=2)


def test_walked_through_in_a_terminal(pgqueue_database: str, fill: Fill, connection: psycopg.Connection[Any]) -> None:
    job_id = fill("running", "shop.resize", queue="images")
    with Terminal(pgqueue_database, "top", "--interval", "0.2") as terminal:
        terminal.until(lambda screen: "images" in screen and "3 running jobs 1" in screen)
        fill(queue="email")
        terminal.until(lambda screen: "email" in screen)  # by itself
        terminal.type("3\r")
        terminal.until(lambda screen: f"job {job_id}" in screen and "any key goes back" in screen)
        terminal.type("x")
        terminal.resize(60, 12)
        assert len(terminal.until(lambda screen: "1 queues" in screen).splitlines()) == 12
        terminal.resize(100, 24)
        terminal.type("\x1b[Bc")
        terminal.until(lambda screen: f"cancel job {job_id}? y" in screen)
        terminal.type("y")
        terminal.until(lambda screen: "told to end" in screen)
        terminal.type("q")
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_whatever_ends_top_gives_the_terminal_back(pgqueue_database: str, number: int, code: int) -> None:
    with Terminal(pgqueue_database, "top") as terminal:
        terminal.until(lambda screen: "1 queues 0" in screen)
        os.kill(terminal.process.pid, number)
        assert terminal.ended() == code
        assert "Traceback" not in terminal.said


def test_where_there_is_nothing_to_show_it_ends_as_every_command_does(
    pgqueue_database: str, pgqueue_blank_database: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("update pgqueue.alembic_version set version_num = '9999'")
    for url, code, says in (
        ("postgresql://u:cAnArY@127.0.0.1:1/shop", 3, "cannot reach"),
        ("postgresql//u:cAnArY@h/d", 2, "database URL"),
        (pgqueue_blank_database, 3, "holds no pgqueue tables: run `pgqueue migrate`"),
        (pgqueue_database, 3, f"stands at migration 9999, this version of pgqueue needs {head()}"),
    ):
        with Terminal(url, "top") as terminal:
            assert terminal.ended() == code
            assert says in terminal.said
            assert "cAnArY" not in terminal.said
            assert "Traceback" not in terminal.said


def test_while_the_database_is_away_top_says_so_and_answers_keys(
    pgqueue_server: str, pgqueue_database: str, app: PgQueue, fill: Fill
) -> None:
    fill(queue="before")
    app.close()
    name = Identifier(pgqueue_database.rpartition("/")[2].partition("?")[0])
    with (
        psycopg.connect(pgqueue_server, autocommit=True) as outside,
        Terminal(pgqueue_database, "top", "--interval", "0.2") as terminal,
    ):
        terminal.until(lambda screen: "before" in screen)
        outside.execute(SQL("alter database {} allow_connections false").format(name))
        try:
            outside.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgqueue'")
            assert "before" in terminal.until(lambda screen: "waiting for the database" in screen)
            terminal.type("?")
            terminal.until(lambda screen: "any key goes back" in screen)
        finally:
            outside.execute(SQL("alter database {} allow_connections true").format(name))
        terminal.type("x")
        terminal.until(lambda screen: "waiting for" not in screen)
        fill(queue="afterwards")
        terminal.until(lambda screen: "afterwards" in screen)
        terminal.type("q")
        assert terminal.ended() == 0
