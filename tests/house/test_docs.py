"""What people may use is written down: every command, option, setting, public name, event, SQL function and view."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import pgqueue
from pgqueue import events
from pgqueue.cli import cli
from pgqueue.enqueue import Options
from pgqueue.job import DeadReason, State
from pgqueue.retry import RetryPolicy
from pgqueue.settings import WorkerSettings
from pgqueue.sql import source

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


@pytest.mark.parametrize("field", [item.name for item in dataclasses.fields(WorkerSettings)])
def test_every_worker_setting_is_in_the_documentation(text: str, field: str) -> None:
    assert mentions(text, field) or mentions(text, "--" + field.replace("_", "-"))


@pytest.mark.parametrize("name", pgqueue.__all__)
def test_every_public_name_is_in_the_documentation(text: str, name: str) -> None:
    assert mentions(text, name)


@pytest.mark.parametrize("name", events.NAMES)
def test_every_event_is_in_the_documentation(text: str, name: str) -> None:
    assert mentions(text, name)


@pytest.mark.parametrize("kind", [Options, RetryPolicy], ids=lambda kind: kind.__name__)
def test_every_option_of_a_job_and_of_a_policy_is_in_the_documentation(text: str, kind: Any) -> None:
    missing = [item.name for item in dataclasses.fields(kind) if not mentions(text, item.name)]
    assert not missing


def test_every_function_and_view_of_sql_is_in_the_documentation(text: str) -> None:
    missing = [name for name, _ in source("function", "view") if not re.search(rf"pgqueue\.{name}\b|`{name}\b", text)]
    assert not missing


def test_every_state_and_reason_is_in_the_documentation(text: str) -> None:
    missing = [value for kind in (State, DeadReason) for value in kind if not mentions(text, value)]
    assert not missing


def test_no_page_names_an_option_that_no_command_has(text: str) -> None:
    ours = re.findall(r"^\s*(?:\$ )?pgqueue (.*)$", text, re.MULTILINE)
    strange = {flag for line in ours for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", line)} - set(OPTIONS)
    assert strange <= {"--help", "--version"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
