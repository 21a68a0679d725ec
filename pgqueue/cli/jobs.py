"""pgqueue enqueue, pgqueue jobs: put a job in, look at jobs, cancel one that has not started, run one sooner."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from pgqueue import control
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
    parse_args,
    print_json,
    print_table,
)
from pgqueue.enqueue import NewJob, Options
from pgqueue.errors import JobNotFound, OperationError
from pgqueue.job import Job, Progress, State
from pgqueue.settings import DEFAULT_MAX_ATTEMPTS, DEFAULT_QUEUE, MAX_ARGS_BYTES


@click.command()
@click.argument("task")
@click.argument("args", default="{}", metavar="[JSON]")
@click.option("--queue", default=DEFAULT_QUEUE, show_default=True, help="The queue to put it in.")
@click.option("--priority", default=0, show_default=True, help="-100 to 100, higher first.")
@click.option("--delay", default=0.0, help="Seconds until it is due.")
@click.option("--max-attempts", default=DEFAULT_MAX_ATTEMPTS, show_default=True, help="Runs before it is dead.")
@click.option("--unique-key", help="While a live job holds this key, that job is returned.")
@click.option("--expires-in", type=float, help="Seconds after it is due, within which it must start.")
@json_option
@database_options
@click.pass_context
def enqueue(ctx: click.Context, /, task: str, args: str, as_json: bool, **options: Any) -> None:
    """Enqueue one job of TASK with JSON arguments: an object of named ones, or an array of positional ones.

    TASK is the name that the worker knows: MODULE.FUNCTION, or what `name=` says.

    \b
    Examples:
      pgqueue enqueue shop.tasks.send '{"user_id": 7}'
      pgqueue enqueue shop.tasks.send '[7]' --delay 60 --queue email
      pgqueue enqueue shop.tasks.charge '{"order_id": 7}' --unique-key charge:7 --json
    """
    app = app_of(ctx, "enqueue", "holder")
    text = to_json(parse_args(args, "JSON"), "args", MAX_ARGS_BYTES)
    job = app.enqueue_alone(NewJob(enqueueing.name("task", task), text, Options(**options)))
    if as_json:
        print_json({"id": job.id, "existing": job.existing})
    else:
        click.echo(f"job {job.id}: {'a live job holds this key already' if job.existing else 'enqueued'}")


@click.group()
def jobs() -> None:
    """Look at jobs, live and ended; cancel one that has not started, or run it sooner.

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
@json_option
@database_options
@click.pass_context
def show(ctx: click.Context, /, job_id: int, show_args: bool, as_json: bool) -> None:
    """Show one job, how far it says it is, and the error of every failed attempt.

    Arguments and result may be nobody's business: they are shown only with --args.

    \b
    Examples:
      pgqueue jobs show 42
      pgqueue jobs show 42 --args --json
    """
    app = app_of(ctx, "find_jobs", "progress_of")
    job = app.jobs.get(job_id)
    print_job(job, progress=app.jobs.progress(job_id), show_args=show_args, as_json=as_json)


@jobs.command()
@click.argument("job_id", type=int, metavar="ID")
@json_option
@database_options
@click.pass_context
def cancel(ctx: click.Context, /, job_id: int, as_json: bool) -> None:
    """Cancel a job that has not started.

    \b
    Examples:
      pgqueue jobs cancel 42
    """
    app = app_of(ctx, "cancel", "find_jobs")
    if not app.jobs.cancel(job_id):
        job = app.jobs.get(job_id)
        raise OperationError(f"job {job_id} is {job.state}: only a queued job can be cancelled")
    if as_json:
        print_json({"id": job_id, "state": State.CANCELLED})
    else:
        click.echo(f"job {job_id}: cancelled")


@jobs.command()
@click.argument("ids", type=int, nargs=-1, required=True, metavar="ID...")
@json_option
@database_options
@click.pass_context
def retry(ctx: click.Context, /, ids: tuple[int, ...], as_json: bool) -> None:
    """Run queued jobs now that wait for their time or their retry.

    They are made due now and a sleeping worker is woken; their attempts are counted as before. A dead job is sent back
    by `pgqueue dead redrive`.

    \b
    Examples:
      pgqueue jobs retry 42
      pgqueue jobs retry 42 43 44 --json
    """
    app = app_of(ctx, "retry_now", "wake", "find_jobs")
    asked = list(dict.fromkeys(ids))
    done = app.perform(control.retry_now(app.statements, asked))
    wrong = []
    for job_id in asked:
        if job_id in done:
            said = "due now"
        else:
            try:
                state = app.jobs.get(job_id).state
            except JobNotFound as error:
                wrong.append(str(error))
                continue
            if state is not State.QUEUED:
                wrong.append(f"job {job_id} is {state}")
                continue
            said = "due already"
        if not as_json:
            click.echo(f"job {job_id}: {said}")
    if as_json:
        print_json({"ids": done})
    if wrong:
        raise OperationError(f"{'; '.join(wrong)}: only a queued job can be made due now")


def print_job(job: Job, *, progress: Progress | None, show_args: bool, as_json: bool) -> None:
    """Every field that a job has, how far it is, and the error of every failed attempt."""
    shown = job_as_dict(job, show_args=show_args)
    if as_json:
        print_json({**shown, "progress": None if progress is None else asdict(progress)})
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


def in_words(progress: Progress, job: Job) -> str:
    """`40%, 3 s ago: 400 of 1,000 rows`, never rounded up; with the attempt where that is not the latest."""
    of = "" if progress.attempt == job.attempt else f" by attempt {progress.attempt}"
    when = f", {ago(progress.at)}" if progress.at is not None else ""
    return f"{int(progress.fraction * 100 + 1e-9)}%{of}{when}" + (f": {progress.note}" if progress.note else "")
