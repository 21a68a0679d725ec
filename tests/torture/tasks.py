"""The application under torture: jobs of many kinds, each of which tells the ledger what it does.

Imported by the processes that work, which thereby get their failpoints; and, where a test wants to see the checker
find something, a pgqueue that is broken on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Iterator

import psycopg
import sqlalchemy as sa

from pgqueue import Cancel, ClaimLost, Context, DeadLetter, PgQueue, RetryPolicy, Snooze
from pgqueue.events import Event
from pgqueue.sql import statements
from tests.crash import harm
from tests.torture import failpoints, ledger

SOON = RetryPolicy(delay=0.05, factor=2.0, max_delay=0.15, jitter=0.1)

app = PgQueue()  # PGQUEUE_DATABASE_URL


@contextlib.contextmanager
def run(ctx: Context, key: str) -> Iterator[None]:
    """Tells of a run's start and end."""
    ledger.write("run.start", of=ctx.job, key=key)
    failpoints.hit("run.body")
    how = "returned"
    try:
        yield
    except ClaimLost:
        ledger.write("run.refused", of=ctx.job, key=key)
        how = "refused"
        raise
    except asyncio.CancelledError:
        ledger.write("run.interrupted", of=ctx.job, key=key)
        how = "interrupted"
        raise
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        ledger.write("run.end", of=ctx.job, key=key, note=how)


def effect(ctx: Context, key: str) -> None:
    """Something outside the database."""
    ledger.write("run.effect", of=ctx.job, key=key)
    failpoints.hit("run.effect")


# -- good ones ---------------------------------------------------------------------------------------------------------


@app.task(name="torture.quick")
def quick(ctx: Context, key: str) -> None:
    with run(ctx, key):
        effect(ctx, key)


@app.task(name="torture.quick_async")
async def quick_async(ctx: Context, key: str) -> str:
    with run(ctx, key):
        effect(ctx, key)
        return key


@app.task(name="torture.slow")
def slow(ctx: Context, key: str, seconds: float) -> None:
    """One effect after the other in a thread, until it has lasted so long or is asked to end."""
    with run(ctx, key):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ledger.write("run.beat", of=ctx.job, key=key)
            time.sleep(0.03)
            if ctx.cancelled:
                ledger.write("run.interrupted", of=ctx.job, key=key)
                raise RuntimeError("asked to end")


@app.task(name="torture.slow_async")
async def slow_async(ctx: Context, key: str, seconds: float) -> None:
    with run(ctx, key):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ledger.write("run.beat", of=ctx.job, key=key)
            await asyncio.sleep(0.03)


@app.task(name="torture.failing", retry=SOON, max_attempts=4)
def failing(ctx: Context, key: str) -> None:
    """Succeeds in its third attempt."""
    with run(ctx, key):
        if ctx.job.attempt < 3:
            raise RuntimeError("not yet")


@app.task(name="torture.hopeless", retry=SOON, max_attempts=2)
async def hopeless(ctx: Context, key: str) -> None:
    with run(ctx, key):
        raise RuntimeError("never")


@app.task(name="torture.snoozing")
def snoozing(ctx: Context, key: str) -> None:
    with run(ctx, key):
        if ctx.job.fence < 3:
            raise Snooze(0.05)


@app.task(name="torture.steered")
async def steered(ctx: Context, key: str, cancel: bool) -> None:
    with run(ctx, key):
        raise Cancel("as it was told") if cancel else DeadLetter("as it was told")


@app.task(name="torture.transact", retry=SOON)
def transact(ctx: Context, key: str) -> None:
    """One effect in the database, committed with the job's completion; it sees what was written beside its enqueue."""
    with run(ctx, key), ctx.transaction() as session:
        if session.execute(sa.text("select 1 from marker where key = :key"), {"key": key}).first() is None:
            ledger.write("run.unseen", of=ctx.job, key=key)
        values = {"job": ctx.job.id, "fence": ctx.job.fence}
        session.execute(sa.text("insert into effects (job_id, fence) values (:job, :fence)"), values)
        failpoints.hit("run.transaction")
        time.sleep(0.005)


@app.task(name="torture.transact_async", retry=SOON)
async def transact_async(ctx: Context, key: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(run(ctx, key))
        raw = await stack.enter_async_context(ctx.transaction(driver=True))
        if await (await raw.execute("select 1 from marker where key = %s", [key])).fetchone() is None:
            ledger.write("run.unseen", of=ctx.job, key=key)
        await raw.execute("insert into effects (job_id, fence) values (%s, %s)", [ctx.job.id, ctx.job.fence])
        failpoints.hit("run.transaction")
        await asyncio.sleep(0.005)


@app.task(name="torture.keyed", retry=SOON)
def keyed(ctx: Context, key: str) -> None:
    """Does not end before its producer knows that it is there: until then its key is held."""
    with run(ctx, key), ctx.transaction(driver=True) as raw:
        if raw.execute("select 1 from known where key = %s", [key]).fetchone() is None:
            raise Snooze(0.2)


@app.task(name="torture.bad")
def bad(ctx: Context, key: str, number: int) -> None:
    """Its rows are made by plain SQL, and cannot be read."""
    with run(ctx, key):
        effect(ctx, key)


# -- and those that harm their process ---------------------------------------------------------------------------------


@app.task(name="torture.poison")
def poison(ctx: Context, key: str, way: str) -> None:
    """Ends its process, one way or another."""
    ledger.write("run.start", of=ctx.job, key=key)
    harm.end(way)


@app.task(name="torture.poison_alone", run_in="process")
def poison_alone(ctx: Context, key: str) -> None:
    """The same in a process that runs nothing else: its worker lives, and writes the crash down."""
    ledger.write("run.start", of=ctx.job, key=key)
    harm.end("kill")


@app.task(name="torture.recanted", retry=SOON, max_attempts=20)
def recanted(ctx: Context, key: str) -> None:
    """Is to end by an operator's word of which its worker has not heard when it fails."""
    with run(ctx, key):
        with psycopg.connect(os.environ["PGQUEUE_DATABASE_URL"], application_name="operator") as raw:
            raw.execute("select pgqueue.cancel(%s)", [ctx.job.id])
        raise RuntimeError("never mind")


@app.task(name="torture.block_loop")
async def block_loop(ctx: Context, key: str, seconds: float) -> None:
    """What an async job must not do: nothing else runs on its loop meanwhile."""
    with run(ctx, key):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ledger.write("run.beat", of=ctx.job, key=key)
            time.sleep(0.03)


@app.task(name="torture.swallow")
async def swallow(ctx: Context, key: str, seconds: float) -> None:
    """Does not let itself be cancelled."""
    with run(ctx, key):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(asyncio.CancelledError):
                ledger.write("run.beat", of=ctx.job, key=key)
                await asyncio.sleep(0.03)


@app.task(name="torture.hold_gil")
def hold_gil(ctx: Context, key: str, seconds: float) -> None:
    """No other thread of its process gets anywhere."""
    with run(ctx, key):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ledger.write("run.beat", of=ctx.job, key=key)
            sum(range(8_000_000))


@app.task(name="torture.damage", retry=SOON)
def damage(ctx: Context, key: str, what: str) -> None:
    """Leaves its process other than it was."""
    with run(ctx, key):
        harm.damage(what, keep=ledger.VARIABLE)


@app.task(name="torture.fork", retry=SOON)
async def fork(ctx: Context, key: str) -> None:
    """Forks, and returns twice: the event loop, and all connections of the process, are now in two."""
    with run(ctx, key):
        os.fork()


# -- what the worker is told -------------------------------------------------------------------------------------------


@app.on("completed")
@app.on("retried")
@app.on("dead_lettered")
@app.on("cancelled")
@app.on("snoozed")
@app.on("released")
@app.on("claim_lost")
def tell(event: Event) -> None:
    ledger.write(f"told.{event.name}", of=event.job)


# -- a pgqueue that is broken on purpose -------------------------------------------------------------------------------

AGE = "interval '0.7 s'"


def break_pgqueue(how: str) -> None:
    """In this process: takes the fence out of every settle, or rescues by age instead of liveness."""
    texts = statements("pgqueue")._texts
    match how:
        case "no fence":
            for verb in ("complete", "retry", "dead_letter", "give_back", "cancel_running"):
                texts[verb], guards = re.subn(
                    r" and (job\.)?worker_id = %\(worker_id\)s( and fence = done\.fence)?", "", texts[verb]
                )
                assert guards >= 2, verb
        case "rescue by age":
            old = f"started_at < statement_timestamp() - {AGE}"
            texts["lapsed"] = f"select distinct worker_id from \"pgqueue\".jobs where state = 'running' and {old}"
            owners = "state = 'running' and worker_id = any(%(workers)s::uuid[])"
            assert owners in texts["rescue"]
            texts["rescue"] = texts["rescue"].replace(owners, f"{owners} and {old}")
        case _:
            raise AssertionError(f"there is no {how!r}")


if ledger.VARIABLE in os.environ:
    failpoints.install()
    if how := os.environ.get("TEST_BROKEN"):
        break_pgqueue(how)
