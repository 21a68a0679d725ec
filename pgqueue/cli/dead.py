"""pgqueue dead: the dead-letter table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pgqueue import control
from pgqueue.cli.common import (
    ago,
    app_of,
    database_options,
    end_of,
    job_as_dict,
    json_option,
    parse_args,
    print_json,
    print_table,
)
from pgqueue.cli.jobs import log_option, print_job
from pgqueue.cli.progress import progress
from pgqueue.cli.watch import watch_option
from pgqueue.errors import JobNotFound
from pgqueue.job import DeadReason, State

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def dead() -> None:
    """Jobs that failed for good: look at them, send them back, or remove them.

    \b
    Examples:
      pgqueue dead list --task shop.tasks.charge
      pgqueue dead redrive 42 --args '{"amount": 12}'
      pgqueue dead redrive --task shop.tasks.charge --error "timed out" --dry-run
      pgqueue dead purge --older-than 604800
    """


def filters(function: F) -> F:
    """Which jobs: by id, task, queue, reason, error, age."""
    for option in reversed(
        (
            click.option("--task", help="Only jobs of this task."),
            click.option("--queue", help="Only jobs of this queue."),
            click.option(
                "--reason", type=click.Choice([reason.value for reason in DeadReason]), help="Why they are dead."
            ),
            click.option("--error", help="Only jobs whose last error contains this text."),
            click.option("--older-than", type=float, metavar="SECONDS", help="Only jobs that died longer ago."),
            click.option("--younger-than", type=float, metavar="SECONDS", help="Only jobs that died since."),
            click.option("--limit", type=click.IntRange(min=1), help="At most so many, oldest death first."),
            click.option("--all", "everything", is_flag=True, help="Every dead job."),
            click.option("--dry-run", is_flag=True, help="Only say which it would be."),
        )
    ):
        function = option(function)
    return function


@dead.command("list")
@click.option("--task", help="Only jobs of this task.")
@click.option("--queue", help="Only jobs of this queue.")
@click.option("--before", type=int, metavar="ID", help="Only ids below, to read on.")
@click.option("--limit", default=50, show_default=True, help="At most so many, newest first.")
@json_option
@database_options
@watch_option
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool, **which: Any) -> None:
    """List dead jobs with reason and last error, newest first.

    \b
    Examples:
      pgqueue dead list --queue payments
      pgqueue dead list --task shop.tasks.charge --json --limit 1000
    """
    found = app_of(ctx, "find_dead", "find_jobs").dead.list(**which)
    if as_json:
        print_json([job_as_dict(job) for job in found])
        return
    rows = (
        (job.id, end_of(job.task), job.queue, job.attempt, job.reason, ago(job.finished_at), (job.error or "")[:200])
        for job in found
    )
    print_table(("id", "task", "queue", "runs", "reason", "died", "error"), rows, empty="no dead jobs")


@dead.command()
@click.argument("job_id", type=int, metavar="ID")
@click.option("--args", "show_args", is_flag=True, help="Show the arguments too.")
@log_option
@json_option
@database_options
@watch_option
@click.pass_context
def show(ctx: click.Context, /, job_id: int, show_args: bool, show_log: bool, as_json: bool) -> None:
    """Show one dead job with the error and traceback of every attempt.

    \b
    Examples:
      pgqueue dead show 42
      pgqueue dead show 42 --args --json
    """
    app = app_of(ctx, "find_jobs", "progress_of", *(("log_of",) if show_log else ()))
    job = app.jobs.get(job_id)
    if job.state is not State.DEAD:
        raise JobNotFound(f"job {job_id} is not dead, it is {job.state}")
    log = app.jobs.log(job_id) if show_log else None
    print_job(job, progress=app.jobs.progress(job_id), log=log, show_args=show_args, as_json=as_json)


@dead.command()
@click.argument("ids", type=int, nargs=-1, metavar="[ID]...")
@click.option("--args", "new_args", metavar="JSON", help="Corrected arguments, for each of them.")
@filters
@json_option
@database_options
@click.pass_context
def redrive(
    ctx: click.Context, /, ids: tuple[int, ...], new_args: str | None, as_json: bool, dry_run: bool, **which: Any
) -> None:
    """Send dead jobs back to their queues, due now: all that match or none. Twice gives one job.

    Attempts start anew. With ids and filters both, jobs are meant for which both hold.

    \b
    Examples:
      pgqueue dead redrive 42 --args '{"amount": 12}'
      pgqueue dead redrive --task shop.tasks.charge --error "timed out" --dry-run
      pgqueue dead redrive --reason crashed --younger-than 3600 --limit 100
    """
    args = parse_args(new_args, "--args")
    app = app_of(ctx, "find_dead", "taken", "redrive", "wake")
    chosen = _which(ids, which)
    with progress("redriving") as tell:
        done = app.perform(control.redrive(app.statements, args=args, dry_run=dry_run, told=tell, **chosen))
    _report(done, ids, "would be redriven" if dry_run else "redriven", as_json=as_json)


@dead.command()
@click.argument("ids", type=int, nargs=-1, metavar="[ID]...")
@filters
@json_option
@database_options
@click.pass_context
def purge(ctx: click.Context, /, ids: tuple[int, ...], as_json: bool, dry_run: bool, **which: Any) -> None:
    """Remove dead jobs for good.

    \b
    Examples:
      pgqueue dead purge 42 43
      pgqueue dead purge --older-than 604800 --dry-run
      pgqueue dead purge --all
    """
    app = app_of(ctx, "find_dead", "purge")
    chosen = _which(ids, which)
    with progress("removing") as tell:
        done = app.perform(control.purge(app.statements, dry_run=dry_run, told=tell, **chosen))
    _report(done, ids, "would be removed" if dry_run else "removed", as_json=as_json)


def _which(ids: tuple[int, ...], which: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: value for name, value in which.items() if value is not None and value is not False}
    if ids:
        chosen["ids"] = list(ids)
    if not chosen.keys() - {"limit"}:
        raise click.UsageError("say which: ids, or --task, --error, --older-than …; --all for every dead job")
    return chosen


def _report(done: list[int], asked: tuple[int, ...], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"ids": done})
    else:
        click.echo(f"{len(done)} {'job' if len(done) == 1 else 'jobs'} {what}" + (f": {_some(done)}" if done else ""))
    missing = sorted(set(asked) - set(done))
    if missing:
        raise JobNotFound(f"not in the dead-letter table: {_some(missing)}")


def _some(ids: list[int]) -> str:
    return ", ".join(str(one) for one in ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
