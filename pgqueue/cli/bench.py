"""pgqueue bench: what this database and machine do, in a minute, in a schema of its own that is dropped afterwards.

Four measures: one job a transaction, many at once, a queue of jobs that do nothing, and how soon an idle worker starts
one. Beside them the time of one round trip, without which none of them says much. The worker runs in this process, as
app.worker() does; `pgqueue worker --processes 2` does more on a machine that has more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import click

from pgqueue import db
from pgqueue.app import PgQueue
from pgqueue.cli.common import database_options, json_option, print_json, warn_of_variables
from pgqueue.cli.progress import Tell, progress
from pgqueue.errors import OperationError
from pgqueue.settings import database_url, describe

_NOTE = "forty bytes of payload, more or less, eh"
_PICK_UPS = 100
_ROUND_TRIPS = 200
_PATIENCE = 120.0  # seconds for one job to start


@click.command()
@click.option(
    "--jobs", type=click.IntRange(100, 1_000_000), default=20_000, show_default=True, help="Jobs to enqueue and to run."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 1_000), default=20, show_default=True, help="Of the worker that runs them."
)
@json_option
@database_options
@click.pass_context
def bench(ctx: click.Context, /, jobs: int, concurrency: int, as_json: bool) -> None:
    """Measure your own database: how fast jobs go in, come out and start.

    Works in a schema of its own, pgqueue_bench_… with eight random digits, which it makes and drops again; your jobs
    are not touched. The role must be allowed to make a schema. A busy database is slower meanwhile.

    \b
    Examples:
      pgqueue bench
      pgqueue bench --jobs 100000 --concurrency 100
      pgqueue bench --json
    """
    warn_of_variables()
    if ctx.obj.get("schema") is not None:
        raise click.UsageError("bench makes a schema of its own: leave out --schema and PGQUEUE_SCHEMA")
    url = ctx.obj["url"] = database_url(ctx.obj.get("url"))
    found: dict[str, float] = {}
    with _schema(url) as schema:
        app = PgQueue(url, schema=schema)
        ctx.call_on_close(app.close)
        if not as_json:
            click.echo(f"{describe(url)}, {jobs:,} jobs that do nothing, worker with concurrency {concurrency}")
        for name, value, line in _measures(app, jobs, concurrency):
            found[name] = round(value, 3)
            if not as_json:
                click.echo(line)
        app.close()
    if as_json:
        print_json({"jobs": jobs, "concurrency": concurrency, **found})


@contextmanager
def _schema(url: str) -> Iterator[str]:
    """A migrated schema that nobody else has; gone afterwards, also after Ctrl-C or SIGTERM."""
    from pgqueue import migrate  # brings Alembic: 0.1 s that few commands need

    schema = f"pgqueue_bench_{uuid4().hex[:8]}"
    before = {one: signal.signal(one, _interrupt) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    # Interrupted while it closes a connection, SQLAlchemy logs a traceback of that, and raises it all the same.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    try:
        migrate.upgrade(url, schema)
        yield schema
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        migrate.drop(url, schema)
        for one, handler in before.items():
            signal.signal(one, handler)


def _interrupt(number: int, frame: object) -> None:
    """Again in a moment, until it is heard: raised inside the callback of a weak reference it is ignored."""
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    raise KeyboardInterrupt


def _measures(app: PgQueue, jobs: int, concurrency: int) -> Iterator[tuple[str, float, str]]:
    """(name, value, line for the terminal), one after the other."""
    started: list[float] = []

    ran = itertools.count(1)

    @app.task(name="pgqueue.bench")
    async def nothing(number: int, note: str) -> None:
        if not (done := next(ran)) % 500:  # a call for each would be measured
            tell(done, jobs)

    @app.task(name="pgqueue.bench_mark")
    async def mark() -> None:
        started.append(time.perf_counter())

    app.perform(db.server(app.statements))  # connects
    trips = [_seconds(lambda: app.perform(db.server(app.statements))) for _ in range(_ROUND_TRIPS)]
    trip = statistics.median(trips) * 1e3
    yield "round_trip_ms", trip, f"a round trip              {trip:10.2f} ms"

    singles = min(jobs, 2_000)
    with progress("enqueue, a commit each") as each:
        seconds = _seconds(lambda: [nothing.delay(7, _NOTE) for _ in _counted(range(singles), singles, each)])
    rate = singles / seconds
    yield "enqueue_per_s", rate, f"enqueue, a commit each    {rate:10,.0f} jobs/s"

    rest = jobs - singles
    if rest:
        with progress("enqueue_many") as many:
            rate = rest / _seconds(lambda: _enqueue_many(app, nothing, rest, many))
        yield "enqueue_many_per_s", rate, f"enqueue_many              {rate:10,.0f} jobs/s"

    worker = app.worker(concurrency=concurrency, drain=True)
    with progress("run") as tell:
        rate = jobs / _seconds(lambda: asyncio.run(worker.run_async()))
    yield "run_per_s", rate, f"run, start of worker in   {rate:10,.0f} jobs/s"

    with progress("start") as starts:
        waits = _pick_ups(app, mark, started, concurrency, starts)
    middle, late = statistics.median(waits) * 1e3, waits[math.ceil(0.99 * len(waits)) - 1] * 1e3
    yield "pick_up_ms", middle, f"an idle worker starts one {middle:10.2f} ms (median, from before the enqueue)"
    yield "pick_up_p99_ms", late, f"                          {late:10.2f} ms (99 of 100)"


def _counted(values: Iterable[int], total: int, tell: Tell) -> Iterator[int]:
    for done, value in enumerate(values):
        if not done % 100:
            tell(done, total)
        yield value


def _enqueue_many(app: PgQueue, task: Any, number: int, tell: Tell) -> None:
    with app.engine.begin() as connection:
        task.enqueue_many(connection, ((7, _NOTE) for _ in _counted(range(number), number, tell)))


def _pick_ups(app: PgQueue, task: Any, started: list[float], concurrency: int, tell: Tell) -> list[float]:
    """Seconds from just before an enqueue to the start of the job, sorted."""
    worker = app.worker(concurrency=concurrency)
    thread = threading.Thread(target=lambda: asyncio.run(worker.run_async()), daemon=True)
    thread.start()
    waits = []
    try:
        for number in range(-1, _PICK_UPS):  # the first one waits for the worker to be there
            time.sleep(random.uniform(0.02, 0.05))  # noqa: S311  it shall be asleep again
            began = time.perf_counter()
            task.delay()
            while len(started) < number + 2:
                if time.perf_counter() - began > _PATIENCE or not thread.is_alive():
                    raise OperationError("the worker does not start a job: is something else using the database up?")
                time.sleep(0.0002)
            if number >= 0:
                tell(number, _PICK_UPS)
                waits.append(started[-1] - began)
    finally:
        worker.stop()
        thread.join()
    return sorted(waits)


def _seconds(act: Any) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
