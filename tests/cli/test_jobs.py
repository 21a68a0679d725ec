"""pgqueue enqueue, and what `pgqueue jobs` does, on a real database."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pgqueue import PgQueue
from pgqueue.cli import cli
from tests.cli.conftest import Fill, Run
from tests.helpers import job_in
from tests.life.workbench import working


def row(connection: psycopg.Connection[Any], job_id: int, columns: str) -> Any:
    return connection.execute(f"select {columns} from pgqueue.jobs where id = %s", [job_id]).fetchone()


# -- enqueue -------------------------------------------------------------------------------------------------------


def test_enqueue_puts_in_a_job_with_the_general_defaults(on: Run, connection: psycopg.Connection[Any]) -> None:
    assert on("enqueue", "shop.send").stdout == "job 1: enqueued\n"
    columns = "state, task, queue, priority, max_attempts, args, attempt, run_at <= now(), expires_at, unique_key"
    assert row(connection, 1, columns) == ("queued", "shop.send", "default", 0, 4, {}, 0, True, None, None)


def test_enqueue_takes_arguments_and_options(on: Run, connection: psycopg.Connection[Any]) -> None:
    options = ("--queue", "vip", "--priority", "-5", "--delay", "60", "--max-attempts", "7", "--expires-in", "5")
    on("enqueue", "shop.send", '{"user_id": 7, "note": "grün"}', *options, "--unique-key", "k")
    columns = "queue, priority, max_attempts, args, unique_key, round(extract(epoch from run_at - created_at)), "
    assert row(connection, 1, columns + "extract(epoch from expires_at - run_at)") == (
        "vip", -5, 7, {"user_id": 7, "note": "grün"}, "k", 60, 5
    )  # fmt: skip


def test_enqueue_takes_a_time_tags_and_what_is_the_callers_own(on: Run, connection: psycopg.Connection[Any]) -> None:
    words = ("--run-at", "2030-05-01T08:00:00+02:00", "--timeout", "1.5", "--tag", "a b", "--tag", "c")
    on("enqueue", "shop.send", *words, "--meta", '{"by": "änn"}')
    columns = "run_at at time zone 'UTC' = '2030-05-01 06:00', timeout, tags, meta"
    assert row(connection, 1, columns) == (True, 1.5, ["a b", "c"], {"by": "änn"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--run-at", "tomorrow"), "--run-at must look like 2026-05-01T08:00:00+02:00, not 'tomorrow'"),
        (("--run-at", "2030-05-01T08:00:00Z", "--delay", "5"), "give either delay or run_at"),
        (("--timeout", "0"), "timeout must be between 0.001 and"),
        (("--tag", " "), "a tag must be 1 to 512 characters"),
        (("--meta", "[1]"), "--meta must be a JSON object"),
        (("--meta", "{"), "--meta is not JSON"),
    ],
)
def test_enqueue_refuses_a_bad_option_by_name(
    on: Run, connection: psycopg.Connection[Any], words: tuple[str, ...], message: str
) -> None:
    for command in (("enqueue", "t"), ("schedules", "add", "s", "t", "--every", "60")):
        if "--run-at" not in words or command[0] == "enqueue":
            assert message in on(*command, *words, code=2).stderr
    assert connection.execute(
        "select (select count(*) from pgqueue.jobs) + count(*) from pgqueue.schedules"
    ).fetchone() == (0,)


def test_an_array_of_arguments_is_positional(on: Run, app: PgQueue, drain: Callable[..., None]) -> None:
    @app.task(name="shop.add")
    def add(a: int, b: int) -> int:
        return a + b

    on("enqueue", "shop.add", "[3, 4]")
    drain()
    assert json.loads(on("jobs", "show", "1", "--args", "--json").stdout)["result"] == 7


def test_enqueue_prints_json_and_says_whether_the_job_was_there(on: Run) -> None:
    for existing in (False, True):
        said = on("enqueue", "shop.send", "--unique-key", "k", "--json").stdout
        assert json.loads(said) == {"id": 1, "existing": existing}
    assert on("enqueue", "shop.send", "--unique-key", "k").stdout == "job 1: a live job holds this key already\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{",), "JSON is not JSON"),
        (('"text"',), "must be a JSON object"),
        (("7",), "must be a JSON object"),
        (("[" * 100_000 + "]" * 100_000,), "nested too deep"),
        (("[NaN]",), "args[0] is nan"),
        (('["\\ud800"]',), "args[0] contains a lone surrogate"),
        (('{"a": "\\u0000"}',), "args.a contains a NUL character"),
        (('["' + "x" * 262_144 + '"]',), "262,148 bytes as JSON, more than 262,144"),
        (("--priority", "101"), "priority must be between -100 and 100"),
        (("--priority", "high"), "is not a valid integer"),
        (("--delay", "nan"), "delay must be between"),
        (("--delay", "-1"), "delay must be between"),
        (("--max-attempts", "0"), "max_attempts must be between 1"),
        (("--expires-in", "0"), "expires_in must be between"),
        (("--unique-key", " "), "unique_key must be"),
        (("--queue", "no spaces"), "queue must be"),
    ],
)
def test_what_cannot_be_enqueued_is_a_usage_error_and_nothing_is_written(
    refused: Run, arguments: tuple[str, ...], says: str
) -> None:
    result = refused("enqueue", "shop.send", *arguments, code=2)
    assert says in result.stderr
    assert len(result.stderr) < 500


@pytest.mark.parametrize("task", ["", "a b", "x" * 129, "\x1b[2J", "os.system; x", "\u202e"])
def test_a_name_that_cannot_be_a_tasks_is_a_usage_error(refused: Run, task: str) -> None:
    assert "task must be 1 to 128 letters" in refused("enqueue", task, code=2).stderr


# -- list ----------------------------------------------------------------------------------------------------------

STATES = ("dead", "completed", "cancelled", "expired", "running", "blocked", "queued")


def listed(text: str) -> list[int]:
    """The ids in a table."""
    return [int(line.split()[0]) for line in text.splitlines() if line.lstrip()[:1].isdigit()]


def test_list_shows_jobs_in_every_state_newest_first(on: Run, fill: Fill) -> None:
    ids = [fill(state) for state in STATES]
    assert listed(on("jobs", "list").stdout) == ids[::-1]
    found = json.loads(on("jobs", "list", "--json").stdout)
    assert [(job["id"], job["state"]) for job in found] == list(zip(ids, STATES, strict=True))[::-1]


def test_list_filters_and_reads_on(on: Run, fill: Fill) -> None:
    ids = {(task, state): fill(state, task) for task in ("a", "b") for state in ("dead", "queued")}
    fifth = fill(queue="vip")

    def ask(*options: str) -> set[int]:
        return {job["id"] for job in json.loads(on("jobs", "list", "--json", *options).stdout)}

    assert ask("--state", "dead") == {ids["a", "dead"], ids["b", "dead"]}
    assert ask("--task", "a") == {ids["a", "queued"], ids["a", "dead"]}
    assert ask("--task", "a", "--state", "queued") == {ids["a", "queued"]}
    assert ask("--queue", "vip") == {fifth}
    assert ask("--limit", "2") == {fifth, fifth - 1}
    assert ask("--limit", "2", "--before", str(fifth)) == {fifth - 1, fifth - 2}
    assert ask("--task", "%") == ask("--task", "a%") == set()  # names are compared as they stand


def test_an_empty_list_says_so_and_is_no_error(refused: Run) -> None:
    for command in ("jobs", "dead"):
        assert refused(command, "list", code=0).stdout == f"no {'dead ' if command == 'dead' else ''}jobs\n"
        assert refused(command, "list", "--json", code=0).stdout == "[]\n"


@pytest.mark.parametrize("options", [("--state", "lost"), ("--limit", "0"), ("--limit", "1001"), ("--before", "x")])
def test_a_filter_that_cannot_be_is_a_usage_error(refused: Run, options: tuple[str, ...]) -> None:
    refused("jobs", "list", *options, code=2)


BOMB = "[" + ",".join(["1e131071"] * 100) + "]"  # 13 MB as text
DEEP = "[" * 10_000 + "]" * 10_000


def as_python_reads(text: str) -> Any:
    """Since 3.12 it reads some thousand levels of nesting."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return {"$pgqueue": "unreadable", "why": type(error).__name__}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("args", "[1e5000]"),
        ("args", '{"x": ' + "[" * 1_500 + "]" * 1_500 + "}"),
        ("args", BOMB),
        ("args", DEEP),
        ("meta", "[1e5000]"),
        ("meta", DEEP),
        ("meta", BOMB),
        ("started_at", "infinity"),
        ("attempt", str(2**31 - 1)),
        ("created_at", "infinity"),
        ("created_at", "-infinity"),
        ("run_at", "20000-01-01Z"),
        ("run_at", "1000-01-01Z BC"),
    ],
    ids=lambda value: value[:20],
)
def test_a_row_that_python_cannot_read_hides_no_other(
    on: Run, fill: Fill, connection: psycopg.Connection[Any], column: str, value: str
) -> None:
    """It is the row that somebody looks for."""
    good, bad, dead = fill(), fill(), fill("dead")
    connection.execute(f"update pgqueue.jobs set {column} = %s where id = %s", [value, bad])
    connection.execute(f"update pgqueue.dead_jobs set {column} = %s where id = %s", [value, dead])
    assert listed(on("jobs", "list").stdout) == [dead, bad, good]
    assert listed(on("dead", "list").stdout) == [dead]
    stored = connection.execute(f"select left({column}::text, 1000000) from pgqueue.dead_jobs").fetchone()[0]
    for command in ("jobs", "dead"):
        shown = json.loads(on(command, "show", str(dead), "--args", "--json").stdout)
        assert len(json.dumps(shown)) < 10_000
        assert shown[column] is None or shown[column] == as_python_reads(stored)
    assert json.loads(on("dead", "redrive", str(dead), "--args", "[7]", "--json").stdout) == {"ids": [dead]}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *itertools.product(["result", "errors"], [DEEP, BOMB]),
        ("died_at", "infinity"),
        ("died_at", "-infinity"),
        ("tags", "{{a,NULL},{c,d}}"),
    ],
    ids=lambda value: value[:20],
)
def test_what_only_dead_jobs_have_hides_no_other_either(
    on: Run, fill: Fill, connection: psycopg.Connection[Any], column: str, value: str
) -> None:
    good, bad = fill("dead"), fill("dead")
    connection.execute(f"update pgqueue.dead_jobs set {column} = %s where id = %s", [value, bad])
    for command in ("jobs", "dead"):
        assert listed(on(command, "list").stdout) == [bad, good]
        assert len(on(command, "show", str(bad), "--args", "--json").stdout) < 10_000
        on(command, "show", str(bad), "--args")


@pytest.mark.parametrize(
    "errors",
    [
        '{"a": 1}',
        '"text"',
        "[1, null]",
        "[{}]",
        '[{"attempt": [1], "at": {"a": 1}, "error": null, "traceback": ["x"]}]',
        '[{"at": "yesterday"}, {"at": "2026-13-01T00:00:00+00:00"}, {"at": "0000-01-01T00:00:00+00:00"}]',
        '[{"at": "infinity"}, {"at": "999999-01-01"}, {"at": "2026-01-01T00:00:00+24:00"}, {"at": 7}]',
        '[{"at": "2001-02-31T23:59:59.999999+14:59"}, {"at": "2001-02-00T00:00:00-00:00"}]',
    ],
)
def test_errors_of_another_shape_than_ours_are_shown_as_far_as_they_go_and_stop_no_view(
    on: Run, fill: Fill, connection: psycopg.Connection[Any], errors: str
) -> None:
    dead = fill("dead")
    connection.execute("update pgqueue.dead_jobs set errors = %s where id = %s", [errors, dead])
    for command in ("jobs", "dead"):
        on(command, "show", str(dead))
        assert isinstance(json.loads(on(command, "show", str(dead), "--json").stdout)["errors"], list)
    fill(queue="other"), fill("dead", queue="other")
    stats = "select queue, queued, dead, failed_1m from pgqueue.queue_stats order by queue"
    assert connection.execute(stats).fetchall() == [("default", 0, 1, 0), ("other", 1, 1, 1)]


def test_json_of_which_the_server_can_make_no_text_hides_no_other_job(
    app: PgQueue, fill: Fill, connection: psycopg.Connection[Any]
) -> None:
    good, bad = fill("dead"), fill("dead")
    more_than_a_gigabyte = "[" + ",".join(["1e131071"] * 8_500) + "]"
    connection.execute("update pgqueue.dead_jobs set args = %s where id = %s", [more_than_a_gigabyte, bad])
    unreadable = {"$pgqueue": "unreadable", "why": "larger than the server can hold as text"}
    assert [(job.id, job.args, job.error) for job in app.dead.list()] == [
        (bad, unreadable, "Boom: no"),
        (good, {}, "Boom: no"),
    ]
    assert app.dead.redrive(bad, args=[7]) == [bad]


# -- show ----------------------------------------------------------------------------------------------------------


def test_show_has_every_field_of_a_job_but_its_arguments(on: Run, fill: Fill) -> None:
    job_id = fill(args={"card": "4111"}, meta={"k": 1}, unique_key="k", tags=None)
    text = on("jobs", "show", str(job_id)).stdout
    shown = dict(line.split(None, 1) for line in text.splitlines())
    assert shown["id"] == str(job_id)
    assert shown["state"] == "queued"
    assert shown["task"] == "shop.send"
    assert shown["meta"] == '{"k": 1}'
    assert shown["unique_key"] == "k"
    assert "args" not in shown
    assert "4111" not in text


def test_show_says_how_far_the_job_is_and_which_attempt_said_so(
    on: Run, fill: Fill, connection: psycopg.Connection[Any]
) -> None:
    job, silent = fill("running"), fill("queued")
    connection.execute(
        "insert into pgqueue.progress (job_id, fence, attempt, fraction, note, at) "
        "values (%s, 1, 1, 0.999, E'row 7\\x1b[31m', now() - interval '70 s')",
        [job],
    )
    (line,) = [line for line in on("jobs", "show", str(job)).stdout.splitlines() if line.startswith("progress")]
    assert line == "progress        99%, 1 min ago: row 7\\x1b[31m"  # never rounded up, nothing for the terminal
    said = json.loads(on("jobs", "show", str(job), "--json").stdout)["progress"]
    assert (said["fraction"], said["note"], said["attempt"]) == (0.999, "row 7\x1b[31m", 1)
    connection.execute("update pgqueue.progress set attempt = 3, note = null")
    assert "99% by attempt 3, 1 min ago\n" in on("jobs", "show", str(job)).stdout
    assert "progress" not in on("jobs", "show", str(silent)).stdout
    assert json.loads(on("jobs", "show", str(silent), "--json").stdout)["progress"] is None
    dead = fill("dead")
    connection.execute("update pgqueue.progress set job_id = %s, attempt = 1", [dead])
    assert "99%, 1 min ago\n" in on("dead", "show", str(dead)).stdout


@pytest.mark.parametrize("state", ["running", "dead"])
def test_show_prints_what_the_job_said_in_its_log_when_asked_to_and_nothing_in_it_steers_the_terminal(
    on: Run, fill: Fill, connection: psycopg.Connection[Any], state: str
) -> None:
    job, silent = fill(state), fill(state)
    group = "dead" if state == "dead" else "jobs"
    add = "insert into pgqueue.job_logs values (%s, %s, %s, %s, '2026-05-01T08:00:00Z', %s, %s)"
    connection.execute(add, [job, 2, 1, 2, "ERROR", "it failed\nValueError: \x1b[31mno"])
    connection.execute(add, [job, 1, 1, 1, "INFO", "begins"])
    assert "begins" not in on(group, "show", str(job)).stdout
    assert on(group, "show", str(job), "--log").stdout.splitlines()[-6:] == [
        "log of attempt 1",
        "2026-05-01 08:00:00 INFO    begins",
        "",
        "log of attempt 2",
        "2026-05-01 08:00:00 ERROR   it failed",
        "    ValueError: \\x1b[31mno",
    ]
    assert [line["message"] for line in json.loads(on(group, "show", str(job), "--log", "--json").stdout)["log"]] == [
        "begins",
        "it failed\nValueError: \x1b[31mno",
    ]
    assert "log" not in json.loads(on(group, "show", str(job), "--json").stdout)
    assert on(group, "show", str(silent), "--log").stdout.splitlines()[-1].startswith("no log: it said nothing")


def test_arguments_and_results_are_shown_only_when_asked_for(on: Run, fill: Fill) -> None:
    job_id = fill("completed", args={"card": "cAnArY"}, result={"paid": True})
    for asked in (
        ("jobs", "show", str(job_id)),
        ("jobs", "show", str(job_id), "--json"),
        ("jobs", "list"),
        ("jobs", "list", "--json"),
    ):
        text = on(*asked).stdout
        assert "cAnArY" not in text
        assert "paid" not in text
    text = on("jobs", "show", str(job_id), "--args").stdout
    assert 'args            {"card": "cAnArY"}\n' in text  # as --args of a redrive takes it
    assert 'result          {"paid": true}\n' in text
    shown = json.loads(on("jobs", "show", str(job_id), "--args", "--json").stdout)
    assert (shown["args"], shown["result"]) == ({"card": "cAnArY"}, {"paid": True})


def test_show_has_the_error_and_traceback_of_every_failed_attempt(on: Run, fill: Fill) -> None:
    errors = [
        {
            "attempt": n,
            "fence": n,
            "at": "2026-01-01T00:00:00+00:00",
            "error": f"Boom: {n}",
            "traceback": f"line {n}\nagain",
        }
        for n in (1, 2)
    ]
    job_id = fill("dead", errors=errors)
    for command in ("jobs", "dead"):
        text = on(command, "show", str(job_id)).stdout
        assert "attempt 1 at 2026-01-01T00:00:00+00:00: Boom: 1\n    line 1\n    again\n" in text
        assert "attempt 2 at 2026-01-01T00:00:00+00:00: Boom: 2\n    line 2\n    again\n" in text
        assert json.loads(on(command, "show", str(job_id), "--json").stdout)["errors"] == errors


@pytest.mark.parametrize(
    "command",
    [
        ("jobs", "show"),
        ("jobs", "cancel"),
        ("jobs", "retry"),
        ("jobs", "wait"),
        ("dead", "show"),
        ("dead", "redrive"),
        ("dead", "purge"),
    ],
)
@pytest.mark.parametrize("job_id", ["7", "0", "9223372036854775807"])
def test_an_unknown_id_is_a_failed_operation_and_named(refused: Run, command: tuple[str, str], job_id: str) -> None:
    result = refused(*command, job_id, code=1)
    assert job_id in result.stderr


@pytest.mark.parametrize("job_id", ["x", "1.5", "", "1e3", "9" * 30])
def test_an_id_that_is_none_is_an_error_without_a_traceback(refused: Run, job_id: str) -> None:
    refused("jobs", "show", job_id, code=2)


# -- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["queued", "blocked"])
def test_cancel_ends_a_job_that_has_not_started(on: Run, fill: Fill, state: str) -> None:
    first, second = fill(state), fill(state)
    assert on("jobs", "cancel", str(first)).stdout == f"job {first}: cancelled\n"
    assert json.loads(on("jobs", "cancel", str(second), "--json").stdout) == {"ids": [second], "asked": []}
    shown = json.loads(on("jobs", "show", str(first), "--json").stdout)
    assert (shown["state"], shown["error"]) == ("cancelled", "cancelled by an operator")


@pytest.mark.parametrize("state", ["completed", "cancelled", "expired", "dead"])
def test_cancel_leaves_a_job_alone_that_has_ended_and_says_what_it_is(on: Run, fill: Fill, state: str) -> None:
    job_id, live = fill(state), fill()
    result = on("jobs", "cancel", str(job_id), "998", str(live), code=1)
    said = f"job {job_id} is {state}; there is no job 998: only a job that has not ended can be cancelled"
    assert result.stderr == f"pgqueue: {said}\n"
    assert result.stdout == f"job {live}: cancelled\n"
    assert json.loads(on("jobs", "show", str(job_id), "--json").stdout)["state"] == state


def test_cancel_asks_a_running_job_to_end(on: Run, fill: Fill, connection: psycopg.Connection[Any]) -> None:
    job_id = fill("running")
    assert (
        on("jobs", "cancel", str(job_id), "--why", "wrong file").stdout
        == f"job {job_id}: it runs, and is asked to end\n"
    )
    assert row(connection, job_id, "state, cancelling") == ("running", "wrong file")
    assert on("jobs", "cancel", str(job_id)).stdout == f"job {job_id}: it runs, and was asked to end before\n"
    other = fill("running")
    assert json.loads(on("jobs", "cancel", str(other), "--json").stdout) == {"ids": [], "asked": [other]}


def test_cancel_by_filter_says_how_many_there_are_and_asks(
    on: Run, run: Run, fill: Fill, connection: psycopg.Connection[Any], pgqueue_database: str
) -> None:
    tagged = [fill(tags="{import}"), fill("running", tags="{import}")]
    keyed = fill(unique_key="k")
    live = "select count(*) from pgqueue.jobs where cancelling is null"
    assert (
        on("jobs", "cancel", "--tag", "import", "--dry-run").stdout
        == f"2 jobs would be cancelled: {tagged[0]}, {tagged[1]}\n"
    )
    asked = CliRunner().invoke(
        cli, ["jobs", "cancel", "--tag", "import"], env={"PGQUEUE_DATABASE_URL": pgqueue_database}, input="n\n"
    )
    assert (asked.exit_code, asked.stdout) == (1, "")
    assert "cancel 2 jobs? [y/N]" in asked.stderr
    assert connection.execute(live).fetchone() == (3,)
    said = on("jobs", "cancel", "--tag", "import", "--state", "queued", "--yes").stdout
    assert said == f"1 job cancelled, or asked to end: {tagged[0]}\n"
    assert json.loads(on("jobs", "cancel", "--key", "k", "--yes", "--json").stdout) == {"ids": [keyed]}
    assert on("jobs", "cancel", str(tagged[1]), "--task", "other", "--yes").stdout == "0 jobs would be cancelled\n"
    assert connection.execute(live).fetchone() == (1,)
    assert on("jobs", "cancel", "--all", "--yes").stdout == f"1 job cancelled, or asked to end: {tagged[1]}\n"
    assert connection.execute(live).fetchone() == (0,)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cancel",), "say which: ids, or --task, --queue"),
        (("cancel", "--limit", "5"), "say which: ids, or --task, --queue"),
        (("cancel", "--queue", "a b", "--yes"), "queue must be 1 to 128 letters"),
        (("cancel", "7", "--why", " "), "why must be 1 to 512 characters"),
        (("change", "7"), "change() needs a priority, a run_at or a delay"),
        (("change", "7", "--run-at", "tomorrow"), "--run-at must look like 2026-05-01T08:00:00+02:00, not 'tomorrow'"),
        (("change", "7", "--run-at", "2026-05-01T08:00:00"), "--run-at must say its time zone"),
        (("change", "7", "--delay", "-1"), "delay must be between 0 and"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_asked_is_a_usage_error(refused: Run, arguments: tuple[str, ...], says: str) -> None:
    assert says in refused("jobs", *arguments, code=2).stderr


# -- change ----------------------------------------------------------------------------------------------------------


def test_change_gives_jobs_another_priority_and_another_time(
    on: Run, fill: Fill, connection: psycopg.Connection[Any]
) -> None:
    first, second, dead = fill(), fill(), fill("dead")
    assert on("jobs", "change", str(first), "--priority", "50").stdout == f"job {first}: changed\n"
    assert row(connection, first, "priority, run_at <= now()") == (50, True)
    at = ("--run-at", "2030-05-01T08:00:00+02:00")
    assert json.loads(on("jobs", "change", str(second), *at, "--json").stdout) == {"ids": [second]}
    assert row(connection, second, "priority, run_at = '2030-05-01T06:00:00Z'") == (0, True)
    result = on("jobs", "change", str(dead), str(first), "998", "--delay", "60", code=1)
    assert result.stdout == f"job {first}: changed\n"
    assert f"job {dead} is dead; there is no job 998: only a queued job can be changed" in result.stderr
    late = fill(expires_at="2030-01-01Z")
    assert f"job {late} would have expired by then" in on("jobs", "change", str(late), *at, code=1).stderr


# -- retry -----------------------------------------------------------------------------------------------------------

LATER = "2100-01-01T00:00:00Z"


def due(connection: psycopg.Connection[Any], job_id: int) -> bool:
    row = connection.execute("select run_at <= now() from pgqueue.jobs where id = %s", [job_id]).fetchone()
    return row == (True,)


def test_retry_makes_jobs_due_that_wait_for_their_time_or_their_retry(
    on: Run, fill: Fill, connection: psycopg.Connection[Any]
) -> None:
    scheduled, retrying, other = fill(run_at=LATER), fill(run_at=LATER, attempt=2), fill(run_at=LATER)
    said = on("jobs", "retry", str(scheduled), str(retrying), str(scheduled)).stdout
    assert said == f"job {scheduled}: due now\njob {retrying}: due now\n"
    assert [due(connection, job_id) for job_id in (scheduled, retrying, other)] == [True, True, False]
    assert json.loads(on("jobs", "show", str(retrying), "--json").stdout)["attempt"] == 2


def test_retry_of_a_job_that_is_due_already_is_no_error_and_changes_nothing(
    on: Run, fill: Fill, connection: psycopg.Connection[Any]
) -> None:
    job_id = fill()
    before = connection.execute("select * from pgqueue.jobs").fetchall()
    assert on("jobs", "retry", str(job_id)).stdout == f"job {job_id}: due already\n"
    assert json.loads(on("jobs", "retry", str(job_id), "--json").stdout) == {"ids": []}
    assert connection.execute("select * from pgqueue.jobs").fetchall() == before


@pytest.mark.parametrize("state", ["running", "blocked", "completed", "cancelled", "expired", "dead"])
def test_retry_leaves_every_other_job_alone_and_says_what_it_is(on: Run, fill: Fill, state: str) -> None:
    job_id = fill(state)
    said = on("jobs", "retry", str(job_id), code=1).stderr
    assert said == f"pgqueue: job {job_id} is {state}: only a queued job can be made due now\n"
    assert json.loads(on("jobs", "show", str(job_id), "--json").stdout)["state"] == state


def test_ids_that_cannot_be_retried_are_named_and_the_others_done(
    on: Run, fill: Fill, connection: psycopg.Connection[Any]
) -> None:
    dead, later, another = fill("dead"), fill(run_at=LATER), fill(run_at=LATER)
    result = on("jobs", "retry", str(dead), "998", str(later), code=1)
    assert result.stdout == f"job {later}: due now\n"
    assert f"job {dead} is dead; there is no job 998: only a queued job" in result.stderr
    result = on("jobs", "retry", str(another), str(dead), "--json", code=1)
    assert json.loads(result.stdout) == {"ids": [another]}
    assert due(connection, later)
    assert due(connection, another)


def test_change_and_retry_by_filter_act_on_queued_jobs_alone(
    on: Run, fill: Fill, connection: psycopg.Connection[Any]
) -> None:
    late = [fill(run_at=LATER, queue="email") for _ in range(2)]
    running, other = fill("running", queue="email"), fill(run_at=LATER)
    said = on("jobs", "change", "--queue", "email", "--priority", "5", "--dry-run").stdout
    assert said == f"2 jobs would be changed: {late[0]}, {late[1]}\n"
    said = on("jobs", "change", "--queue", "email", "--priority", "5").stdout
    assert said == f"2 jobs changed: {late[0]}, {late[1]}\n"
    found = connection.execute("select id from pgqueue.jobs where priority = 5 order by id").fetchall()
    assert [row[0] for row in found] == late
    assert json.loads(on("jobs", "retry", str(late[1]), str(other), "--queue", "email", "--json").stdout) == {
        "ids": [late[1]]
    }
    assert on("jobs", "retry", "--queue", "email").stdout == f"1 job due now: {late[0]}\n"
    assert [due(connection, job_id) for job_id in (*late, other)] == [True, True, False]
    assert on("jobs", "retry", "--queue", "nobody.knows").stdout == "0 jobs due now\n"
    assert json.loads(on("jobs", "show", str(running), "--json").stdout)["state"] == "running"


def test_retry_without_an_id_is_a_usage_error(refused: Run) -> None:
    assert "say which: ids, or --task" in refused("jobs", "retry", code=2).stderr


# -- wait ----------------------------------------------------------------------------------------------------------


def test_wait_prints_the_result_alone_or_beside_the_id(on: Run, app: PgQueue, drain: Callable[..., None]) -> None:
    @app.task(name="shop.add")
    def add(a: int, b: int) -> dict[str, Any]:
        return {"sum": a + b, "name": "grün"}

    on("enqueue", "shop.add", "[3, 4]")
    drain()
    assert json.loads(on("jobs", "wait", "1").stdout) == {"sum": 7, "name": "grün"}
    said = on("jobs", "wait", "1", "--timeout", "5", "--json").stdout
    assert json.loads(said) == {"id": 1, "result": {"sum": 7, "name": "grün"}}


def test_enqueue_waits_for_what_a_worker_makes_of_it(on: Run, app: PgQueue) -> None:
    @app.task(name="shop.add")
    def add(a: int, b: int) -> int:
        return a + b

    @app.task(name="shop.fail", max_attempts=1)
    def fail() -> None:
        raise ValueError("no more")

    with working(app):
        assert on("enqueue", "shop.add", "[3, 4]", "--wait").stdout == "7\n"
        said = on("enqueue", "shop.add", "[3, 5]", "--wait", "--wait-timeout", "20", "--json").stdout
        assert json.loads(said) == {"id": 2, "existing": False, "result": 8}
        refusal = on("enqueue", "shop.fail", "--max-attempts", "1", "--wait", code=1)
        assert refusal.stderr == "pgqueue: job 3 is dead (attempts): ValueError: no more\n"
        assert refusal.stdout == ""


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("dead", "job {} is dead (attempts): Boom: no"),
        ("cancelled", "job {} is cancelled: because"),
        ("expired", "job {} is expired: not started before it expired"),
        ("queued", "job {}: after 0.2 s it has not ended"),
        ("pruned", "job {} is nowhere any more: it has ended and is not kept, or its enqueue was rolled back"),
        ("unknown", "there is no job {}"),
    ],
)
def test_without_a_result_wait_says_why_and_fails(
    on: Run, app: PgQueue, connection: psycopg.Connection[Any], state: str, says: str
) -> None:
    job = job_in(app, connection, {"pruned": "completed", "unknown": "queued"}.get(state, state))
    if state == "pruned":
        connection.execute("delete from pgqueue.finished_jobs")
    job += state == "unknown"
    for more in ((), ("--json",)):
        refusal = on("jobs", "wait", str(job), "--timeout", "0.2", *more, code=1)
        assert refusal.stderr == f"pgqueue: {says.format(job)}\n"
        assert refusal.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("jobs", "wait", "1", "--timeout", "-1"), "--timeout must be between 0 and"),
        (("jobs", "wait", "-1"), "No such option"),
        (("jobs", "wait", str(2**63)), "a job's id must be between 0 and"),
        (("enqueue", "t", "--wait-timeout", "5"), "--wait-timeout is for --wait"),
        (("enqueue", "t", "--wait", "--wait-timeout", "nan"), "--wait-timeout must be between 0 and"),
    ],
)
def test_a_wait_that_cannot_be_is_a_usage_error_and_enqueues_nothing(
    on: Run, connection: psycopg.Connection[Any], arguments: tuple[str, ...], says: str
) -> None:
    assert says in on(*arguments, code=2).stderr
    assert connection.execute("select count(*) from pgqueue.jobs").fetchone() == (0,)


def test_wait_on_a_schema_that_is_not_there_says_so_at_once(run: Run, pgqueue_blank_database: str) -> None:
    refusal = run("jobs", "wait", "1", code=3, env={"PGQUEUE_DATABASE_URL": pgqueue_blank_database})
    assert "run `pgqueue migrate`" in refusal.stderr
    refusal = run("jobs", "wait", "1", code=3, env={"PGQUEUE_DATABASE_URL": "postgresql://127.0.0.1:1/nowhere"})
    assert "cannot reach 127.0.0.1:1/nowhere" in refusal.stderr
