"""pgqueue queues, pgqueue tasks: look at queues; pause and resume a queue, or a task whatever its queue."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import click

from pgqueue.cli.common import ago, app_of, database_options, json_option, moment_of, print_json, print_table
from pgqueue.cli.watch import watch_option

F = TypeVar("F", bound=Callable[..., Any])


def until_options(function: F) -> F:
    """--for, --until, --by."""
    for option in reversed(
        (
            click.option("--for", "seconds", type=float, metavar="SECONDS", help="Resume by itself after so long."),
            click.option("--until", metavar="TIME", help="Resume by itself then: 2026-05-01T08:00:00+02:00."),
            click.option("--by", help="Who does it, for whoever looks."),
        )
    ):
        function = option(function)
    return function


@click.group()
def queues() -> None:
    """Look at queues; pause and resume them.

    \b
    Examples:
      pgqueue queues list
      pgqueue queues pause email --for 600 --by "ann, mail server down"
      pgqueue queues resume email
    """


@queues.command("list")
@json_option
@database_options
@watch_option
@click.pass_context
def list_queues(ctx: click.Context, /, as_json: bool) -> None:
    """List the queues with a live or dead job, and those that were ever paused.

    \b
    Examples:
      pgqueue queues list
      pgqueue queues list --json
    """
    found = app_of(ctx, "queues").queues.list()
    names = ("name", "paused", "since", "by", "until", "queued", "scheduled", "running", "blocked", "dead")
    if as_json:
        print_json([{name: getattr(queue, name) for name in names} for queue in found])
        return
    columns = ("queue", "queued", "scheduled", "running", "blocked", "dead", "paused")
    rows = (
        (*(getattr(one, name) for name in ("name", *columns[1:-1])), _paused(one) if one.paused else "")
        for one in found
    )
    print_table(columns, rows, empty="no queues")


@queues.command("pause")
@click.argument("queue")
@until_options
@json_option
@database_options
@click.pass_context
def pause_queue(
    ctx: click.Context, /, queue: str, seconds: float | None, until: str | None, by: str | None, as_json: bool
) -> None:
    """Start no job of QUEUE from now on; those that run go on.

    \b
    Examples:
      pgqueue queues pause email
      pgqueue queues pause email --until 2026-05-01T08:00:00+02:00
    """
    when = _until(seconds, until)
    app_of(ctx, "pause_queue", "tell").queues.pause(queue, when, by=by)
    _said(queue, "paused", True, as_json=as_json)


@queues.command("resume")
@click.argument("queue")
@json_option
@database_options
@click.pass_context
def resume_queue(ctx: click.Context, /, queue: str, as_json: bool) -> None:
    """Start jobs of QUEUE again.

    \b
    Examples:
      pgqueue queues resume email
    """
    _said(queue, "resumed", app_of(ctx, "resume_queue", "tell").queues.resume(queue), as_json=as_json)


@click.group()
def tasks() -> None:
    """Pause and resume a task, whatever queue its jobs are in.

    \b
    Examples:
      pgqueue tasks pause shop.tasks.charge --by "ann, wrong prices"
      pgqueue tasks list
      pgqueue tasks resume shop.tasks.charge
    """


@tasks.command("list")
@json_option
@database_options
@watch_option
@click.pass_context
def list_tasks(ctx: click.Context, /, as_json: bool) -> None:
    """List the tasks that are paused.

    \b
    Examples:
      pgqueue tasks list
    """
    found = app_of(ctx, "paused_tasks").tasks.paused()
    if as_json:
        print_json([{name: getattr(one, name) for name in ("name", "since", "by", "until")} for one in found])
        return
    print_table(("task", "paused"), ((one.name, _paused(one)) for one in found), empty="no task is paused")


@tasks.command("pause")
@click.argument("task")
@until_options
@json_option
@database_options
@click.pass_context
def pause_task(
    ctx: click.Context, /, task: str, seconds: float | None, until: str | None, by: str | None, as_json: bool
) -> None:
    """Start no job of TASK from now on; those that run go on.

    \b
    Examples:
      pgqueue tasks pause shop.tasks.charge --for 3600
    """
    when = _until(seconds, until)
    app_of(ctx, "pause_task", "tell").tasks.pause(task, when, by=by)
    _said(task, "paused", True, as_json=as_json)


@tasks.command("resume")
@click.argument("task")
@json_option
@database_options
@click.pass_context
def resume_task(ctx: click.Context, /, task: str, as_json: bool) -> None:
    """Start jobs of TASK again.

    \b
    Examples:
      pgqueue tasks resume shop.tasks.charge
    """
    _said(task, "resumed", app_of(ctx, "resume_task", "tell").tasks.resume(task), as_json=as_json)


def _until(seconds: float | None, until: str | None) -> datetime | timedelta | None:
    if seconds is None:
        return moment_of("--until", until)
    if until is not None:
        raise click.UsageError("give either --for or --until, not both")
    if not 0 < seconds <= 86_400 * 3_660:
        raise click.UsageError(f"--for must be a number of seconds between 0 and ten years, not {seconds:g}")
    return timedelta(seconds=seconds)


def _said(name: str, verb: str, done: bool, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, verb: done})
    else:
        click.echo(f"{name}: {verb}" if done else f"{name}: was not paused")


def _paused(one: Any) -> str:
    """`2 min ago, by ann, until in 8 min`"""
    parts = (ago(one.since), f"by {one.by}" if one.by else "", f"until {ago(one.until)}" if one.until else "")
    return ", ".join(part for part in parts if part) or "yes"
