"""pgqueue stats, pgqueue workers: what the views say, in numbers for people and for programs."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue
from tests.cli.conftest import Fill, Run
from tests.helpers import worker_row


def test_stats_are_what_the_views_say(on: Run, fill: Fill, connection: psycopg.Connection[Any]) -> None:
    for state in ("queued", "running", "completed", "dead", "blocked"):
        fill(state, "shop.send")
    connection.execute("select pgqueue.add_schedule('nightly', 'shop.send', '0 2 * * *', timezone => 'Europe/Paris')")
    found = json.loads(on("stats", "--json").stdout)
    assert set(found) == {"queues", "tasks", "workers", "schedules"}
    for part in found:
        view = f"{part.removesuffix('s')}_stats"
        cursor = connection.execute(f"select * from pgqueue.{view}")
        assert cursor.description is not None
        assert {name for row in found[part] for name in row} == {column.name for column in cursor.description}
        assert len(found[part]) == cursor.rowcount > 0
    (queue,) = found["queues"]
    assert [queue[state] for state in ("queued", "running", "dead", "blocked", "completed_1m")] == [1, 1, 1, 1, 1]
    assert 0 < queue["oldest_age"] < 3600
    (task,) = found["tasks"]
    assert (task["task"], task["count"], task["failures"]) == ("shop.send", 2, 1)
    (schedule,) = found["schedules"]
    assert (schedule["name"], schedule["cron"], schedule["status"]) == ("nightly", "0 2 * * *", "active")
    assert "0 2 * * * Europe/Paris" in on("stats").stdout.split("worker ")[1]


def test_a_part_alone_is_asked_for_alone(on: Run, fill: Fill) -> None:
    fill()
    assert set(json.loads(on("stats", "workers", "queues", "--json").stdout)) == {"queues", "workers"}
    assert on("stats", "tasks").stdout == "no attempt ended within the last hour\n"
    assert on("stats", "schedules").stdout == "no schedules\n"
    assert "'nonsense' is not one of" in on("stats", "nonsense", code=2).stderr


def test_workers_list_says_who_is_alive_and_who_went_silent(
    on: Run, app: PgQueue, connection: psycopg.Connection[Any]
) -> None:
    assert on("workers", "list").stdout == "no workers\n"
    silent, alive, leaving = (worker_row(app, connection, tasks=["a"], lease=lease) for lease in (0.001, 60.0, 60.0))
    connection.execute("update pgqueue.workers set stopping = true, queues = '{a,b}' where id = %s", [leaving])
    lines = {line.split()[0]: line.split() for line in on("workers", "list").stdout.splitlines()[2:]}
    assert {name: words[3] for name, words in lines.items()} == {
        str(silent)[:8]: "silent", str(alive)[:8]: "alive", str(leaving)[:8]: "stopping",
    }  # fmt: skip
    assert lines[str(leaving)[:8]][4:6] == ["a,", "b"]
    by_id = {one["id"]: one for one in json.loads(on("workers", "list", "--json").stdout)}
    assert by_id[str(leaving)]["queues"] == ["a", "b"]
    assert by_id[str(alive)]["queues"] is None


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_on_a_narrow_terminal_a_table_leaves_out_what_can_be_spared_and_still_lines_up(
    on: Run, fill: Fill, columns: int
) -> None:
    fill(queue="email")
    fill(queue="日本のジョブ")  # two columns a character
    fill("dead", queue="x")
    lines = on("stats", "queues", env={"COLUMNS": str(columns)}).stdout.splitlines()
    assert len(lines) == 5
    assert all(word in lines[0] for word in ("queue", "queued", "running", "oldest"))
    assert ("failed/min" in lines[0]) is (columns >= 80)
    from rich.cells import cell_len

    end = lines[0].index("queued") + len("queued")  # numbers end where their heading does
    ends = [max(place for place in range(end + 1) if cell_len(line[:place]) <= end) for line in lines[2:]]
    assert [line[:place][-1] for line, place in zip(lines[2:], ends, strict=True)] == ["1", "0", "1"]


def test_a_role_that_may_not_look_is_told_all_that_it_lacks(on: Run, app: PgQueue) -> None:
    from tests.roles import new_role

    with new_role(app.conninfo) as role:
        app.engine.dispose()
        url = f"{app._database}{'&' if '?' in str(app._database) else '?'}user={role}"
        said = on("stats", "workers", env={"PGQUEUE_DATABASE_URL": url}, code=3).stderr
    assert "GRANT USAGE ON SCHEMA" in said
    assert '"worker_stats"' in said
    assert '"queue_stats"' not in said
