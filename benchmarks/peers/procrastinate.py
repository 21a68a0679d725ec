"""procrastinate as a contestant's program: see report.py for the verbs."""

from __future__ import annotations

import time

import procrastinate
import uvloop

from benchmarks.report import NOTE, Sent, gate, pause, ran, say, verbs

BATCH = 1_000

# Where the database is, the environment says (PGHOST …).
app = procrastinate.App(connector=procrastinate.PsycopgConnector())


@app.task(name="noop")
async def noop(user_id: int, note: str) -> None:
    ran(user_id)


def synchronous() -> procrastinate.App:
    return app.with_connector(procrastinate.SyncPsycopgConnector())


def schema(_: int) -> None:
    with synchronous().open() as opened:
        opened.schema_manager.apply_schema()


def one(jobs: int) -> None:
    with app.replace_connector(procrastinate.SyncPsycopgConnector()) as mine, mine.open():
        began = time.perf_counter()
        for _ in range(jobs):
            noop.defer(user_id=7, note=NOTE)
        say(time.perf_counter() - began)


def bulk(jobs: int) -> None:
    with app.replace_connector(procrastinate.SyncPsycopgConnector()) as mine, mine.open():
        began = time.perf_counter()
        for at in range(0, jobs, BATCH):
            noop.batch_defer(*({"user_id": 7, "note": NOTE} for _ in range(min(BATCH, jobs - at))))
        say(time.perf_counter() - began)


def work(_: int) -> None:
    async def run() -> None:
        async with app.open_async():
            gate()
            await app.run_worker_async(concurrency=5, delete_jobs="always", listen_notify=True)

    uvloop.run(run())


def offer(jobs: int) -> None:
    sent = Sent()
    with app.replace_connector(procrastinate.SyncPsycopgConnector()) as mine, mine.open():
        for number in range(jobs):
            time.sleep(pause(number))
            sent.now(number)
            noop.defer(user_id=number, note=NOTE)
    sent.write()


if __name__ == "__main__":
    verbs(schema=schema, one=one, bulk=bulk, work=work, offer=offer)
