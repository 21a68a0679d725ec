"""`--watch [SECONDS]`: a command that shows something, again and again, until q or Ctrl-C.

On a terminal it draws over what it showed; into a pipe or a file, and with --json, one picture follows the other. A
database that cannot be reached at the start is an error as ever; later it is waited for.
"""

from __future__ import annotations

import contextlib
import functools
import io
import select
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click
import psycopg
import sqlalchemy as sa

from pgqueue.cli.common import EXIT_DATABASE, cell, explain
from pgqueue.errors import PgQueueError

if TYPE_CHECKING:
    from rich.text import Text

F = TypeVar("F", bound=Callable[..., Any])

SECONDS = 2.0
LEAST, MOST = 0.1, 86_400.0
_ERRORS = (PgQueueError, psycopg.Error, sa.exc.SQLAlchemyError)


class _Seconds(click.FloatRange):
    """Not NaN either, which no comparison finds outside a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        return seconds if seconds == seconds else self.fail(f"{value!r} is not a valid number.", param, ctx)


def watch_option(function: F) -> F:
    """--watch [SECONDS], which calls the command over and over; without, once. Above `pass_context`."""

    @click.option(
        "--watch",
        type=_Seconds(LEAST, MOST),
        is_flag=False,
        flag_value=SECONDS,
        metavar="[SECONDS]",
        help=f"Show it again every so many seconds ({SECONDS:g}), until q or Ctrl-C.",
    )
    @functools.wraps(function)
    def watched(*args: Any, watch: float | None, **rest: Any) -> Any:
        if watch is None:
            return function(*args, **rest)
        return repeat(lambda: function(*args, **rest), watch, plain=bool(rest.get("as_json")))

    return watched  # type: ignore[return-value]


def repeat(show: Callable[[], Any], seconds: float, *, plain: bool = False) -> None:
    """Calls `show` every so many seconds. plain: on no screen, even where there is one."""
    try:
        from pgqueue.cli.screen import possible  # brings rich, which a command that draws nothing need not load

        if plain or not possible():
            _one_below_the_other(show, seconds, spaced=not plain)
        else:
            _on_a_screen(show, seconds)
    except KeyboardInterrupt:
        pass  # that is how it ends


def _one_below_the_other(show: Callable[[], Any], seconds: float, *, spaced: bool) -> None:
    poller = select.poll()
    with contextlib.suppress(OSError, ValueError):
        poller.register(sys.stdout.fileno(), 0)  # told of nothing but that its reader is gone
    away = False
    for turn in _turns():
        try:
            shown = _caught(show, io.StringIO())
            click.echo(f"{chr(10) * (turn > 0)}{_clock()}\n{shown}" if spaced else shown, nl=False)
            away = False
        except _ERRORS as error:
            said = _gone(error, first=turn == 0)
            if not away:
                click.echo(f"pgqueue: {said}; waiting for it", err=True)
            away = True
        sys.stdout.flush()
        if any(event for _, event in poller.poll(seconds * 1_000)):
            raise BrokenPipeError


def _on_a_screen(show: Callable[[], Any], seconds: float) -> None:
    from rich.text import Text

    from pgqueue.cli.screen import Screen

    shown = _caught(show, _Page())  # on the terminal as it is: an error now is one line on it, and a warning stays
    since, note = _clock(), ""
    with Screen() as screen:
        while True:
            title = Text.assemble((click.get_current_context().command_path, "bold"), f"  every {seconds:g} s")
            title.append(f"  {since}  q ends it", style="dim")
            above = [title, Text(note, style="bold red")]
            size, until = screen.size(), time.monotonic() + seconds
            while (rest := until - time.monotonic()) > 0 and size == screen.size():
                screen.paint(_cut([*above, *_folded(shown, size[0])], size[1]))
                for key in screen.wait(rest):
                    if key in ("q", "Q", "escape"):
                        return
                    if key == "redraw":
                        screen.repaint()
                    if key in (" ", "enter", "redraw"):
                        until = 0.0
            try:
                shown = _caught(show, _Page())
                since, note = _clock(), ""
            except _ERRORS as error:
                note = f"waiting for the database; this was at {since}: {_gone(error)}"


def _cut(lines: list[Text], height: int) -> list[Text]:
    from rich.text import Text

    left = len(lines) - height
    if left <= 0:
        return lines
    return [*lines[: height - 1], Text(f"… {left + 1} more lines: make the window taller", style="dim")]


def _caught(show: Callable[[], Any], page: io.StringIO) -> str:
    with contextlib.redirect_stdout(page), _codes_ignored():
        show()
    return page.getvalue()


class _Page(io.StringIO):
    """What the command prints is for a terminal, of the terminal's width."""

    def isatty(self) -> bool:
        return True


def _folded(text: str, columns: int) -> Iterator[Text]:
    from rich.console import Console
    from rich.text import Text

    console = Console(width=columns)
    for line in text.rstrip("\n").split("\n"):
        yield from Text.from_ansi(line).wrap(console, columns) if line else [Text()]


@contextlib.contextmanager
def _codes_ignored() -> Iterator[None]:
    """A `doctor` that has findings, and exits with 1 for it, has been shown all the same."""
    try:
        yield
    except SystemExit:
        pass


def _gone(error: Exception, *, first: bool = False) -> str:
    """What it says of a database that is away; whatever else it is, and at the start that too, is raised."""
    held = click.get_current_context().obj
    message, code = explain(error, held.get("url"))
    if first or code != EXIT_DATABASE:
        raise error
    if "app" in held:
        held["app"].begin_anew()
    return cell(message)


def _turns() -> Iterator[int]:
    turn = 0
    while True:
        yield turn
        turn += 1


def _clock() -> str:
    return datetime.now(UTC).strftime("%H:%M:%SZ")
