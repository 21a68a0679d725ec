"""pgqueue schedules: what is enqueued at its time, looked at and steered from a shell."""

from __future__ import annotations

import json
from datetime import datetime

from pgqueue import PgQueue
from tests.cli.conftest import Run


def test_a_schedule_from_its_first_day_to_its_last(on: Run, app: PgQueue) -> None:
    assert on("schedules", "list").stdout == "no schedules\n"
    added = on(
        "schedules", "add", "nightly", "shop.clean_up", '{"days": 3}', "--cron", "0 2 29 2 mon", "--timezone",
        "Europe/Paris", "--queue", "slow", "--missed", "all", "--missed-limit", "5", "--overlap", "skip",
        "--priority", "3", "--max-attempts", "2", "--expires-in", "600", "--timeout", "9", "--tag", "night",
        "--meta", '{"by": "ann"}',
    ).stdout  # fmt: skip
    assert "schedule nightly: 0 2 29 2 mon Europe/Paris, next in " in added
    coming = app.schedules.preview("0 2 29 2 mon", timezone="Europe/Paris", count=3)
    assert [datetime.strptime(line.strip(), "%a %Y-%m-%d %H:%M:%S %z") for line in added.splitlines()[1:4]] == coming
    assert "day of month 29 or day of week mon (either is enough: cron's rule)" in added
    (one,) = json.loads(on("schedules", "list", "--json").stdout)
    assert (one["name"], one["status"], one["missed_limit"]) == ("nightly", "unattended", 5)
    assert "nightly" in on("schedules", "list").stdout

    assert on("schedules", "pause", "nightly").stdout == "schedule nightly: paused\n"
    assert on("schedules", "pause", "nightly").stdout == "schedule nightly: nothing to do, paused already\n"
    assert " paused " in on("schedules", "list").stdout
    ran = json.loads(on("schedules", "run", "nightly", "--json").stdout)
    job = app.jobs.get(ran["id"])
    assert (job.task, job.queue, job.args, job.priority, job.max_attempts) == (
        "shop.clean_up", "slow", {"days": 3}, 3, 2)  # fmt: skip
    assert (job.tags, job.meta["by"]) == (("night",), "ann")
    assert f"{job.id} queued" in on("schedules", "list").stdout
    assert json.loads(on("schedules", "resume", "nightly", "--json").stdout) == {"names": ["nightly"], "changed": True}

    changed = json.loads(on("schedules", "add", "nightly", "t", "--every", "90", "--json").stdout)
    assert (changed["every"], len(changed["ticks"]), changed["ticks"][0]) == (90.0, 3, changed["next_tick"])
    assert "every 90 s" in on("schedules", "list").stdout
    assert on("schedules", "remove", "nightly").stdout == "schedule nightly: removed\n"
    assert app.schedules.list() == []


def test_a_name_that_there_is_not_is_exit_code_1_and_changes_nothing(on: Run, app: PgQueue) -> None:
    app.schedules.add(name="there", task="t", every=60)
    for verb in ("pause", "resume", "remove"):
        error = on("schedules", verb, "there", "nobody", code=1).stderr
        assert "there is no schedule nobody" in error
    on("schedules", "run", "nobody", code=1)
    assert not app.schedules.get("there").paused


def test_what_cannot_be_a_schedule_is_exit_code_2(on: Run, app: PgQueue) -> None:
    for words in (
        ["--cron", "0 0 31 2 *"],
        ["--cron", "@daily"],
        ["--every", "0.1"],
        ["--cron", "0 2 * * *", "--timezone", "Mars/Base"],
        [],
    ):
        on("schedules", "add", "n", "t", *words, code=2)
    on("schedules", "add", "a b", "t", "--every", "60", code=2)
    assert "is not JSON" in on("schedules", "add", "n", "t", "{", "--every", "60", code=2).stderr
    assert app.schedules.list() == []


def test_what_the_code_declares_is_not_added_over(on: Run, app: PgQueue) -> None:
    app.schedules.add(name="n", task="t", every=60)
    app.perform(_declared(app))
    assert "is declared in code: change it there" in on("schedules", "add", "n", "t", "--every", "9", code=1).stderr


def _declared(app: PgQueue):  # type: ignore[no-untyped-def]
    from pgqueue.maintenance import tick

    app.schedules.remove("n")
    task = app.task(name="n", every=60)(lambda: None)
    return tick.declare(app.statements, task.scheduled(), ["n"])


def test_preview_shows_the_next_ticks_in_both_clocks_without_a_database(run: Run) -> None:
    words = ["schedules", "preview", "30 2 * * *", "--timezone", "Europe/Paris", "--after", "2026-03-28T00:00:00Z"]
    text = run(*words, "--count", "3").stdout
    assert "2026-03-29 01:00:00" in text
    assert "Sun 2026-03-29 03:00:00 +0200" in text
    assert json.loads(run(*words, "--count", "2", "--json").stdout) == {
        "ticks": ["2026-03-28T01:30:00+00:00", "2026-03-29T01:00:00+00:00"],
        "days": None,
    }
    assert "day of month 29 or day of week 1" in run("schedules", "preview", "0 0 29 2 1").stdout
    assert len(json.loads(run("schedules", "preview", "--every", "900", "--json").stdout)["ticks"]) == 5
    assert "never fires" in run("schedules", "preview", "0 0 31 2 *", code=2).stderr
    assert "--after must be a time" in run("schedules", "preview", "0 2 * * *", "--after", "noon", code=2).stderr
