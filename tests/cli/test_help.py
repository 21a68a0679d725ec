"""Help: every command has some, it fits the page, and it says what every option is for."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from pgqueue import __version__
from pgqueue.cli import cli
from tests.cli.conftest import Run


def commands(group: click.Group, *above: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield above, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            yield (*above, name), command


COMMANDS = dict(commands(cli))


def test_the_commands_are_these() -> None:
    assert {" ".join(path) for path, command in COMMANDS.items() if not isinstance(command, click.Group)} == {
        "migrate", "worker", "enqueue", "jobs list", "jobs show", "jobs cancel",
        "dead list", "dead show", "dead redrive", "dead purge",
    }  # fmt: skip


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_a_help_that_fits_the_page(run: Run, path: tuple[str, ...], flag: str) -> None:
    text = run(*path, flag).stdout
    assert text.startswith(f"Usage: {' '.join(('pgqueue', *path))} ")
    assert all(len(line) <= 100 for line in text.splitlines())
    assert len(text.splitlines()[2].split()) >= 3  # one sentence at least


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_is_for(path: tuple[str, ...]) -> None:
    for option in COMMANDS[path].params:
        if isinstance(option, click.Option):
            assert option.help, option.name


@pytest.mark.parametrize(
    "path", [path for path in COMMANDS if not isinstance(COMMANDS[path], click.Group)], ids=" ".join
)
def test_every_command_takes_the_database_and_what_prints_data_prints_json(path: tuple[str, ...]) -> None:
    flags = {flag for option in COMMANDS[path].params for flag in option.opts}
    assert {"--database-url", "--schema"} <= flags
    assert ("--json" in flags) is (path != ("worker",))  # whose lines are a log: --log-format json


def test_every_option_of_a_worker_is_also_a_variable() -> None:
    for option in COMMANDS[("worker",)].params:
        if isinstance(option, click.Option):
            assert option.envvar == f"PGQUEUE_{option.opts[0].removeprefix('--').upper().replace('-', '_')}"


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version").stdout == f"pgqueue, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("jobs", "nonsense"), ("jobs", "list", "--nonsense"), ("--nonsense",)]
)
def test_what_does_not_exist_is_a_usage_error_that_names_it(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, code=2)
    assert re.search(r"No such (command|option) '?-?-?nonsense", result.stderr.replace(":", ""))


@pytest.mark.parametrize("group", [(), ("jobs",), ("dead",)])
def test_a_group_alone_shows_its_commands_and_is_a_usage_error(run: Run, group: tuple[str, ...]) -> None:
    assert "Commands:" in run(*group, code=2).output
