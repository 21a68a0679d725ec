"""pgqueue stats, pgqueue workers: what queues, tasks, workers and schedules are at, once; `pgqueue top` shows most of
it all the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click

from pgqueue import stats as asking
from pgqueue.app import PgQueue
from pgqueue.cli.common import app_of, database_options, end_of, json_option, lasting, print_json, print_table
from pgqueue.cli.schedules import print_schedules
from pgqueue.cli.watch import watch_option
from pgqueue.stats import WorkerStats

PARTS: dict[str, Callable[[PgQueue], Sequence[Any]]] = {
    "queues": lambda app: app.look(asking.queues(app.statements)),
    "tasks": lambda app: app.look(asking.tasks(app.statements)),
    "workers": lambda app: app.look(asking.workers(app.statements)),
    "schedules": lambda app: app.schedules.list(),
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)), metavar="[queues] [tasks] [workers] [schedules]")
@json_option
@database_options
@watch_option
@click.pass_context
def stats(ctx: click.Context, /, parts: Sequence[str], as_json: bool) -> None:
    """Show queues, tasks of the last hour, workers and schedules in numbers; or only those that are named.

    queued: due now; scheduled: due later; oldest: for how long the oldest due job has been due; done/min, failed/min:
    jobs completed and attempts failed within the last minute. wait: from due to start; run: from start to end.

    \b
    Examples:
      pgqueue stats
      pgqueue stats queues workers --watch
      pgqueue stats tasks --json
    """
    chosen = [part for part in PARTS if part in parts] or list(PARTS)
    app = app_of(ctx, *(f"find_{part}" for part in chosen))
    found = {part: PARTS[part](app) for part in chosen}
    if as_json:
        print_json({part: [asdict(one) for one in rows] for part, rows in found.items()})
        return
    for place, (part, rows) in enumerate(found.items()):
        if place:
            click.echo()
        _PRINT[part](rows)


@click.group()
def workers() -> None:
    """Look at workers, the processes that run jobs.

    \b
    Examples:
      pgqueue workers list
    """


@workers.command("list")
@json_option
@database_options
@watch_option
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool) -> None:
    """List workers, by host and process, with what they hold.

    beat: when a worker last renewed its lease; oldest: since the earliest of its jobs was started. One that is silent
    is gone with the next sweep of another, which takes its jobs.

    \b
    Examples:
      pgqueue workers list
      pgqueue workers list --watch 5
      pgqueue workers list --json
    """
    app: PgQueue = app_of(ctx, "find_workers")
    found = app.look(asking.workers(app.statements))
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        _print_workers(found)


def _print_queues(rows: list[asking.QueueStats]) -> None:
    columns = ("queue", "queued", "scheduled", "running", "blocked", "dead", "oldest", "done/min", "failed/min", "")
    lines = [
        (
            *(one.queue, one.queued, one.scheduled, one.running, one.blocked, one.dead),
            *(lasting(one.oldest_age), one.completed_1m, one.failed_1m, "paused" if one.paused else ""),
        )
        for one in rows
    ]
    print_table(columns, lines, empty="no queues", spare=("blocked", "scheduled", "failed/min", "dead", "done/min"))


def _print_tasks(rows: list[asking.TaskStats]) -> None:
    columns = ("task", "ended/h", "failed", "wait p50", "p95", "p99", "run p50", "p95", "p99")
    lines = [
        (
            *(end_of(one.task), one.count, one.failures),
            *map(lasting, (one.wait_p50, one.wait_p95, one.wait_p99, one.run_p50, one.run_p95, one.run_p99)),
        )
        for one in rows
    ]
    print_table(columns, lines, empty="no attempt ended within the last hour", spare=("p99", "p95", "failed"))


def _print_workers(rows: list[WorkerStats]) -> None:
    columns = ("worker", "host", "pid", "status", "queues", "slots", "running", "oldest", "done/min", "beat")
    lines: list[tuple[Any, ...]] = [
        (
            *(str(one.id)[:8], one.host, one.pid, one.status, "all" if one.queues is None else one.queues),
            *(one.concurrency, one.running, lasting(one.oldest_run), one.completed_1m),
            f"{lasting(max(0.0, one.heartbeat_age))} ago",
        )
        for one in rows
    ]
    print_table(columns, lines, empty="no workers", spare=("host", "oldest", "beat", "pid", "done/min", "queues"))


_PRINT: dict[str, Any] = {
    "queues": _print_queues,
    "tasks": _print_tasks,
    "workers": _print_workers,
    "schedules": print_schedules,
}
