"""The application that the workers of these tests run: jobs that tell a ledger what they do, and end when told to.

The ledger is a file outside the tested database, one line an event, written with O_APPEND and synced, so that it holds
what a killed process did until its last moment. A gate is a file: a job that waits for one ends when it is there.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import sqlalchemy as sa

from pgqueue import Context, PgQueue, RetryPolicy
from pgqueue.events import Event
from pgqueue.job import Job
from tests.crash import harm

app = PgQueue()  # PGQUEUE_DATABASE_URL

not_an_app = "a module may hold anything"


def write(event: str, job: Job) -> None:
    """One line: monotonic ns, pid, worker, job id, fence, attempt, event."""
    line = f"{time.monotonic_ns()} {os.getpid()} {job.worker_id} {job.id} {job.fence} {job.attempt} {event}\n"
    ledger = os.open(os.environ["TEST_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(ledger, line.encode())
        os.fsync(ledger)
    finally:
        os.close(ledger)


def is_open(gate: str) -> bool:
    return (Path(os.environ["TEST_LEDGER"]).parent / gate).exists()


@app.task
def quick(ctx: Context, canary: str = "") -> None:
    write("started", ctx.job)
    write("finished", ctx.job)


@app.task
def hold_thread(ctx: Context, gate: str) -> None:
    """Keeps a thread, and does not ask whether it should end."""
    write("started", ctx.job)
    while not is_open(gate):
        time.sleep(0.01)
    write("finished", ctx.job)


@app.task
def start_a_process(ctx: Context, gate: str) -> int:
    """Starts a process that ends on SIGTERM; tells its pid by way of a file; waits for the gate, then ends it."""
    process = subprocess.Popen(["sleep", "600"])
    pids = Path(os.environ["TEST_LEDGER"]).parent / f"process-{ctx.job.fence}"
    pids.write_text(str(process.pid))
    write("started", ctx.job)
    while not is_open(gate):
        time.sleep(0.01)
    process.terminate()
    code = process.wait()
    write("finished", ctx.job)
    return code


@app.task(hard_timeout=0.3)
def overdue(ctx: Context, gate: str) -> None:
    """Runs for too long, in a thread, which nobody can kill."""
    write("started", ctx.job)
    while not is_open(gate):
        time.sleep(0.01)
    write("finished", ctx.job)


@app.task(run_in="process")
def hold_process(ctx: Context, gate: str) -> None:
    """Has a process to itself."""
    write("started", ctx.job)
    while not is_open(gate):
        time.sleep(0.01)
    write("finished", ctx.job)


@app.task
async def hold_slot(ctx: Context, gate: str) -> None:
    """Waits on the event loop, where it can be cancelled."""
    write("started", ctx.job)
    try:
        while not is_open(gate):
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        write("interrupted", ctx.job)
        raise
    write("finished", ctx.job)


@app.task
async def swallow(ctx: Context, gate: str) -> None:
    """Waits on the event loop, and does not let itself be cancelled."""
    write("started", ctx.job)
    while not is_open(gate):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            write("swallowed", ctx.job)
    write("finished", ctx.job)


@app.task
async def block_loop(ctx: Context, gate: str) -> None:
    """What an async job must not do: nothing else runs on the loop meanwhile."""
    write("started", ctx.job)
    while not is_open(gate):
        time.sleep(0.01)
    write("finished", ctx.job)


@app.task
def hold_gil(ctx: Context, gate: str) -> None:
    """No other thread of the process gets anywhere: one C call after the other, a quarter of a second each."""
    write("started", ctx.job)
    while not is_open(gate):
        sum(range(10_000_000))
    write("finished", ctx.job)


@app.task
def hold_gil_at_once(ctx: Context, seconds: int) -> None:
    """The same in one C call, which no switch interval interrupts."""
    write("started", ctx.job)
    ctypes.PyDLL(None).usleep(seconds * 1_000_000)
    write("finished", ctx.job)


@app.task
def beat_thread(ctx: Context, gate: str) -> None:
    """Has one effect after the other."""
    write("started", ctx.job)
    while not is_open(gate):
        write("effect", ctx.job)
        time.sleep(0.02)


@app.task
async def beat_slot(ctx: Context, gate: str) -> None:
    """The same, where it can be cancelled."""
    write("started", ctx.job)
    while not is_open(gate):
        write("effect", ctx.job)
        await asyncio.sleep(0.02)


@app.task
async def beat_loop(ctx: Context, gate: str) -> None:
    """The same, and the event loop gets nowhere meanwhile."""
    write("started", ctx.job)
    while not is_open(gate):
        write("effect", ctx.job)
        time.sleep(0.02)


@app.task
def close_channel(ctx: Context, gate: str) -> None:
    """In its first run it closes the descriptor by which its process hears from its supervisor."""
    write("started", ctx.job)
    if ctx.job.fence == 1:
        os.close(int(sys.argv[-1]))
    while not is_open(gate):
        time.sleep(0.01)
    write("finished", ctx.job)


@app.task
def fork_thread(ctx: Context) -> int:
    """Returns twice, once in a copy of its process."""
    write("started", ctx.job)
    return os.fork()


@app.task
async def fork_slot(ctx: Context) -> int:
    """The same, with the event loop and all connections in both."""
    write("started", ctx.job)
    return os.fork()


@app.task
def meet(ctx: Context, other: str, me: str) -> None:
    """Ends when another job runs at the same time."""
    write("started", ctx.job)
    (Path(os.environ["TEST_LEDGER"]).parent / me).touch()
    while not is_open(other):
        time.sleep(0.01)
    write("finished", ctx.job)


@app.task
def die(ctx: Context, ways: list[str]) -> None:
    """Takes its process along, in another way in each run."""
    write("started", ctx.job)
    harm.end(ways[ctx.job.fence - 1])


@app.task
def damage(ctx: Context, what: str) -> None:
    """Leaves its process other than it was."""
    write("started", ctx.job)
    harm.damage(what, keep="TEST_LEDGER")
    write("finished", ctx.job)


@app.task
def spin(ctx: Context) -> None:
    """Never ends, and asks nobody."""
    write("started", ctx.job)
    while True:
        pass


@app.task
async def spin_loop(ctx: Context) -> None:
    """The same on the event loop, which gets nowhere any more."""
    write("started", ctx.job)
    while True:
        pass


@app.task
def swallow_exit(ctx: Context) -> None:
    """Wants to end its process as Python does, and does not let itself."""
    write("started", ctx.job)
    while True:
        try:
            sys.exit(3)
        except BaseException:
            time.sleep(0.01)


@app.task
def ignore_signals(ctx: Context) -> None:
    """Its process ignores every signal that can be ignored, and its thread blocks the others; and it never ends."""
    write("started", ctx.job)
    libc = ctypes.CDLL(None)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        libc.signal(int(number), 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(1)


@app.task
def transact_thread(ctx: Context) -> None:
    """One effect in the database, in a transaction that also completes the job; nothing else keeps it from two. Who
    runs it after another takes longer: the other may wake up meanwhile."""
    time.sleep(0.05 if ctx.job.fence == 1 else 0.5)
    with ctx.transaction() as session:
        effect = {"job": ctx.job.id, "fence": ctx.job.fence}
        session.execute(sa.text("insert into effects (job_id, fence) values (:job, :fence)"), effect)
        time.sleep(0.01)


@app.task
async def transact_slot(ctx: Context) -> None:
    """The same on the event loop, and on psycopg."""
    await asyncio.sleep(0.05 if ctx.job.fence == 1 else 0.5)
    async with ctx.transaction(driver=True) as raw:
        await raw.execute("insert into effects (job_id, fence) values (%s, %s)", [ctx.job.id, ctx.job.fence])
        await asyncio.sleep(0.01)


@app.task
def hold_transaction(ctx: Context, gate: str) -> None:
    """One effect in a transaction that stays open until the gate is, and is never idle for long while this runs."""
    with ctx.transaction() as session:
        effect = {"job": ctx.job.id, "fence": ctx.job.fence}
        session.execute(sa.text("insert into effects (job_id, fence) values (:job, :fence)"), effect)
        write("started", ctx.job)
        while not is_open(gate):
            session.execute(sa.text("select 1"))
            time.sleep(0.02)


_hoard = []


@app.task
def hoard(ctx: Context, megabytes: int) -> None:
    """Leaves its process larger than it was."""
    _hoard.append(b"x" * megabytes * 2**20)
    write("finished", ctx.job)


@app.task
def slow(ctx: Context, seconds: float) -> None:
    """Runs for a while, and asks nobody."""
    write("started", ctx.job)
    time.sleep(seconds)
    write("finished", ctx.job)


@app.task(retry=RetryPolicy(delay=0.05, jitter=0), max_attempts=2)
def fail(ctx: Context, canary: str) -> None:
    write("started", ctx.job)
    raise RuntimeError(f"no luck with {canary}")


@app.task(retry=RetryPolicy(delay=0.05, jitter=0), max_attempts=2)
def fail_once(ctx: Context) -> None:
    write("started", ctx.job)
    if ctx.job.attempt == 1:
        raise RuntimeError("not yet")
    write("finished", ctx.job)


@app.task
def talk(ctx: Context, text: str) -> None:
    ctx.log.info(text)


@app.on("rescued")
@app.on("dead_lettered")
def tell(event: Event) -> None:
    write(event.name, event.job)
