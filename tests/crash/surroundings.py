"""An application whose jobs have processes of their own, with a middleware around them and what a lifespan opened."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

from pgqueue import AppState, Context, PgQueue
from pgqueue.job import Job
from tests.crash.tasks import write

app = PgQueue()  # PGQUEUE_DATABASE_URL


@app.lifespan
async def resources(state: AppState) -> AsyncIterator[None]:
    state.pid = os.getpid()
    write("opened", Job(0, "lifespan"))
    yield
    write("closed", Job(0, "lifespan"))


@app.middleware
def around(ctx: Context) -> Generator[None, Any, None]:
    write("before" if ctx.state.pid == os.getpid() else "before_elsewhere", ctx.job)
    result = yield
    write(f"after_{result}", ctx.job)


def own(ctx: Context) -> Iterator[None]:
    write("own", ctx.job)
    yield


@app.task(run_in="process", middleware=[own])
def named(ctx: Context) -> int:
    write("started" if ctx.state.pid == os.getpid() else "started_elsewhere", ctx.job)
    return 1


def _plain() -> int:
    return 2


# Its function's name leads to the function alone.
known = app.task(name="surroundings.known", run_in="process", middleware=[own])(_plain)
