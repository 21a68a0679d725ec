"""What the commands share: the database options, error lines and exit codes, tables and JSON."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import click
import psycopg
import sqlalchemy as sa

from pgqueue import environment, monitor, versions
from pgqueue.app import PgQueue
from pgqueue.drivers import Steps
from pgqueue.errors import (
    ConfigurationError,
    EnqueueError,
    MissingRight,
    PgQueueError,
    SchemaError,
    UnusableConnection,
)
from pgqueue.job import Job
from pgqueue.logs import one_line
from pgqueue.settings import DEFAULT_SCHEMA, describe, scrub

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

EXIT_FAILED, EXIT_USAGE, EXIT_DATABASE = 1, 2, 3


class Group(click.Group):
    """A group whose commands' errors become one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)  # a command's own options are read in here, too
        except (PgQueueError, psycopg.Error, sa.exc.SQLAlchemyError) as error:
            give_up(error, ctx.obj.get("url") if ctx.obj else None)


def give_up(error: BaseException, url: str | None = None) -> NoReturn:
    """Prints the error's one line and exits with its code."""
    message, code = explain(error, url)
    click.echo(f"pgqueue: {message}", err=True)
    sys.exit(code)


def explain(error: BaseException, url: str | None) -> tuple[str, int]:
    """(line, exit code). The line holds no password and no arguments."""
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, UnusableConnection):  # the connection is ours: it is the database that takes no jobs
        return one_line(str(error)), EXIT_DATABASE
    if isinstance(error, ConfigurationError | EnqueueError):
        return one_line(str(error)), EXIT_USAGE
    if isinstance(error, SchemaError):
        return one_line(str(error)), EXIT_DATABASE
    if isinstance(error, PgQueueError):
        return one_line(str(error)), EXIT_FAILED
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
        return "the schema holds no pgqueue tables: run `pgqueue migrate`", EXIT_DATABASE
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return one_line(f"the role may not do this: {error.diag.message_primary}"), EXIT_DATABASE
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return one_line(error.diag.message_primary), EXIT_DATABASE if _down(error) else EXIT_FAILED
    if isinstance(error, psycopg.OperationalError | sa.exc.OperationalError):
        reason = scrub(str(error), url or "").strip().splitlines()[0] if str(error).strip() else "no answer"
        return f"cannot reach {describe(url or '')}: {one_line(reason)}", EXIT_DATABASE
    return f"{type(error).__name__}: the database refused", EXIT_FAILED


def _down(error: psycopg.Error) -> bool:
    return isinstance(error, psycopg.OperationalError) and not isinstance(error, psycopg.errors.QueryCanceled)


class Variable(click.Option):
    """An option that is an environment variable as well, read strictly: click takes an empty one for none, ` 5 ` for 5
    and `_` between digits, and does not say which variable it was that it could not read."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        name = str(self.envvar)
        text = os.environ.get(name)
        if text is None:
            return None
        if self.is_flag:
            environment.switch(name, text)
        elif isinstance(self.type, click.Choice):
            environment.one_of(name, text, self.type.choices)
        elif self.type is click.INT:
            environment.whole(name, text)
        elif self.type is click.FLOAT:
            environment.number(name, text)
        else:
            environment.present(name, text)
        return text


def warn_of_variables() -> None:
    """A line on standard error for each PGQUEUE_ variable that nobody reads; once a command, however often it looks."""
    held = click.get_current_context().ensure_object(dict)
    if not held.get("warned"):
        held["warned"] = True
        environment.warn(lambda line: click.echo(f"pgqueue: warning: {line}", err=True))


def database_options(function: F) -> F:
    """--database-url and --schema, before or after the subcommand; the later one counts."""

    @click.option("--database-url", envvar="PGQUEUE_DATABASE_URL", metavar="URL", help="postgresql://user@host/dbname")
    @click.option("--schema", envvar="PGQUEUE_SCHEMA", metavar="NAME", help="Schema of the tables.  [default: pgqueue]")
    @click.pass_context
    @functools.wraps(function)
    def with_options(ctx: click.Context, /, database_url: str | None, schema: str | None, **rest: Any) -> Any:
        chosen = ctx.ensure_object(dict)
        source = ctx.get_parameter_source
        if database_url is not None and ("url" not in chosen or source("database_url") is _ON_THE_LINE):
            chosen["url"] = database_url
        if schema is not None and ("schema" not in chosen or source("schema") is _ON_THE_LINE):
            chosen["schema"] = schema
        if not isinstance(ctx.command, click.Group):  # which may have an option after it
            for known, name in (("url", "PGQUEUE_DATABASE_URL"), ("schema", "PGQUEUE_SCHEMA")):
                if known not in chosen and name in os.environ:
                    environment.present(name, os.environ[name])
        return ctx.invoke(function, **rest)

    return with_options  # type: ignore[return-value]


_ON_THE_LINE = click.core.ParameterSource.COMMANDLINE


class _Command(PgQueue):
    """An app without tasks that looks, before its first statement, whether the schema is this version's: on another
    one a statement might do half of what it should."""

    verbs: tuple[str, ...] = ()  # what the command may have to run
    _looked = False

    def perform(self, steps: Steps[T]) -> T:
        """`PgQueue.perform`. Raises SchemaError when the schema is older or newer than this version; MissingRight, with
        all that the role lacks for the command."""
        return self._after_a_look(super().perform, steps)

    def look(self, steps: Steps[T]) -> T:
        """`PgQueue.look`, and as `perform`."""
        return self._after_a_look(super().look, steps)

    def begin_anew(self) -> None:
        """After the database was away: with new connections, and a look at what the schema is by now."""
        self.close()
        self._looked = False

    def _after_a_look(self, run: Callable[[Steps[T]], T], steps: Steps[T]) -> T:
        try:
            if not self._looked:
                super().look(monitor.check_schema(self.statements, versions.head()))
                self._looked = True
            return run(steps)
        except MissingRight as error:
            verbs = ("schema_version", *self.verbs)
            raise super().look(monitor.refusal(self.statements, verbs, error)) from None


def app_of(ctx: click.Context, *verbs: str) -> PgQueue:
    """An app without tasks on the chosen database; closed when the command ends. verbs: the statements that the command
    may run, for a role that lacks a right to be told all of them at once. A command that looks again has the same."""
    warn_of_variables()
    if "app" in ctx.obj:
        return ctx.obj["app"]  # type: ignore[no-any-return]
    app = ctx.obj["app"] = _Command(ctx.obj.get("url"), schema=ctx.obj.get("schema", DEFAULT_SCHEMA))
    app.verbs = verbs
    ctx.obj["url"] = app.conninfo
    ctx.call_on_close(app.close)
    return app


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, default=_plain))  # ASCII: nothing in it steers a terminal or fails in another encoding


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str, spare: Sequence[str] = ()
) -> None:
    """A table, numbers to the right; where the terminal is too narrow for it, without the columns that can be spared,
    the first of them first, and else one row below the other. No field can steer the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    texts = [[cell(value) for value in row] for row in rows]
    if not texts:
        click.echo(empty)
        return
    # Into a file or a pipe nothing is cut, for grep.
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1_000)
    widths = [max(map(cell_len, column)) for column in zip(columns, *texts, strict=True)]
    prose = next((name for name in ("error", "detail") if name in columns), None)  # takes what the others leave
    if prose is not None:
        widths[columns.index(prose)] = 24
    shown = [place for place, width in enumerate(widths) if width]  # not an empty column without a name
    for name in ("", *spare):
        shown = [place for place in shown if not name or columns[place] != name]
        if sum(widths[place] + 3 for place in shown) - 3 > console.width:
            continue
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for place in shown:
            side: Any = "right" if _are_measures([row[place] for row in rows]) else "left"
            table.add_column(columns[place], overflow="fold", no_wrap=columns[place] != prose, justify=side)
        for row in texts:
            table.add_row(*(Text(row[place]) for place in shown))
        console.print(table)
        return
    for row in texts:
        record = Table.grid(padding=(0, 2))
        record.add_column(no_wrap=True)
        record.add_column(overflow="fold")
        for column, text in zip(columns, row, strict=True):
            if text:
                record.add_row(column, Text(text))
        console.print(record, "")


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    return one_line(str(value))


_MEASURE = re.compile(r"[\d.,]+(?: (?:ms|s|min|h|d))?")


def _are_measures(values: Sequence[Any]) -> bool:
    """Numbers, or lengths of time: what is read by its last digit."""
    said = [cell(value) for value in values if value not in (None, "")]
    return bool(said) and all(map(_MEASURE.fullmatch, said))


def end_of(name: str, width: int = 32) -> str:
    """A long dotted name by its end, which tells more: `…tasks.import_catalogue`."""
    return name if len(name) <= width else f"…{name[-width + 1 :]}"


def lasting(seconds: float | None) -> str:
    """`0.2 s`, `12 s`, `3.5 min`, `4 h`, `9 d`: a length of time as people read it."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1e3:.0f} ms"


def ago(moment: datetime | None) -> str:
    """`12 s ago`, `3 h ago`; by this machine's clock, for people."""
    if moment is None:
        return ""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if abs(seconds) >= size:
            whole = int(abs(seconds) // size)
            return f"{whole} {unit} ago" if seconds > 0 else f"in {whole} {unit}"
    return "now"


def job_as_dict(job: Job, *, show_args: bool = False) -> dict[str, Any]:
    """Every field of a job; arguments and result only when asked for: they may be nobody's business."""
    hidden = ("existing",) if show_args else ("existing", "args", "result")
    return {item.name: getattr(job, item.name) for item in fields(job) if item.name not in hidden}


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def parse_args(text: str | None, name: str) -> Any:
    """JSON arguments from the command line: an object or an array."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{name} is not JSON: {error}") from None
    except RecursionError:
        raise click.UsageError(f"{name} is nested too deep") from None
    if not isinstance(value, dict | list):
        raise click.UsageError(f"{name} must be a JSON object of named arguments, or an array of positional ones")
    return value


def of_each_job(function: F) -> F:
    """--timeout, --tag, --meta: what is said of one job, and of those of a schedule."""
    for option in reversed(
        (
            click.option("--timeout", type=float, metavar="SECONDS", help="For an attempt.  [default: the task's own]"),
            click.option("--tag", "tags", multiple=True, metavar="TEXT", help="To find it by; repeatable."),
            click.option("--meta", metavar="JSON", help="An object of yours, shown by `jobs show`."),
        )
    ):
        function = option(function)
    return function


def parse_meta(text: str | None) -> dict[str, Any] | None:
    """The JSON object of --meta."""
    value = parse_args(text, "--meta")
    if value is not None and not isinstance(value, dict):
        raise click.UsageError("--meta must be a JSON object")
    return value


def moment_of(option: str, text: str | None) -> datetime | None:
    """A time with its zone from the command line: 2026-05-01T08:00:00+02:00, or …Z."""
    if text is None:
        return None
    shown = repr(one_line(text[:40]))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{option} must look like 2026-05-01T08:00:00+02:00, not {shown}") from None
    if moment.tzinfo is None:
        raise click.UsageError(f"{option} must say its time zone, +02:00 or Z for UTC: {shown}")
    return moment
