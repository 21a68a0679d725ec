"""pgqueue enqueue, pgqueue jobs: put a job in, look at jobs, wait; cancel them, change them, run them sooner."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import groupby
from typing import Any, TypeVar, cast

import click

from pgqueue import PgQueue, monitor, steering
from pgqueue import enqueue as enqueueing
from pgqueue.arguments import to_json
from pgqueue.cli.common import (
    ago,
    app_of,
    cell,
    database_options,
    end_of,
    job_as_dict,
    json_option,
    moment_of,
    of_each_job,
    parse_args,
    parse_meta,
    print_json,
    print_table,
)
from pgqueue.cli.progress import progress
from pgqueue.cli.watch import watch_option
from pgqueue.drivers import Steps
from pgqueue.enqueue import NewJob, Options
from pgqueue.errors import JobNotFound, OperationError, checked_ids, seconds
from pgqueue.job import Job, LogLine, Progress, State
from pgqueue.settings import DEFAULT_MAX_ATTEMPTS, DEFAULT_QUEUE, MAX_ARGS_BYTES
from pgqueue.steering import WHY, LiveFilter
from pgqueue.unique import CLAIMED, FINISHED, PERIOD, Unique

F = TypeVar("F", bound=Callable[..., Any])


@click.command()
@click.argument("task")
@click.argument("args", default="{}", metavar="[JSON]")
@click.option("--queue", default=DEFAULT_QUEUE, show_default=True, help="The queue to put it in.")
@click.option("--priority", default=0, show_default=True, help="-100 to 100, higher first.")
@click.option("--delay", default=0.0, help="Seconds until it is due.")
@click.option("--max-attempts", default=DEFAULT_MAX_ATTEMPTS, show_default=True, help="Runs before it is dead.")
@click.option("--unique-key", help="While a live job holds this key, that job is returned.")
@click.option("--unique", is_flag=True, help="The key is made of TASK and its arguments.")
@click.option("--unique-by", multiple=True, metavar="NAME", help="As --unique, of this argument alone; repeatable.")
@click.option("--unique-until", default="finished", help="finished (default) or claimed: how long a job holds it.")
@click.option(
    "--unique-for", type=float, help="Seconds for which the key is held, instead, whatever becomes of the job."
)
@click.option("--on-conflict", default="keep", help="keep, replace, replace_args, replace_run_at, debounce or raise.")
@click.option("--debounce-for", type=float, help="Seconds from its creation, up to which debounce moves a job.")
@click.option("--expires-in", type=float, help="Seconds after it is due, within which it must start.")
@click.option("--run-at", metavar="TIME", help="Due then: 2026-05-01T08:00:00+02:00; instead of --delay.")
@click.option("--wait", "waits", is_flag=True, help="Wait until it has ended, and print its result.")
@click.option("--wait-timeout", type=float, metavar="SECONDS", help="With --wait: for so long at most.")
@of_each_job
@json_option
@database_options
@click.pass_context
def enqueue(
    ctx: click.Context,
    /,
    task: str,
    args: str,
    as_json: bool,
    unique: bool,
    unique_by: tuple[str, ...],
    run_at: str | None,
    meta: str | None,
    waits: bool,
    wait_timeout: float | None,
    **options: Any,
) -> None:
    """Enqueue one job of TASK with JSON arguments: an object of named ones, or an array of positional ones.

    TASK is the name that the worker knows: MODULE.FUNCTION, or what `name=` says.

    \b
    Examples:
      pgqueue enqueue shop.tasks.send '{"user_id": 7}'
      pgqueue enqueue shop.tasks.send '[7]' --delay 60 --queue email
      pgqueue enqueue shop.tasks.send '[7]' --run-at 2026-05-01T08:00:00Z --tag import-7
      pgqueue enqueue shop.tasks.charge '{"order_id": 7}' --unique-key charge:7 --json
      pgqueue enqueue shop.tasks.report '{"year": 2026}' --wait --wait-timeout 60
    """
    if unique and unique_by:
        raise click.UsageError("give either --unique, for all arguments, or --unique-by NAME, not both")
    if wait_timeout is not None and not waits:
        raise click.UsageError("--wait-timeout is for --wait")
    limit = None if wait_timeout is None else seconds("--wait-timeout", wait_timeout)
    text = to_json(parse_args(args, "JSON"), "args", MAX_ARGS_BYTES)
    options |= {"run_at": moment_of("--run-at", run_at), "meta": parse_meta(meta)}
    new = NewJob(enqueueing.name("task", task), text, Options(unique=unique_by or unique, **options))
    app = app_of(ctx, *_statements(new.by_key), *(("outcomes",) if waits else ()))
    job = app.enqueue_alone(new)
    if waits:
        _print_result(job.id, job.wait(limit), as_json=as_json, existing=job.existing)
    elif as_json:
        print_json({"id": job.id, "existing": job.existing})
    else:
        click.echo(f"job {job.id}: {_said(job, new.options.on_conflict) if job.existing else 'enqueued'}")


def _statements(by: Unique | None) -> tuple[str, ...]:
    """Those that an enqueue may run."""
    insert = {CLAIMED: ("enqueue_queued", "holders_queued"), PERIOD: ("enqueue_periods", "holders_periods")}
    scope = FINISHED if by is None else by.scope
    changes = by is not None and (by.replaces_args or by.moved is not None)
    return (*insert.get(scope, ("enqueue", "holder")), *(("replace",) if changes else ()))


def _said(job: Job, on_conflict: str) -> str:
    """What became of a call whose key is held."""
    if on_conflict == "keep" or job.state is not State.QUEUED:
        live = job.state in (State.QUEUED, State.BLOCKED, State.RUNNING)
        return f"{'a live' if live else 'an ended'} job holds this key already"
    return "holds this key already, and was changed"


log_option = click.option("--log", "show_log", is_flag=True, help="Show what it said by ctx.log, if that is kept.")


@click.group()
def jobs() -> None:
    """Look at jobs, live and ended; wait for one; cancel them, change when they run.

    \b
    Examples:
      pgqueue jobs list --state running
      pgqueue jobs show 42
      pgqueue jobs retry 42
    """


@jobs.command("list")
@click.option("--state", type=click.Choice([state.value for state in State]), help="Only jobs in this state.")
@click.option("--task", help="Only jobs of this task.")
@click.option("--queue", help="Only jobs of this queue.")
@click.option("--before", type=int, metavar="ID", help="Only ids below, to read on.")
@click.option("--limit", default=50, show_default=True, help="At most so many, newest first.")
@json_option
@database_options
@watch_option
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool, **which: Any) -> None:
    """List jobs, newest first.

    \b
    Examples:
      pgqueue jobs list --state queued --queue email
      pgqueue jobs list --task shop.tasks.send --before 1000    # reads on below id 1000
      pgqueue jobs list --json --limit 1000
    """
    found = app_of(ctx, "find_jobs").jobs.list(**which)
    if as_json:
        print_json([job_as_dict(job) for job in found])
        return
    columns = ("id", "task", "queue", "state", "runs", "due", "worker")
    rows = (
        (
            job.id,
            end_of(job.task),
            job.queue,
            job.state,
            f"{job.attempt}/{job.max_attempts}",
            ago(job.run_at),
            str(job.worker_id)[:8] if job.worker_id else "",
        )
        for job in found
    )
    print_table(columns, rows, empty="no jobs")


@jobs.command()
@click.argument("job_id", type=int, metavar="ID")
@click.option("--args", "show_args", is_flag=True, help="Show arguments and result too.")
@log_option
@json_option
@database_options
@watch_option
@click.pass_context
def show(ctx: click.Context, /, job_id: int, show_args: bool, show_log: bool, as_json: bool) -> None:
    """Show one job, how far it says it is, and the error of every failed attempt.

    Arguments and result, and what a job said by ctx.log, may be nobody's business: they are shown only with --args and
    --log. The log is kept for tasks that ask for it.

    \b
    Examples:
      pgqueue jobs show 42
      pgqueue jobs show 42 --log
      pgqueue jobs show 42 --args --json
    """
    app = app_of(ctx, "find_jobs", "progress_of", *(("log_of",) if show_log else ()))
    job = app.jobs.get(job_id)
    log = app.jobs.log(job_id) if show_log else None
    print_job(job, progress=app.jobs.progress(job_id), log=log, show_args=show_args, as_json=as_json)


@jobs.command()
@click.argument("job_id", type=int, metavar="ID")
@click.option("--timeout", type=float, metavar="SECONDS", help="For so long at most.")
@json_option
@database_options
@click.pass_context
def wait(ctx: click.Context, /, job_id: int, timeout: float | None, as_json: bool) -> None:
    """Wait until a job has ended, and print its result as JSON.

    Exit code 1 when it is dead, cancelled or expired, when the time is up, when nothing of it is kept, and when there
    never was such a job.

    \b
    Examples:
      pgqueue jobs wait 42
      pgqueue jobs wait 42 --timeout 60 --json
    """
    limit = None if timeout is None else seconds("--timeout", timeout)
    app = app_of(ctx, "outcomes")
    app.look(monitor.version(app.statements))  # a schema that cannot be used is told of before anybody waits
    _print_result(job_id, app.jobs.wait(job_id, limit), as_json=as_json)


def _print_result(job_id: int, result: Any, *, as_json: bool, **more: Any) -> None:
    """Alone, for a script; or beside the job's id."""
    print_json({"id": job_id, **more, "result": result} if as_json else result)


def live_filters(function: F) -> F:
    """--task, --queue, --key, --tag, --limit, --all, --dry-run."""
    for option in reversed(
        (
            click.option("--task", help="Only jobs of this task."),
            click.option("--queue", help="Only jobs of this queue."),
            click.option("--key", "unique_key", help="The job that holds this unique key."),
            click.option("--tag", help="Only jobs with this tag."),
            click.option("--limit", type=click.IntRange(min=1), help="At most so many, lowest id first."),
            click.option("--all", "everything", is_flag=True, help="Every one of them."),
            click.option("--dry-run", is_flag=True, help="Only say which it would be."),
        )
    ):
        function = option(function)
    return function


def _which(ids: tuple[int, ...], which: dict[str, Any]) -> dict[str, Any]:
    """The filter that was given; empty where there are only ids."""
    chosen = {name: value for name, value in which.items() if value is not None and value is not False}
    if not ids and not chosen.keys() - {"limit"}:
        raise click.UsageError("say which: ids, or --task, --queue, --key, --tag; --all for every one")
    if chosen and ids:
        chosen["ids"] = list(ids)
    return chosen


@jobs.command()
@click.argument("ids", type=int, nargs=-1, metavar="[ID]...")
@click.option("--state", type=click.Choice(["queued", "running", "blocked"]), help="Only jobs in this state.")
@live_filters
@click.option("--why", default=WHY, show_default=True, help="What is stored as the reason.")
@click.option("--yes", is_flag=True, help="Do not ask whether to go on.")
@json_option
@database_options
@click.pass_context
def cancel(
    ctx: click.Context, /, ids: tuple[int, ...], why: str, dry_run: bool, yes: bool, as_json: bool, **which: Any
) -> None:
    """Cancel jobs that have not ended, by id or by filter. With filters it first says how many there are, and asks.

    A job that nobody runs ends at once. One that runs is asked to end: an async one gets CancelledError, a sync one
    sees ctx.cancelled; whatever it then returns or raises, it is cancelled. With ids and filters both, jobs are meant
    for which both hold.

    \b
    Examples:
      pgqueue jobs cancel 42 43
      pgqueue jobs cancel --tag import-7 --why "wrong file" --dry-run
      pgqueue jobs cancel --task shop.tasks.resize --state queued --yes
    """
    app = app_of(ctx, "hold", "cancel", "tell", "answer", "find_live", "find_jobs")
    chosen = _which(ids, which)
    asked = list(dict.fromkeys(ids))
    if dry_run or chosen:
        found = app.jobs.cancel(dry_run=True, **(chosen or {"ids": asked}))
        if dry_run or not found:
            _report(found, "would be cancelled", as_json=as_json)
            return
        if not yes:
            click.confirm(f"cancel {len(found)} {'job' if len(found) == 1 else 'jobs'}?", abort=True, err=True)
        # Those that were counted: what has come since was not asked about.
        with progress("cancelling") as tell:
            done = app.perform(steering.cancel(app.statements, found, steering.reason(why), told=tell))
        _report(list(done), "cancelled, or asked to end", as_json=as_json)
        return
    done = app.perform(steering.cancel(app.statements, checked_ids(asked), steering.reason(why)))
    wrong = []
    for job_id in asked:
        said = "cancelled"
        if job_id not in done:
            try:
                state = app.jobs.get(job_id).state
            except JobNotFound as error:
                wrong.append(str(error))
                continue
            if state is not State.RUNNING:
                wrong.append(f"job {job_id} is {state}")
                continue
            said = "it runs, and was asked to end before"
        elif done[job_id]:
            said = "it runs, and is asked to end"
        if not as_json:
            click.echo(f"job {job_id}: {said}")
    if as_json:
        ended = [job_id for job_id, runs in done.items() if not runs]
        print_json({"ids": ended, "asked": sorted(done.keys() - set(ended))})
    if wrong:
        raise OperationError(f"{'; '.join(wrong)}: only a job that has not ended can be cancelled")


@jobs.command()
@click.argument("ids", type=int, nargs=-1, metavar="[ID]...")
@click.option("--priority", type=click.IntRange(-100, 100), help="-100 to 100, higher first.")
@click.option("--delay", type=float, metavar="SECONDS", help="Due so long from now.")
@click.option("--run-at", metavar="TIME", help="Due then: 2026-05-01T08:00:00+02:00.")
@live_filters
@json_option
@database_options
@click.pass_context
def change(
    ctx: click.Context,
    /,
    ids: tuple[int, ...],
    priority: int | None,
    delay: float | None,
    run_at: str | None,
    dry_run: bool,
    as_json: bool,
    **which: Any,
) -> None:
    """Give queued jobs another priority or another time, by id or by filter.

    With ids and filters both, jobs are meant for which both hold.

    \b
    Examples:
      pgqueue jobs change 42 --priority 50
      pgqueue jobs change 42 43 --delay 3600
      pgqueue jobs change --task shop.tasks.resize --run-at 2026-05-01T08:00:00+02:00
    """
    when = moment_of("--run-at", run_at)
    app = app_of(ctx, "change", "wake", "find_live", "find_jobs")
    act = steering.changing(app.statements, priority=priority, run_at=when, delay=delay)
    _act(app, act, "change", "changing", "changed", ids, which, dry_run=dry_run, as_json=as_json)


@jobs.command()
@click.argument("ids", type=int, nargs=-1, metavar="[ID]...")
@live_filters
@json_option
@database_options
@click.pass_context
def retry(ctx: click.Context, /, ids: tuple[int, ...], dry_run: bool, as_json: bool, **which: Any) -> None:
    """Run queued jobs now that wait for their time or their retry, by id or by filter.

    They are made due now and a sleeping worker is woken; their attempts are counted as before. A dead job is sent back
    by `pgqueue dead redrive`. With ids and filters both, jobs are meant for which both hold.

    \b
    Examples:
      pgqueue jobs retry 42
      pgqueue jobs retry 42 43 44 --json
      pgqueue jobs retry --task shop.tasks.charge
    """
    app = app_of(ctx, "retry_now", "wake", "find_live", "find_jobs")
    act = partial(steering.retry_now, app.statements)
    _act(app, act, "retry_now", "making due", "due now", ids, which, dry_run=dry_run, as_json=as_json)


def _act(
    app: PgQueue,
    act: Callable[..., Steps[list[int]]],
    verb: str,
    doing: str,
    what: str,
    ids: tuple[int, ...],
    which: dict[str, Any],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """What is done to queued jobs. Of each id that was named it is said what became of it."""
    chosen = _which(ids, which)
    asked = list(dict.fromkeys(ids))
    if dry_run or chosen:
        found = steering.filtered_queued(cast("LiveFilter", chosen or {"ids": asked}), verb)
        with progress(doing) as tell:
            steps = steering.of_queued(app.statements, found, None if dry_run else partial(act, told=tell))
            ended = app.perform(steps)
        _report(ended, f"would be {what}" if dry_run else what, as_json=as_json)
        return
    done = app.perform(act(checked_ids(asked)))
    wrong = []
    for job_id in asked:
        said = what
        if job_id not in done:
            try:
                state = app.jobs.get(job_id).state
            except JobNotFound as error:
                wrong.append(str(error))
                continue
            if state is not State.QUEUED:
                wrong.append(f"job {job_id} is {state}")
                continue
            if verb == "change":
                wrong.append(f"job {job_id} would have expired by then")
                continue
            said = "due already"
        if not as_json:
            click.echo(f"job {job_id}: {said}")
    if as_json:
        print_json({"ids": done})
    if wrong:
        can_be = "changed" if verb == "change" else "made due now"
        raise OperationError(f"{'; '.join(wrong)}: only a queued job can be {can_be}")


def _report(ids: list[int], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"ids": ids})
    else:
        some = ", ".join(map(str, ids[:20])) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
        click.echo(f"{len(ids)} {'job' if len(ids) == 1 else 'jobs'} {what}" + (f": {some}" if ids else ""))


def print_job(
    job: Job, *, progress: Progress | None, log: list[LogLine] | None, show_args: bool, as_json: bool
) -> None:
    """Every field that a job has, how far it is, the error of every failed attempt, and what it said. log: None where
    nobody asks."""
    shown = job_as_dict(job, show_args=show_args)
    if as_json:
        more = {} if log is None else {"log": [asdict(line) for line in log]}
        print_json({**shown, "progress": None if progress is None else asdict(progress), **more})
        return
    if progress is not None:
        shown["progress"] = in_words(progress, job)
    errors = shown.pop("errors")
    for name in shown.keys() & {"args", "result", "meta"}:
        if shown[name] is not None:
            shown[name] = json.dumps(shown[name], ensure_ascii=False)  # as `redrive --args` takes it
    for name, value in shown.items():
        if value not in (None, (), ""):
            click.echo(f"{name:<16}{cell(value)}")
    for error in errors:  # what plain SQL put there may lack any of it
        click.echo(f"\nattempt {cell(error.get('attempt'))} at {cell(error.get('at'))}: {cell(error.get('error'))}")
        for line in str(error.get("traceback") or "").splitlines():
            click.echo(f"    {cell(line)}")
    for attempt, lines in groupby(log or (), key=lambda line: line.attempt):
        click.echo(f"\nlog of attempt {attempt}")
        for said in lines:
            first, *others = said.message.split("\n")
            click.echo(f"{cell(said.at)} {cell(said.level):<8}{cell(first)}")
            for line in others:  # of a traceback
                click.echo(f"    {cell(line)}")
    if log == []:
        click.echo("\nno log: it said nothing, or its task does not keep it (keep_log=True)")


def in_words(progress: Progress, job: Job) -> str:
    """`40%, 3 s ago: 400 of 1,000 rows`, never rounded up; with the attempt where that is not the latest."""
    of = "" if progress.attempt == job.attempt else f" by attempt {progress.attempt}"
    when = f", {ago(progress.at)}" if progress.at is not None else ""
    return f"{int(progress.fraction * 100 + 1e-9)}%{of}{when}" + (f": {progress.note}" if progress.note else "")
