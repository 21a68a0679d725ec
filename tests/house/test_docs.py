"""What people may use is written down: every command, option, variable, setting with unit, default and reason,
limit, error, public name and method, event, SQL function and view."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import pgqueue
from pgqueue import errors, events, migrate, settings, testing
from pgqueue.app import Dead, Jobs, PgQueue
from pgqueue.cli import cli
from pgqueue.counts import NAMES, Counts
from pgqueue.drivers.connections import _KINDS
from pgqueue.enqueue import NewJob, Options
from pgqueue.events import Event
from pgqueue.job import DeadReason, Job, State
from pgqueue.retention import Retention
from pgqueue.retry import RetryPolicy
from pgqueue.schedule import Schedule
from pgqueue.schedules import Schedules
from pgqueue.settings import WorkerSettings
from pgqueue.sql import source
from pgqueue.steering import Queues, Tasks
from pgqueue.task import Task, make
from pgqueue.worker.probe import Collector
from tests.cli.test_help import parse

CHECKOUT = Path(pgqueue.__file__).parent.parent
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]

pytestmark = pytest.mark.skipif(not PAGES[0].exists(), reason="not run from a checkout")


@pytest.fixture(scope="module")
def text() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def commands(group: click.Group, above: str = "pgqueue") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above} {name}")
        else:
            yield f"{above} {name}", command


COMMANDS = dict(commands(cli))
OPTIONS = sorted(
    {flag for one in [cli, *COMMANDS.values()] for p in one.params for flag in p.opts if flag[:2] == "--"}
    - {"--version"}
)


def mentions(text: str, name: str) -> bool:
    """As a word of its own, in code or in prose."""
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_documentation(text: str, command: str) -> None:
    short = command.removeprefix("pgqueue ") if command.count(" ") > 1 else command  # "dead list, dead show ID"
    assert mentions(text, short)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_in_the_documentation(text: str, option: str) -> None:
    assert mentions(text, option)


def table(heading: str) -> dict[str, dict[str, str]]:
    """The rows of the guide's table whose headings begin so: by its first cell, by column."""
    guide = (CHECKOUT / "docs" / "guide.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^\| {re.escape(heading)} \|.*\n(?:\|.*\n)+", guide, re.MULTILINE)
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def plain(default: Any) -> str:
    """A default as the tables write it."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:,.10g}" if isinstance(default, int | float) else str(default).lower()


WORKER = COMMANDS["pgqueue worker"]


@pytest.mark.parametrize("option", [one for one in WORKER.params if isinstance(one, click.Option)], ids=str)
def test_every_worker_setting_is_documented_with_variable_unit_default_and_reason(option: click.Option) -> None:
    row = table("option | variable")[option.opts[0]]
    assert row["variable"] == option.envvar
    assert row["unit"]
    assert row["meaning"]
    assert row["why that default"]
    if option.name in ("queues", "database_url", "schema"):  # None in the code: every one, the app's, its default
        assert row["default"] in ("all", "the app's", settings.DEFAULT_SCHEMA)
    else:
        defaults = {item.name: item.default for item in dataclasses.fields(WorkerSettings)}
        assert row["default"] == plain(defaults.get(str(option.name), option.default))


@pytest.mark.parametrize("field", [item.name for item in dataclasses.fields(WorkerSettings)])
def test_a_worker_in_ones_own_process_takes_what_the_command_takes(field: str) -> None:
    assert f"--{field.replace('_', '-')}" in table("option | variable")


def test_every_setting_of_an_app_is_documented_with_unit_default_and_reason() -> None:
    rows = table("`PgQueue(…)`")
    parameters = {name: one.default for name, one in inspect.signature(PgQueue).parameters.items()}
    assert list(rows) == list(parameters)
    assert rows["schema"]["default"].strip('"') == parameters["schema"]
    assert rows["retention"]["default"] == plain(parameters["retention"])
    assert all(row["unit"] and row["meaning"] and row["why that default"] for row in rows.values())


def said(default: Any) -> str:
    """A default of a job, a task or a policy as the tables write it: nothing, be it None or empty, is none."""
    if default is dataclasses.MISSING or default is None or default == ():
        return "none"
    if isinstance(default, tuple):
        return ", ".join(one.__name__ for one in default)
    return default if isinstance(default, str) else plain(default)


@pytest.mark.parametrize(("heading", "kind"), [("option of a job", Options), ("`RetryPolicy(…)`", RetryPolicy)])
def test_every_option_of_a_job_and_of_a_policy_is_documented_with_unit_default_and_reason(
    heading: str, kind: Any
) -> None:
    rows = table(heading)
    assert {name: row["default"] for name, row in rows.items()} == {
        item.name: said(item.default) for item in dataclasses.fields(kind)
    }
    assert all(row["unit"] and row["meaning"] and row["why that default"] for row in rows.values())


def test_every_field_of_a_schedule_is_documented_with_unit_default_and_reason() -> None:
    rows = table("`Schedule(…)`")
    assert {name: row["default"] for name, row in rows.items()} == {
        item.name: {"timezone": "UTC", "name": "the task's"}.get(item.name, said(item.default))
        for item in dataclasses.fields(Schedule)
    }
    assert all(row["unit"] and row["meaning"] and row["why that default"] for row in rows.values())


def test_every_option_of_a_task_alone_is_documented_with_unit_default_and_reason() -> None:
    rows = table("option of a task")
    assert tuple(rows) == ("hard_timeout", "run_in", "keep_result", *Retention.NAMES)
    assert all(all(row.values()) for row in rows.values())
    kept = {name: "the app's: `retention" if name == "keep_for" else "the app's: none" for name in Retention.NAMES}
    made = inspect.signature(make).parameters
    assert {name: row["default"] for name, row in rows.items()} == {
        "hard_timeout": "none; in a process 5 s after `timeout",
        "run_in": made["run_in"].default,
        "keep_result": plain(made["keep_result"].default),
        **kept,
    }


def test_every_metric_is_documented_with_type_and_labels_and_no_other() -> None:
    counts = Counts()
    for name in NAMES:
        getattr(counts, name)["q", "t"] += 1
    counts.ended(("q", "t"), wait=0.1, run=0.1)
    served = {}
    for family in Collector(counts, lambda: (1, 2), lambda: [("q", 1, 2, 3, 4, 5, 0.5)]).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        served[name] = (family.type, ", ".join(labels) or "none")
    rows = table("metric")
    assert {name: (row["type"], row["labels"]) for name, row in rows.items()} == served
    assert all(row["meaning"] for row in rows.values())
    assert set(NAMES) == {name.split("_", 2)[2].removesuffix("_total") for name in served if "_jobs_" in name}


LIMITS = [name for name in vars(settings) if name.startswith("MAX_")] + ["BULK_CHUNK", "BULK_CHARS", "PARTITIONS_AHEAD"]


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_is_documented_with_its_value_and_reason(name: str) -> None:
    rows = [row for names, row in table("limit").items() if mentions(names, name)]
    assert len(rows) == 1
    value = getattr(settings, name)
    assert mentions(
        rows[0]["value"], f"{value // 1024} KB" if name.endswith("BYTES") and value > 1024 else f"{value:,}"
    )
    assert rows[0]["reason"]


def variables() -> set[str]:
    """The PGQUEUE_ variables that a string of the code names, and those of the commands' options."""
    found = {one.envvar for command in COMMANDS.values() for one in command.params if isinstance(one.envvar, str)}
    for module in Path(pgqueue.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"\bPGQUEUE_[A-Z_]*[A-Z]\b", node.value))
    return found


@pytest.mark.parametrize("name", sorted(variables()))
def test_every_environment_variable_is_in_the_documentation(text: str, name: str) -> None:
    assert mentions(text, name)


@pytest.mark.parametrize("name", ["PGQUEUE_PG_BIN", "PGQUEUE_TEST_DATABASE_URL"])
def test_every_variable_that_is_no_setting_is_documented_with_unit_default_and_reason(name: str) -> None:
    row = table("other variable")[name]
    assert all(row[column] for column in ("default", "unit", "meaning", "why that default"))


def test_no_page_names_a_variable_that_nothing_reads(text: str) -> None:
    assert set(re.findall(r"\bPGQUEUE_[A-Z_]+\b", text)) <= variables()


RAISED = [name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)]


@pytest.mark.parametrize("name", [name for name in RAISED if name != "Steer"])  # the base of four, which nobody raises
def test_every_error_is_in_the_documentation(text: str, name: str) -> None:
    assert mentions(text, name)


# For pgqueue's own rooms; an application has no use for them.
INSIDE = {
    "check",
    "scheduled",
    "statements",
    "perform",
    "conninfo",
    "async_engine",
    "loop",
    "move",
    "enqueue_alone",
    "enqueue_alone_async",
    "body",
    "takes",
    "forget_body",
    "delay_after",
    "to_json",
    "by_key",
}
PUBLIC = [PgQueue, Jobs, Dead, Queues, Tasks, Schedules, Task, NewJob, Job, Event, RetryPolicy, pgqueue.Context]


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_method_and_field_that_people_use_is_in_the_documentation(text: str, kind: type) -> None:
    """Also what it inherits from one of ours: cancel, change and retry_now of the jobs come from another room."""
    ours = [one for one in kind.__mro__ if one.__module__.startswith("pgqueue.")]
    names = {name for one in ours for name in (*vars(one), *inspect.get_annotations(one))}
    assert sorted(name for name in names if name[0] != "_" and name not in INSIDE and not mentions(text, name)) == []


def test_what_they_inherit_is_among_them() -> None:
    inherited = {name for one in Jobs.__mro__[1:] if one.__module__.startswith("pgqueue.") for name in vars(one)}
    assert {"cancel", "change", "retry_now"} <= inherited


@pytest.mark.parametrize("name", migrate.__all__)
def test_every_function_of_migrate_is_documented_with_what_it_does(name: str) -> None:
    assert table("`migrate.…`")[name]["what it does"]


FIXTURES = [name for name, one in vars(testing).items() if name.startswith("pgqueue_") and not inspect.ismodule(one)]


@pytest.mark.parametrize("name", FIXTURES)
def test_every_fixture_of_the_testing_plugin_is_in_the_documentation(text: str, name: str) -> None:
    assert mentions(text, name)


def test_the_fixtures_are_found() -> None:
    assert {"pgqueue_server", "pgqueue_template", "pgqueue_database", "pgqueue_blank_database"} <= {*FIXTURES}


@pytest.mark.parametrize("name", pgqueue.__all__)
def test_every_public_name_is_in_the_documentation(text: str, name: str) -> None:
    assert mentions(text, name)


@pytest.mark.parametrize("name", events.NAMES)
def test_every_event_is_in_the_documentation(text: str, name: str) -> None:
    assert mentions(text, name)


def test_every_function_and_view_of_sql_is_in_the_documentation(text: str) -> None:
    missing = [name for name, _ in source("function", "view") if not re.search(rf"pgqueue\.{name}\b|`{name}\b", text)]
    assert not missing


def test_every_state_and_reason_is_in_the_documentation(text: str) -> None:
    missing = [value for kind in (State, DeadReason) for value in kind if not mentions(text, value)]
    assert not missing


def test_the_readme_names_every_library_whose_connections_an_enqueue_takes() -> None:
    _, _, use = PAGES[0].read_text(encoding="utf-8").partition("\n## Use it\n")
    use = use.partition("\n## ")[0].lower()
    assert [library for library in {package for package, _ in _KINDS} if not mentions(use, library)] == []


RUN = {"README.md": {"python", "sh", "sql"}, "guide.md": {"python"}, "sql.md": {"sql"}}  # by tests/docs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_is_of_a_kind_that_the_tests_run(page: Path) -> None:
    assert set(re.findall(r"^ *```(\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= RUN.get(page.name, set())


def test_no_page_names_an_option_that_no_command_has(text: str) -> None:
    ours = re.findall(r"^\s*(?:\$ )?pgqueue (.*)$", text, re.MULTILINE)
    strange = {flag for line in ours for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", line)} - set(OPTIONS)
    assert strange <= {"--help", "--version"}


def lines(page: Path) -> Iterator[str]:
    """The command lines of a page: in a sentence between backticks, in a shell's block one a line."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"`(pgqueue [^`\n]+)`", text)
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        yield from re.findall(r"^ *(?:\$ )?(pgqueue [a-z].*)$", block, re.MULTILINE)


SESSIONS = {"pgqueue waiting"}  # an application_name, as pg_stat_activity shows it, and no command
LINES = sorted({(page.name, line) for page in PAGES for line in lines(page) if line not in SESSIONS})


@pytest.mark.parametrize(("page", "line"), LINES, ids=str)
def test_every_command_line_of_the_pages_parses(page: str, line: str) -> None:
    """In a sentence a command may stand without its arguments, which are not there by another name then."""
    words = shlex.split(re.sub(r" (JOB|ID)\b", " 42", re.split(r" [|>&]| #", line)[0]), comments=True)[1:]
    try:
        parse(words)
    except (click.MissingParameter, click.exceptions.NoArgsIsHelpError):
        assert not any(word.startswith("-") for word in words)


def test_the_command_lines_are_found() -> None:
    assert len(LINES) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
