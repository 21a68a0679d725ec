"""pgqueue dead list, show, redrive, purge: never more jobs than were named, all of them or none, and never twice."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgqueue import InvalidOption, PgQueue
from tests.cli.conftest import Fill, Run

Connection = psycopg.Connection[Any]


def ids_of(on: Run, *arguments: str, code: int = 0) -> list[int]:
    return json.loads(on(*arguments, "--json", code=code).stdout)["ids"]  # type: ignore[no-any-return]


def dead(connection: Connection) -> set[int]:
    return {row[0] for row in connection.execute("select id from pgqueue.dead_jobs").fetchall()}


def queued(connection: Connection) -> dict[int, Any]:
    return dict(connection.execute("select id, args from pgqueue.jobs where state = 'queued'").fetchall())


# -- list and show -------------------------------------------------------------------------------------------------


def test_list_shows_dead_jobs_alone_with_reason_and_last_error(on: Run, fill: Fill) -> None:
    first, second = fill("dead", "shop.charge", error="Timeout: late", reason="timeout"), fill("dead", "shop.send")
    fill("completed")
    fill()
    text = on("dead", "list").stdout
    lines = [line for line in text.splitlines() if line.lstrip()[:1].isdigit()]
    assert [int(line.split()[0]) for line in lines] == [second, first]
    assert "shop.charge" in lines[1]
    assert "timeout" in lines[1]
    assert "Timeout: late" in lines[1]
    (job,) = json.loads(on("dead", "list", "--task", "shop.charge", "--json").stdout)
    assert (job["id"], job["state"], job["reason"], job["error"]) == (first, "dead", "timeout", "Timeout: late")


@pytest.mark.parametrize("state", ["queued", "running", "completed"])
def test_show_refuses_a_job_that_is_not_dead_and_says_what_it_is(on: Run, fill: Fill, state: str) -> None:
    job_id = fill(state)
    assert f"job {job_id} is not dead, it is {state}" in on("dead", "show", str(job_id), code=1).stderr


# -- redrive -------------------------------------------------------------------------------------------------------


def test_redrive_sends_a_job_back_and_twice_makes_one_job(on: Run, fill: Fill, connection: Connection) -> None:
    job_id = fill("dead", args={"amount": 12})
    assert on("dead", "redrive", str(job_id)).stdout == f"1 job redriven: {job_id}\n"
    assert queued(connection) == {job_id: {"amount": 12}}
    again = on("dead", "redrive", str(job_id), code=1)
    assert again.stderr == f"pgqueue: not in the dead-letter table: {job_id}\n"
    assert queued(connection) == {job_id: {"amount": 12}}


def test_redrive_takes_corrected_arguments(on: Run, fill: Fill, connection: Connection) -> None:
    first, second, third = (fill("dead", args={"amount": "a dozen"}) for _ in range(3))
    assert ids_of(on, "dead", "redrive", str(first), str(second), "--args", '{"amount": 12}') == [first, second]
    assert ids_of(on, "dead", "redrive", str(third), "--args", "[13]") == [third]
    assert queued(connection) == {first: {"amount": 12}, second: {"amount": 12}, third: [13]}


@pytest.mark.parametrize("args", ["{", "7", '"x"', "null", "[NaN]", '{"a": "\\u0000"}'])
def test_redrive_refuses_arguments_that_cannot_be_stored(
    on: Run, fill: Fill, connection: Connection, args: str
) -> None:
    job_id = fill("dead")
    on("dead", "redrive", str(job_id), "--args", args, code=2)
    assert dead(connection) == {job_id}


@pytest.fixture
def graves(fill: Fill) -> dict[str, int]:
    """Dead jobs that differ in what can be asked for."""
    old = "2020-01-01T00:00:00Z"
    return {
        "plain": fill("dead", "a"),
        "late": fill("dead", "a", reason="timeout", error="TaskTimeout: 30 s"),
        "old": fill("dead", "b", died_at=old, error="OSError: disk full, 100% of it"),
        "vip": fill("dead", "b", queue="vip", error="OSError: disk_full"),
    }


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        (("--task", "a"), "plain late"),
        (("--task", "a", "--reason", "timeout"), "late"),
        (("--queue", "vip"), "vip"),
        (("--reason", "attempts"), "plain old vip"),
        (("--error", "OSError"), "old vip"),
        (("--error", "100%"), "old"),  # as it stands: % and _ are no patterns
        (("--error", "disk_full"), "vip"),
        (("--error", "%"), "old"),
        (("--older-than", "3600"), "old"),
        (("--younger-than", "3600"), "plain late vip"),
        (("--task", "b", "--younger-than", "3600"), "vip"),
        (("--all", "--limit", "1"), "old"),  # oldest death first
        (("--all",), "plain late old vip"),
        (("--task", "c"), ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("verb", ["redrive", "purge"])
def test_filters_name_jobs_and_a_dry_run_only_says_which(
    on: Run, graves: dict[str, int], connection: Connection, verb: str, filters: tuple[str, ...], named: str
) -> None:
    ids = sorted(graves[name] for name in named.split())
    assert sorted(ids_of(on, "dead", verb, *filters, "--dry-run")) == ids
    said = on("dead", verb, *filters, "--dry-run").stdout
    count = f"{len(ids)} {'job' if len(ids) == 1 else 'jobs'}"
    assert said.startswith(f"{count} would be {'redriven' if verb == 'redrive' else 'removed'}")
    assert dead(connection) == set(graves.values())
    assert queued(connection) == {}
    assert ids_of(on, "dead", verb, *filters) == ids
    assert dead(connection) == set(graves.values()) - set(ids)
    assert queued(connection).keys() == (set(ids) if verb == "redrive" else set())


@pytest.mark.parametrize("verb", ["redrive", "purge"])
def test_a_filter_that_was_forgotten_does_not_mean_every_job(
    on: Run, app: PgQueue, graves: dict[str, int], connection: Connection, verb: str
) -> None:
    arguments: tuple[str, ...]
    for arguments in ((), ("--dry-run",), ("--limit", "5"), ("--json",)):
        assert "say which: ids, or --task" in on("dead", verb, *arguments, code=2).stderr
    for which in ({}, {"limit": 5}, {"everything": False}, {"task": None}, {"ids": None, "limit": 1}):
        with pytest.raises(InvalidOption, match="say which dead jobs"):
            getattr(app.dead, verb)(**which)
    assert ids_of(on, "dead", verb, "--task", "") == []  # a filter, which matches what is empty
    assert dead(connection) == set(graves.values())


def test_ids_that_are_gone_are_named_and_the_others_done(on: Run, fill: Fill, connection: Connection) -> None:
    there = fill("dead")
    result = on("dead", "purge", "998", str(there), "999", code=1)
    assert result.stdout == f"1 job removed: {there}\n"
    assert result.stderr == "pgqueue: not in the dead-letter table: 998, 999\n"
    assert dead(connection) == set()


def test_ids_and_filters_must_both_hold(on: Run, graves: dict[str, int]) -> None:
    result = on("dead", "redrive", str(graves["plain"]), str(graves["vip"]), "--task", "a", "--json", code=1)
    assert json.loads(result.stdout) == {"ids": [graves["plain"]]}
    assert str(graves["vip"]) in result.stderr


def test_a_unique_key_that_is_taken_stops_the_whole_redrive(on: Run, fill: Fill, connection: Connection) -> None:
    free, taken = fill("dead"), fill("dead", unique_key="k")
    holder = fill(unique_key="k")
    result = on("dead", "redrive", str(free), str(taken), code=1)
    assert "holds the unique key" in result.stderr
    assert dead(connection) == {free, taken}
    assert queued(connection).keys() == {holder}


def test_many_ids_are_counted_and_not_all_printed(on: Run, fill: Fill) -> None:
    ids = [fill("dead") for _ in range(25)]
    assert on("dead", "purge", "--all").stdout.rstrip().endswith(f"{ids[19]} and 5 more")


@pytest.mark.parametrize(
    "options",
    [
        ("--older-than", "nan"),
        ("--older-than", "inf"),
        ("--older-than", "-1"),
        ("--younger-than", "x"),
        ("--reason", "unknown"),
        ("--limit", "0"),
        ("x",),
        ("1.5",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("verb", ["redrive", "purge"])
def test_a_filter_that_cannot_be_is_a_usage_error(refused: Run, verb: str, options: tuple[str, ...]) -> None:
    refused("dead", verb, *options, code=2)
