"""An application whose jobs end in every way there is; one of them when a file, its gate, is there."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from pgqueue import Cancel, Context, DeadLetter, PgQueue, RetryPolicy, Snooze

app = PgQueue()  # PGQUEUE_DATABASE_URL
SOON = RetryPolicy(delay=0.01, jitter=0)


@app.task
def succeed(n: int = 0) -> None: ...


@app.task(queue="other", retry=SOON, max_attempts=3)
def fail(ctx: Context, times: int) -> None:
    if ctx.job.attempt <= times:
        raise ValueError("no")


@app.task
def steer(ctx: Context, how: str) -> None:
    if how == "snooze" and ctx.job.fence > 1:
        return
    raise {"cancel": Cancel("no"), "dead": DeadLetter("no"), "snooze": Snooze(0.01)}[how]


@app.task
async def wait(ctx: Context, gate: str) -> None:
    directory = Path(os.environ["TEST_LEDGER"]).parent
    (directory / f"{gate} began").touch()
    while not (directory / gate).exists():
        await asyncio.sleep(0.01)


@app.task(queue="other")
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(queue="other", run_in="process")
def die_apart(ctx: Context) -> None:
    if ctx.job.fence < 2:
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(queue="paused")
def late() -> None: ...
