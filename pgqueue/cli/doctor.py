"""pgqueue doctor: what is wrong with the database under the queue, on one screen, with the statement that mends it."""

from __future__ import annotations

import shutil
import sys
import textwrap

import click

from pgqueue.cli.common import EXIT_FAILED, cell, database_options, json_option, print_json, warn_of_variables
from pgqueue.cli.watch import watch_option
from pgqueue.monitor import Finding
from pgqueue.settings import DEFAULT_SCHEMA, database_url, describe, schema_name

LEVEL = 10  # columns


@click.command()
@click.option("--all", "everything", is_flag=True, help="Show what is well, too, with its figures.")
@click.option("--quick", is_flag=True, help="Do not compare the schema with the declared one: for frequent probes.")
@json_option
@database_options
@watch_option
@click.pass_context
def doctor(ctx: click.Context, /, everything: bool, quick: bool, as_json: bool) -> None:
    """Say what is wrong with the database under the queue, and how to mend it.

    Old transactions and who holds them, dead rows, autovacuum, settings, connections, workers that went silent, jobs
    that nobody will run, the schema. Changes nothing. Exit code 0: healthy; 1: findings; 3: pgqueue cannot work here.

    \b
    Examples:
      pgqueue doctor
      pgqueue doctor --all
      pgqueue doctor --quick --json     # for a probe
    """
    from pgqueue.doctor import examine  # brings Alembic

    warn_of_variables()
    schema = schema_name(ctx.obj.get("schema", DEFAULT_SCHEMA))
    url = ctx.obj["url"] = database_url(ctx.obj.get("url"))
    found = examine(url, schema, quick=quick)
    wrong = [one for one in found if one.level in ("critical", "warning")]
    if as_json:
        print_json({"healthy": not wrong, "schema": schema, "findings": [one._asdict() for one in found]})
    else:
        for one in found if everything else [one for one in found if one.level != "ok"]:
            _print(one)
        count = f"{len(wrong)} finding{'s' * (len(wrong) > 1)}" if wrong else "healthy"
        click.echo(cell(f'{count}: {len(found)} measures of schema "{schema}" of {describe(url)}'))
    if wrong:
        sys.exit(EXIT_FAILED)


def _print(one: Finding) -> None:
    """Level, name and what there is to say, wrapped; the statement below it in one line, to be copied."""
    width = min(shutil.get_terminal_size((80, 24)).columns, 120)
    margin = " " * LEVEL
    texts = textwrap.wrap(cell(one.detail), max(20, width - LEVEL), break_on_hyphens=False)
    click.echo(f"{one.level:<{LEVEL}}{one.finding}")
    for text in texts:
        click.echo(margin + text)
    if one.fix:
        click.echo(f"{margin}fix: {cell(one.fix)}")
