"""celery on Redis as a contestant's program: see report.py for the verbs. Redis keeps nothing on disk."""

from __future__ import annotations

import os
import time

from celery import Celery

from benchmarks.report import NOTE, Sent, gate, pause, ran, say, verbs

app = Celery("bench", broker=f"redis+socket://{os.environ.get('BENCH_REDIS', '')}")
app.conf.task_ignore_result = True
app.conf.worker_hijack_root_logger = False


@app.task(name="noop")
def noop(user_id: int, note: str) -> None:
    ran(user_id)


def one(jobs: int) -> None:
    with app.pool.acquire(block=True):
        began = time.perf_counter()
        for _ in range(jobs):
            noop.apply_async((7, NOTE))
        say(time.perf_counter() - began)


def work(_: int) -> None:
    gate()
    app.worker_main(
        ["worker", "--pool=solo", "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
    )


def offer(jobs: int) -> None:
    sent = Sent()
    for number in range(jobs):
        time.sleep(pause(number))
        sent.now(number)
        noop.apply_async((number, NOTE))
    sent.write()


if __name__ == "__main__":
    verbs(one=one, bulk=one, work=work, offer=offer)
