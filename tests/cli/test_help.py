"""Help: every command has some, it fits the page, says what every option is for, and teaches by examples that work."""

from __future__ import annotations

import re
import shlex
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
        "migrate", "worker", "enqueue", "jobs list", "jobs show", "jobs cancel", "jobs change", "jobs retry",
        "jobs wait", "queues list", "queues pause", "queues resume", "tasks list", "tasks pause", "tasks resume",
        "dead list", "dead show", "dead redrive", "dead purge",
        "schedules list", "schedules add", "schedules pause", "schedules resume", "schedules run", "schedules remove",
        "schedules preview", "why", "stats", "workers list", "top", "doctor", "demo", "bench", "completion",
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
    # One brings its own, the others need none.
    no_database = path in {("demo",), ("completion",), ("schedules", "preview")}
    assert ({"--database-url", "--schema"} <= flags) is not no_database
    # A worker's lines are a log: --log-format json; for programs `stats` is what `top` is for people.
    no_data = path in {("demo",), ("completion",), ("worker",), ("top",)}
    assert ("--json" in flags) is not no_data


# -- examples ----------------------------------------------------------------------------------------------------------


def examples(text: str) -> list[str]:
    """The lines below `Examples:`."""
    _, _, below = text.partition("Examples:\n")
    return [line.strip() for line in below.partition("\n\n")[0].splitlines()]


def parse(words: list[str]) -> tuple[str, ...]:
    """Parses a command line without running it; the path of its command. Raises click.UsageError."""
    command, name, above, path = cli, "pgqueue", None, list[str]()
    while True:
        above = command.make_context(name, words, parent=above)
        if not isinstance(command, click.Group):
            return tuple(path)
        rest = [*(above._protected_args if hasattr(above, "_protected_args") else above.protected_args), *above.args]
        found, command, words = command.resolve_command(above, rest)
        assert command is not None
        name = str(found)
        path.append(name)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_teaches_by_examples_that_parse(run: Run, path: tuple[str, ...]) -> None:
    lines = examples(run(*path, "--help").stdout)
    assert lines
    for line in lines:
        program, *words = shlex.split(re.sub(r" {2,}\w.*| > .*| >> .*", "", line), comments=True)
        assert program == "pgqueue"
        assert parse(words)[: len(path)] == path  # of this command, or of one below this group


def test_an_example_that_does_not_parse_would_be_seen() -> None:
    for words in (["jobs", "list", "--nonsense"], ["jobs", "nonsense"], ["jobs", "show"], ["jobs", "retry", "x"]):
        with pytest.raises(click.UsageError):
            parse(words)


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
