"""pgqueue migrate: the tables, made or brought up to date."""

from __future__ import annotations

import click

from pgqueue.cli.common import cell, database_options, json_option, print_json, warn_of_variables
from pgqueue.cli.progress import progress
from pgqueue.compare import Comparison
from pgqueue.errors import OperationError
from pgqueue.settings import DEFAULT_SCHEMA, database_url, describe, schema_name


@click.command()
@click.argument("revision", default="head")
@click.option("--sql", is_flag=True, help="Print the SQL instead of running it; REVISION may be FROM:TO.")
@click.option("--check", is_flag=True, help="Change nothing: name what differs from what this version declares.")
@json_option
@database_options
@click.pass_context
def migrate(ctx: click.Context, /, revision: str, sql: bool, check: bool, as_json: bool) -> None:
    """Make the tables, or bring them up to date.

    Safe to run twice and from several machines at once: one transaction, one of them at a time.

    \b
    Examples:
      pgqueue migrate                # to the newest
      pgqueue migrate 0001           # to this one, up or down
      pgqueue migrate base           # remove every table, and the jobs in them
      pgqueue migrate --sql          # what it would run on an empty database, for a DBA: | psql shop
      pgqueue migrate 0001:head --sql   # the way from one to the other, up or down
      pgqueue migrate --check        # 0: as declared; 1: not, and what differs is named
    """
    from pgqueue import migrate as migrations  # brings Alembic: 0.1 s that no other command needs

    warn_of_variables()
    schema = schema_name(ctx.obj.get("schema", DEFAULT_SCHEMA))
    if check and (sql or revision != "head"):
        raise click.UsageError("--check compares with the newest migration, and prints no SQL: give it alone")
    if sql:
        click.echo(migrations.script(schema, revision))
        return
    url = ctx.obj["url"] = database_url(ctx.obj.get("url"))
    if check:
        _check(migrations.check(url, schema), schema, f'schema "{schema}" of {describe(url)}', as_json=as_json)
        return
    before = migrations.current(url, schema)
    with progress("migrating") as tell:
        migrations.to(url, schema, revision, told=tell)
    after = migrations.current(url, schema)
    if as_json:
        print_json({"schema": schema, "from": before or "base", "to": after or "base"})
        return
    where = f'schema "{schema}" of {describe(url)}'
    if before == after:
        click.echo(f"{where}: at {after or 'base'}, nothing to do")
    else:
        click.echo(f"{where}: migrated from {before or 'base'} to {after or 'base'}")


def _check(found: Comparison, schema: str, where: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"schema": schema, "at": found.version, "differences": found.differences, "notes": found.notes})
    else:
        for difference in found.differences:
            click.echo(cell(difference))
        for note in found.notes:
            click.echo(f"note: {cell(note)}")
    if found.differences:
        count = len(found.differences)
        raise OperationError(f"{where}: {count} difference{'s' * (count > 1)} from what this version declares")
    if not as_json:
        click.echo(f"{where}: at {found.version}, as declared")
