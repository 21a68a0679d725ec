"""oban as a contestant's program: see report.py for the verbs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import uvloop
from oban import Job, Oban, worker
from oban.schema import install
from psycopg_pool import AsyncConnectionPool

from benchmarks.report import NOTE, Sent, gate, pause, ran, say, verbs

BATCH = 1_000
LIMIT = 1_000  # jobs at once, and so what one claim takes


@worker(queue="default")
class Noop:
    async def process(self, job: Job) -> None:
        ran(job.args["user_id"])


def job(number: int) -> Job:
    return Noop.new({"user_id": number, "note": NOTE})


def pooled(body: Callable[[AsyncConnectionPool, int], Awaitable[None]]) -> Callable[[int], None]:
    async def run(jobs: int) -> None:
        async with AsyncConnectionPool("", min_size=10, max_size=10) as pool:  # where the environment says (PGHOST …)
            await pool.wait()
            await body(pool, jobs)

    return lambda jobs: uvloop.run(run(jobs))


@pooled
async def schema(pool: AsyncConnectionPool, _: int) -> None:
    await install(pool)


@pooled
async def one(pool: AsyncConnectionPool, jobs: int) -> None:
    oban = Oban(pool=pool)
    began = time.perf_counter()
    for _ in range(jobs):
        await oban.enqueue(job(7))
    say(time.perf_counter() - began)


@pooled
async def bulk(pool: AsyncConnectionPool, jobs: int) -> None:
    oban = Oban(pool=pool)
    began = time.perf_counter()
    for at in range(0, jobs, BATCH):
        await oban.enqueue_many([job(7) for _ in range(min(BATCH, jobs - at))])
    say(time.perf_counter() - began)


@pooled
async def work(pool: AsyncConnectionPool, _: int) -> None:
    gate()
    async with Oban(pool=pool, queues={"default": LIMIT}):
        await asyncio.Event().wait()


@pooled
async def offer(pool: AsyncConnectionPool, jobs: int) -> None:
    oban, sent = Oban(pool=pool), Sent()
    for number in range(jobs):
        await asyncio.sleep(pause(number))
        sent.now(number)
        await oban.enqueue(job(number))
    sent.write()


if __name__ == "__main__":
    verbs(schema=schema, one=one, bulk=bulk, work=work, offer=offer)
