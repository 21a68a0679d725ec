"""An application whose lifespans open and close something, and tell the ledger; RESOURCES says what goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator

from pgqueue import AppState, Context, PgQueue
from pgqueue.job import Job
from tests.crash.tasks import is_open, write

app = PgQueue()  # PGQUEUE_DATABASE_URL
wrong = os.environ.get("RESOURCES", "")


@app.lifespan
def first(state: AppState) -> Iterator[None]:
    state.pid = os.getpid()
    yield
    write("closed_first", Job(0, "lifespan"))


@app.lifespan
async def second(state: AppState) -> AsyncIterator[None]:
    if wrong == "start" or (wrong == "restart" and is_open("once")):
        raise ConnectionError("redis is away")
    write("opened", Job(0, "lifespan"))
    async with asyncio.TaskGroup() as tasks:
        state.failing = tasks.create_task(fail_on_request())
        yield
        state.failing.cancel()
    while wrong == "close":
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            write("asked_to_hurry", Job(0, "lifespan"))
    write("closed_second", Job(0, "lifespan"))


async def fail_on_request() -> None:
    while not is_open("fail"):
        await asyncio.sleep(0.01)
    raise ConnectionError("redis went away")


@app.task
def look(ctx: Context) -> None:
    write("started" if ctx.state.pid == os.getpid() else "elsewhere", ctx.job)


@app.task
def kill_its_process_once(ctx: Context) -> None:
    write("started" if ctx.state.pid == os.getpid() else "elsewhere", ctx.job)
    if ctx.job.fence == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@app.task
def hold(ctx: Context, gate: str) -> None:
    write("started", ctx.job)
    while not is_open(gate):
        time.sleep(0.01)
    write("finished", ctx.job)
