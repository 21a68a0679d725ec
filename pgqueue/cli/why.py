"""pgqueue why: one sentence about what keeps a job from running, then a table of all that does."""

from __future__ import annotations

import click

from pgqueue.cli.common import app_of, cell, database_options, json_option, print_json, print_table
from pgqueue.cli.watch import watch_option
from pgqueue.errors import JobNotFound


@click.command()
@click.argument("job_id", type=int, metavar="JOB")
@json_option
@database_options
@watch_option
@click.pass_context
def why(ctx: click.Context, /, job_id: int, as_json: bool) -> None:
    """Say why the job with this id is not running.

    One sentence with the weightiest cause; if there are more, a table of all of them. Jobs that run or have ended are
    told of, too. Exit code 1 for a job that never was.

    \b
    Examples:
      pgqueue why 42
      pgqueue why 42 --json
    """
    causes = app_of(ctx, "why").jobs.why(job_id)
    first = causes[0]
    if as_json:
        print_json({"id": job_id, "sentence": first.detail, "causes": [one._asdict() for one in causes]})
    if first.cause == "unknown":
        raise JobNotFound(first.detail)
    if as_json:
        return
    click.echo(cell(first.detail))
    if len(causes) > 1:
        details = (first.detail.partition(": ")[2], *(one.detail for one in causes[1:]))  # the job was named above
        click.echo()
        rows = [(one.cause, one.since, detail) for one, detail in zip(causes, details, strict=True)]
        print_table(("cause", "since", "detail"), rows, empty="")
