"""The floor: the smallest table that can be a queue, and a tight psycopg loop over it. No library.

Run as a contestant's program: see report.py for the verbs.
"""

from __future__ import annotations

import time

import psycopg

from benchmarks.report import NOTE, Sent, gate, pause, ran, say, verbs

TABLE = """
create table raw_jobs (id bigint generated always as identity primary key, state text not null default 'queued',
    run_at timestamptz not null default now(), args jsonb not null);
create index on raw_jobs (run_at, id) where state = 'queued';
"""
ARGS = '{"user_id": 7, "note": "%s"}' % NOTE  # noqa: UP031  braces

CLAIM = """
with picked as (
    select id from raw_jobs where state = 'queued' and run_at <= now()
    order by run_at, id limit 500 for update skip locked
)
update raw_jobs set state = 'running' from picked where raw_jobs.id = picked.id returning raw_jobs.id, args
"""
CLAIM_ONE = """
update raw_jobs set state = 'running' where id = (
    select id from raw_jobs where state = 'queued' order by run_at, id limit 1 for update skip locked
) returning id, args
"""
DONE = "delete from raw_jobs where id = any(%s)"


def one(jobs: int) -> None:
    with psycopg.connect() as connection:
        began = time.perf_counter()
        for _ in range(jobs):
            connection.execute("insert into raw_jobs (args) values (%s) returning id", [ARGS])
            connection.commit()
        say(time.perf_counter() - began)


def bulk(jobs: int) -> None:
    with psycopg.connect() as connection:
        began = time.perf_counter()
        with connection.cursor() as cursor, cursor.copy("copy raw_jobs (args) from stdin") as rows:
            for _ in range(jobs):
                rows.write_row([ARGS])
        connection.commit()
        say(time.perf_counter() - began)


def unnest(jobs: int) -> None:
    """Another bulk enqueue: 5,000 rows a statement."""
    with psycopg.connect() as connection:
        began = time.perf_counter()
        for at in range(0, jobs, 5_000):
            rows = [ARGS] * min(5_000, jobs - at)
            connection.execute("insert into raw_jobs (args) select unnest(%s::jsonb[])", [rows])
        connection.commit()
        say(time.perf_counter() - began)


def work(_: int) -> None:
    with psycopg.connect(autocommit=True) as connection:
        connection.execute("listen raw")
        gate()
        while True:
            while rows := connection.execute(CLAIM).fetchall():
                for _, args in rows:
                    ran(args["user_id"])
                connection.execute(DONE, [[row[0] for row in rows]])
            for _ in connection.notifies(timeout=0.01, stop_after=1):
                pass


def wake(_: int) -> None:
    """Another work: one job for each notification."""
    with psycopg.connect(autocommit=True) as connection:
        connection.execute("listen raw")
        gate()
        while True:
            while row := connection.execute(CLAIM_ONE).fetchone():
                ran(row[1]["user_id"])
                connection.execute(DONE, [[row[0]]])
            for _ in connection.notifies(timeout=5, stop_after=1):
                pass


def offer(jobs: int) -> None:
    sent = Sent()
    with psycopg.connect(autocommit=True) as connection:
        for number in range(jobs):
            time.sleep(pause(number))
            args = ARGS.replace("7", str(number))
            sent.now(number)
            connection.execute(
                "with job as (insert into raw_jobs (args) values (%s)) select pg_notify('raw', '')", [args]
            )
    sent.write()


if __name__ == "__main__":
    verbs(one=one, bulk=bulk, unnest=unnest, work=work, wake=wake, offer=offer)
