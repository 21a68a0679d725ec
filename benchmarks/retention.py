"""Emptying a day of 5,000,000 finished jobs while jobs are claimed beside it: seconds, and the longest claim.

Claims are those of an idle worker's statement, one after the other, timed by the client. BENCH_FINISHED sets the number
of jobs.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from typing import Any
from uuid import uuid4

import psycopg

from benchmarks.harness import fresh_database, machine, server
from benchmarks.tasks import noop
from pgqueue import PgQueue, db
from pgqueue.drivers import perform_raw
from pgqueue.settings import PARTITIONS_AHEAD

FINISHED = int(os.environ.get("BENCH_FINISHED", "5000000"))
DAYS_AGO = 3
PARTITION = """
do $$
declare day date := (now() at time zone 'UTC')::date - {days};
begin
    execute format('create table pgqueue.%I (like pgqueue.finished_jobs including all)',
        'finished_jobs_' || to_char(day, 'YYYYMMDD'));
    execute format('alter table pgqueue.finished_jobs attach partition pgqueue.%I for values from (%L) to (%L)',
        'finished_jobs_' || to_char(day, 'YYYYMMDD'), day::timestamp at time zone 'UTC',
        (day + 1)::timestamp at time zone 'UTC');
end $$
"""
FILL = """
insert into pgqueue.finished_jobs (id, state, task, args, finished_at)
select -i, 'completed', 'bench.noop', '{"user_id": 7, "note": "forty bytes of payload"}',
    date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' - interval '%s days' + interval '1 hour'
from generate_series(1, %s) as i
"""


class Claims(threading.Thread):
    """Claims a job at a time until told to end; times are in seconds."""

    def __init__(self, database: str) -> None:
        super().__init__()
        self._database = database
        self.ending = threading.Event()
        self.times: list[float] = []

    def run(self) -> None:
        sql, worker_id = PgQueue(self._database).statements, uuid4()
        row: dict[str, Any] = {"queues": None, "tasks": [noop.name], "concurrency": 1, "version": "bench"}
        with psycopg.connect(self._database, autocommit=True) as connection:
            perform_raw(connection, db.register(sql, worker_id, lease=3_600.0, host="h", pid=1, **row))
            while not self.ending.is_set():
                noop.enqueue(connection, 7, "forty bytes of payload")
                began = time.perf_counter()
                perform_raw(connection, db.claim(sql, worker_id, [noop.name], None, 1))
                self.times.append(time.perf_counter() - began)


def main() -> None:
    print(f"\nA day of {FINISHED:,} finished jobs is emptied\n{machine()}")
    with server() as url, fresh_database(url) as database:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(PARTITION.replace("{days}", str(DAYS_AGO)))
            connection.execute(FILL % (DAYS_AGO, FINISHED))
            claims = Claims(database)
            claims.start()
            time.sleep(2.0)
            calm = len(claims.times)
            began = time.perf_counter()
            emptied = perform_raw(connection, db.prune(PgQueue(database).statements, PARTITIONS_AHEAD, 86_400.0))[1]
            seconds = time.perf_counter() - began
            time.sleep(2.0)
            claims.ending.set()
            claims.join()
        assert emptied == 1
        before, since = claims.times[10:calm], claims.times[calm:]
        print(f"  emptied in {seconds:.2f} s; {len(since):,} claims since it began")
        for name, times in (("before", before), ("since", since)):
            middle, longest = statistics.median(times) * 1e3, max(times) * 1e3
            print(f"  a claim {name}: median {middle:.1f} ms, longest {longest:.1f} ms")


if __name__ == "__main__":
    main()
