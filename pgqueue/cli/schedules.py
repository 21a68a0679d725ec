"""pgqueue schedules: what is enqueued at its time: look, add, pause, resume, run now, remove, preview."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import click

from pgqueue import ticks
from pgqueue.cli.common import (
    ago,
    app_of,
    database_options,
    end_of,
    json_option,
    of_each_job,
    parse_args,
    parse_meta,
    print_json,
    print_table,
)
from pgqueue.cli.watch import watch_option
from pgqueue.errors import ScheduleNotFound
from pgqueue.schedule import MISSED, MOST_MISSED, OVERLAP
from pgqueue.schedules import ScheduleStats
from pgqueue.schedules import preview as preview_ticks
from pgqueue.settings import DEFAULT_MAX_ATTEMPTS, DEFAULT_QUEUE


@click.group()
def schedules() -> None:
    """What is enqueued at its time: look at it, add to it, pause, run now.

    What the code declares (`@app.task(cron=...)`) is in the list as well. It can be paused and run here, and is
    changed in the code.

    \b
    Examples:
      pgqueue schedules list
      pgqueue schedules add nightly shop.tasks.clean_up '[30]' --cron '0 2 * * *'
      pgqueue schedules preview '0 0 29 2 1'
      pgqueue schedules run nightly
    """


@schedules.command("list")
@json_option
@database_options
@watch_option
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool) -> None:
    """List schedules, by name, with their next tick and what became of the last one.

    \b
    Examples:
      pgqueue schedules list
      pgqueue schedules list --json
    """
    found = app_of(ctx, "find_schedules").schedules.list()
    if as_json:
        print_json([asdict(one) for one in found])
        return
    print_schedules(found)


def print_schedules(found: list[ScheduleStats]) -> None:
    columns = ("name", "task", "when", "status", "next", "in", "fired", "skipped", "last job")
    print_table(columns, map(_row, found), empty="no schedules")
    for one in found:
        if one.problem:
            click.echo(f"{one.name}: {one.problem}")


def _row(one: ScheduleStats) -> tuple[Any, ...]:
    last = f"{one.last_job} {one.last_state or 'gone'}" if one.last_job else ""
    ticks = one.next_tick, ago(one.next_tick), one.fired, one.skipped
    return (one.name, end_of(one.task), _when(one), one.status, *ticks, last)


def _when(one: ScheduleStats) -> str:
    if one.every is not None:
        return f"every {one.every:g} s"
    return f"{one.cron} {one.timezone}"


@schedules.command()
@click.argument("name")
@click.argument("task")
@click.argument("args", default="{}", metavar="[JSON]")
@click.option("--cron", metavar="EXPRESSION", help="Five fields: minute, hour, day of month, month, day of week.")
@click.option("--every", type=float, metavar="SECONDS", help="Instead of --cron: multiples of it since 1970.")
@click.option("--timezone", metavar="ZONE", help="Of --cron, such as Europe/Paris.  [default: UTC]")
@click.option("--missed", type=click.Choice(MISSED), default="latest", show_default=True, help="Ticks nobody fired.")
@click.option(
    "--missed-limit", type=click.IntRange(1, MOST_MISSED), default=100, show_default=True, help="Of --missed all."
)
@click.option(
    "--overlap", type=click.Choice(OVERLAP), default="allow", show_default=True, help="While a job of it is live."
)
@click.option("--queue", default=DEFAULT_QUEUE, show_default=True, help="The queue of its jobs.")
@click.option("--priority", default=0, show_default=True, help="-100 to 100, higher first.")
@click.option("--max-attempts", default=DEFAULT_MAX_ATTEMPTS, show_default=True, help="Runs before a job is dead.")
@click.option("--expires-in", type=float, help="Seconds after its tick, within which a job must start.")
@of_each_job
@json_option
@database_options
@click.pass_context
def add(
    ctx: click.Context, /, name: str, task: str, args: str, as_json: bool, meta: str | None, **options: Any
) -> None:
    """Add a schedule, or change the one of that NAME that was added before. Workers need not be restarted.

    \b
    Examples:
      pgqueue schedules add nightly shop.tasks.clean_up '[30]' --cron '0 2 * * *'
      pgqueue schedules add tokyo shop.tasks.report --cron '0 6 1 * *' --timezone Asia/Tokyo
      pgqueue schedules add poll shop.tasks.poll --every 300 --overlap skip --queue slow
    """
    found = app_of(ctx, "declare", "plan", "find_schedules").schedules.add(
        name=name, task=task, args=parse_args(args, "JSON"), meta=parse_meta(meta), **options
    )
    timing = ticks.timing(found.cron, found.every, found.timezone)
    coming = _coming(timing, found.next_tick)
    if as_json:
        print_json({**asdict(found), "ticks": coming})
        return
    click.echo(f"schedule {name}: {_when(found)}, next {ago(found.next_tick)}")
    for tick in coming:
        click.echo(f"  {tick.astimezone(ZoneInfo(found.timezone)).strftime('%a %Y-%m-%d %H:%M:%S %z')}")
    _explain(timing)


@schedules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
@database_options
@click.pass_context
def pause(ctx: click.Context, /, names: tuple[str, ...], as_json: bool) -> None:
    """Pause schedules: they fire no more until they are resumed. All of them, or none if one is unknown.

    \b
    Examples:
      pgqueue schedules pause nightly
    """
    _tell(names, "paused", as_json, app_of(ctx, "pause", "find_schedules").schedules.pause(*names))


@schedules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
@database_options
@click.pass_context
def resume(ctx: click.Context, /, names: tuple[str, ...], as_json: bool) -> None:
    """Resume paused schedules, from their next tick on: those of meanwhile are not made up for.

    \b
    Examples:
      pgqueue schedules resume nightly
    """
    _tell(names, "resumed", as_json, app_of(ctx, "pause", "find_schedules").schedules.resume(*names))


@schedules.command()
@click.argument("name")
@json_option
@database_options
@click.pass_context
def run(ctx: click.Context, /, name: str, as_json: bool) -> None:
    """Enqueue a job of a schedule now, also while it is paused. Its ticks stay as they are.

    \b
    Examples:
      pgqueue schedules run nightly
      pgqueue schedules run nightly --json
    """
    job = app_of(ctx, "run_now").schedules.run_now(name)
    if as_json:
        print_json({"id": job.id, "name": name})
    else:
        click.echo(f"job {job.id}: enqueued by schedule {name}")


@schedules.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
@database_options
@click.pass_context
def remove(ctx: click.Context, /, names: tuple[str, ...], as_json: bool) -> None:
    """Remove schedules; their jobs stay. What the code declares is back when a worker starts: pause it instead.

    \b
    Examples:
      pgqueue schedules remove nightly
    """
    app = app_of(ctx, "remove", "find_schedules")
    missing = sorted(set(names) - {one.name for one in app.schedules.list()})
    if missing:
        raise ScheduleNotFound(f"there is no schedule {', '.join(missing)}: none was removed")
    _tell(names, "removed", as_json, app.schedules.remove(*names))


@schedules.command()
@click.argument("cron", required=False, metavar="[EXPRESSION]")
@click.option("--every", type=float, metavar="SECONDS", help="Instead of an expression.")
@click.option("--timezone", metavar="ZONE", help="Of the expression, such as Europe/Paris.  [default: UTC]")
@click.option("--after", metavar="TIME", help="From then on, such as 2026-03-28T00:00:00Z.  [default: now]")
@click.option("--count", type=click.IntRange(1, 1_000), default=5, show_default=True, help="How many.")
@json_option
def preview(
    cron: str | None, every: float | None, timezone: str | None, after: str | None, count: int, as_json: bool
) -> None:
    """Show the next ticks of an expression, without asking a database.

    \b
    Examples:
      pgqueue schedules preview '30 2 * * *' --timezone Europe/Paris --after 2026-03-27T00:00:00Z
      pgqueue schedules preview '0 0 29 2 1'      # day of month or day of week: it says so
      pgqueue schedules preview --every 900 --json
    """
    begin = None
    if after is not None:
        try:
            begin = datetime.fromisoformat(after)
        except ValueError:
            raise click.UsageError("--after must be a time such as 2026-03-28T00:00:00Z") from None
        begin = begin if begin.tzinfo is not None else begin.replace(tzinfo=UTC)
    found = preview_ticks(cron, every=every, timezone=timezone, after=begin, count=count)
    timing = ticks.timing(cron, every, timezone)
    if as_json:
        print_json({"ticks": list(found), "days": timing.days})
        return
    zone = ZoneInfo(timezone) if timezone not in (None, "UTC") else None
    rows = [
        (tick.strftime("%Y-%m-%d %H:%M:%S"), tick.astimezone(zone).strftime("%a %Y-%m-%d %H:%M:%S %z"))
        for tick in found
    ]
    if zone is None:
        print_table(
            ("UTC", "day"), [(utc, tick.strftime("%a")) for (utc, _), tick in zip(rows, found, strict=True)], empty=""
        )
    else:
        print_table(("UTC", str(timezone)), rows, empty="")
    _explain(timing)


def _coming(timing: ticks.Timing, tick: datetime | None) -> list[datetime]:
    """The next tick, and the two after it."""
    found: list[datetime] = []
    while tick is not None and len(found) < 3:
        found.append(tick)
        tick = timing.after(tick)
    return found


def _explain(timing: ticks.Timing) -> None:
    if timing.days:
        click.echo(timing.days)


def _tell(names: tuple[str, ...], what: str, as_json: bool, changed: bool) -> None:
    if as_json:
        print_json({"names": list(names), "changed": changed})
        return
    for name in names:
        click.echo(f"schedule {name}: {what if changed else f'nothing to do, {what} already'}")
