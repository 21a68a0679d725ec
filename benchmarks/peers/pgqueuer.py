"""pgqueuer as a contestant's program: see report.py for the verbs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.report import NOTE, Sent, gate, pause, ran, say, verbs

BATCH = 5_000


def payload(number: int) -> bytes:
    return json.dumps({"user_id": number, "note": NOTE}).encode()


def connected(body: Callable[[Queries, int], Awaitable[None]]) -> Callable[[int], None]:
    async def run(jobs: int) -> None:
        connection = await asyncpg.connect()  # to where the environment says (PGHOST …)
        await body(Queries.from_asyncpg_connection(connection), jobs)
        await connection.close()

    return lambda jobs: uvloop.run(run(jobs))


@connected
async def schema(queries: Queries, _: int) -> None:
    await queries.install()


@connected
async def one(queries: Queries, jobs: int) -> None:
    began = time.perf_counter()
    for _ in range(jobs):
        await queries.enqueue("noop", payload(7))
    say(time.perf_counter() - began)


@connected
async def bulk(queries: Queries, jobs: int) -> None:
    began = time.perf_counter()
    for at in range(0, jobs, BATCH):
        size = min(BATCH, jobs - at)
        await queries.enqueue(["noop"] * size, [payload(7) for _ in range(size)], [0] * size)
    say(time.perf_counter() - began)


def work(_: int) -> None:
    async def run() -> None:
        queue = PgQueuer.from_asyncpg_connection(await asyncpg.connect())

        @queue.entrypoint("noop")
        async def noop(job: Job) -> None:
            ran(json.loads(job.payload or b"")["user_id"])

        gate()
        await queue.run(batch_size=200)

    uvloop.run(run())


@connected
async def offer(queries: Queries, jobs: int) -> None:
    sent = Sent()
    for number in range(jobs):
        await asyncio.sleep(pause(number))
        sent.now(number)
        await queries.enqueue("noop", payload(number))
    sent.write()


if __name__ == "__main__":
    verbs(schema=schema, one=one, bulk=bulk, work=work, offer=offer)
