"""pgqueue queues and pgqueue tasks: pause, resume, list, on a real database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Fill, Run


def test_a_queue_is_paused_shown_and_resumed(on: Run, fill: Fill, connection: psycopg.Connection[Any]) -> None:
    fill(queue="email")
    fill("dead", queue="slow")
    assert on("queues", "pause", "email", "--by", "ann, mail down").stdout == "email: paused\n"
    shown = on("queues", "list").stdout
    assert "by ann, mail down" in shown
    email, slow = json.loads(on("queues", "list", "--json").stdout)
    assert (email["name"], email["paused"], email["by"], email["queued"]) == ("email", True, "ann, mail down", 1)
    assert (slow["name"], slow["paused"], slow["since"], slow["dead"]) == ("slow", False, None, 1)
    assert on("queues", "resume", "email").stdout == "email: resumed\n"
    assert on("queues", "resume", "email").stdout == "email: was not paused\n"
    assert json.loads(on("queues", "resume", "never.seen", "--json").stdout) == {
        "name": "never.seen",
        "resumed": False,
    }
    assert connection.execute("select name, paused from pgqueue.queues").fetchall() == [("email", False)]


def test_a_task_is_paused_shown_and_resumed(on: Run) -> None:
    assert on("tasks", "list").stdout == "no task is paused\n"
    assert json.loads(on("tasks", "pause", "shop.send", "--by", "ann", "--json").stdout) == {
        "name": "shop.send",
        "paused": True,
    }
    assert "shop.send" in on("tasks", "list").stdout
    (one,) = json.loads(on("tasks", "list", "--json").stdout)
    assert (one["name"], one["by"], one["until"]) == ("shop.send", "ann", None)
    assert on("tasks", "resume", "shop.send").stdout == "shop.send: resumed\n"
    assert json.loads(on("tasks", "list", "--json").stdout) == []


@pytest.mark.parametrize("kind", ["queues", "tasks"])
def test_a_pause_may_end_by_itself(on: Run, kind: str) -> None:
    on(kind, "pause", "one", "--for", "3600")
    on(kind, "pause", "two", "--until", "2035-05-01T08:00:00+02:00")
    one, two = json.loads(on(kind, "list", "--json").stdout)
    left = datetime.fromisoformat(one["until"]) - datetime.now(UTC)
    assert 3500 < left.total_seconds() < 3700
    assert datetime.fromisoformat(two["until"]) == datetime.fromisoformat("2035-05-01T06:00:00+00:00")
    assert "until in 59 min" in on(kind, "list").stdout


@pytest.mark.parametrize("kind", ["queues", "tasks"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a b",), "must be 1 to 128 letters"),
        (("q", "--for", "0"), "--for must be a number of seconds between 0 and ten years"),
        (("q", "--for", "nan"), "--for must be a number of seconds between 0 and ten years"),
        (("q", "--for", "5", "--until", "2035-05-01T08:00:00Z"), "give either --for or --until"),
        (("q", "--until", "2035-05-01"), "--until must say its time zone"),
        (("q", "--until", "2135-05-01T08:00:00Z"), "until must lie within the next ten years"),
        (("q", "--by", ""), "by must be 1 to 512 characters"),
    ],
)
def test_a_pause_that_cannot_be_is_a_usage_error(
    refused: Run, kind: str, arguments: tuple[str, ...], says: str
) -> None:
    assert says in refused(kind, "pause", *arguments, code=2).stderr
