"""An application that enqueues, under torture: its outcomes are ok, fail and unknown, and it says which.

    ok        the COMMIT was acknowledged
    fail      rolled back, or broken before the COMMIT was sent: it is certain that nothing is there
    unknown   the connection broke in the COMMIT

What it enqueues under an idempotency key it repeats, until it is ok. `python -m tests.torture.producer SEED`; ends when
the file `enough` lies beside its ledger.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors
from psycopg.types.json import Jsonb

from pgqueue import PgQueueError, db
from pgqueue.drivers import perform_raw
from pgqueue.sql import statements
from tests.torture import ledger, tasks

NAME = "producer"
UNKNOWN_TASK = "torture.unknown"
SQL = statements("pgqueue")

# What PostgreSQL says when it has made up its mind: nothing is there.
_CERTAIN = (errors.SerializationFailure, errors.DeadlockDetected, errors.QueryCanceled, errors.LockNotAvailable)


class Unknown(Exception):
    """The COMMIT was not answered."""


class Producer:
    """One connection, opened anew when it is lost."""

    def __init__(self, url: str, name: str, seed: int, directory: Path) -> None:
        self._url = url
        self._name = name
        self._directory = directory
        self._chance = random.Random(seed)
        self._count = 0
        self._raw: psycopg.Connection[Any] | None = None

    def run(self) -> None:
        kinds = {kind: weight for kind, weight in self.kinds().items() if weight}
        while not (self._directory / "enough").exists():
            kind = self._chance.choices(list(kinds), list(kinds.values()))[0]
            try:
                kind()
            except (psycopg.ProgrammingError, psycopg.DataError):
                raise  # that is nobody's doing but ours
            except (psycopg.Error, PgQueueError, Unknown):
                self.close()
                time.sleep(0.05)
            time.sleep(self._chance.uniform(0.0, 0.04))
        self.close()

    def kinds(self) -> dict[Callable[[], None], int]:
        return {
            self.quick: 8,
            self.batch: 2,
            self.transact: 8,
            self.failing: 3,
            self.hopeless: 2,
            self.snoozing: 2,
            self.steered: 2,
            self.slow: 2,
            self.later: 2,
            self.expiring: 1,
            self.rolled_back: 3,
            self.savepoint: 3,
            self.prepared: 1,
            self.keyed: 4,
            self.alike: 4,
            self.bad: 1,
            self.unknown_task: 1,
            self.cancel: 2,
            self.redrive: 2,
        }

    def close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            with contextlib.suppress(psycopg.Error):
                raw.close()

    def key(self, kind: str) -> str:
        self._count += 1
        return f"{self._name}-{self._count}-{kind}"

    def open(self) -> psycopg.Connection[Any]:
        if self._raw is None or self._raw.closed:
            more = {"connect_timeout": 3, "tcp_user_timeout": 3000, "application_name": NAME}
            self._raw = psycopg.connect(self._url, **more)
        return self._raw

    @contextlib.contextmanager
    def transaction(self, *keys: str, note: str = "") -> Iterator[tuple[psycopg.Connection[Any], dict[str, int]]]:
        """A transaction in which jobs are enqueued under these keys; what became of it is written down. Its block puts
        the jobs' ids into the dictionary."""
        for key in keys:
            ledger.write("intent", key=key)
        jobs: dict[str, int] = {}
        outcome = "unknown" if note == "keyed" else "fail"  # it will be repeated
        try:
            raw = self.open()
            yield raw, jobs
            try:
                raw.commit()
                outcome = "ok"
            except _CERTAIN:
                raise
            except psycopg.Error as error:
                outcome = "unknown"
                raise Unknown from error
        except GeneratorExit:
            raise
        finally:
            for key in keys:
                said = outcome if key in jobs or outcome != "ok" else "fail"  # a savepoint's
                ledger.write(said, job=jobs.get(key, 0) if said == "ok" else 0, key=key, note=note)

    # -- kinds of jobs -----------------------------------------------------------------------------------------------

    def quick(self) -> None:
        key = self.key("quick")
        task = self._chance.choice([tasks.quick, tasks.quick_async])
        with self.transaction(key) as (raw, jobs):
            jobs[key] = task.enqueue(raw, key).id

    def batch(self) -> None:
        keys = [self.key("batch") for _ in range(self._chance.randint(2, 12))]
        with self.transaction(*keys) as (raw, jobs):
            jobs |= zip(keys, tasks.quick_async.enqueue_many(raw, [(key,) for key in keys]), strict=True)

    def transact(self) -> None:
        key = self.key("transact")
        task = self._chance.choice([tasks.transact, tasks.transact_async])
        with self.transaction(key) as (raw, jobs):
            jobs[key] = task.enqueue(raw, key).id  # before its marker: it must not be seen without
            raw.execute("insert into marker (key) values (%s)", [key])

    def failing(self) -> None:
        self._simple(tasks.failing)

    def hopeless(self) -> None:
        self._simple(tasks.hopeless)

    def snoozing(self) -> None:
        self._simple(tasks.snoozing)

    def steered(self) -> None:
        self._simple(tasks.steered, self._chance.random() < 0.5)

    def slow(self) -> None:
        self._simple(self._chance.choice([tasks.slow, tasks.slow_async]), self._chance.uniform(0.3, 1.5))

    def later(self) -> None:
        self._simple(tasks.quick.options(delay=self._chance.uniform(0.1, 1.5)))

    def expiring(self) -> None:
        self._simple(tasks.quick.options(delay=0.2, expires_in=0.05))

    def _simple(self, task: Any, *more: Any) -> None:
        key = self.key("simple")
        with self.transaction(key) as (raw, jobs):
            jobs[key] = task.enqueue(raw, key, *more).id

    def rolled_back(self) -> None:
        key = self.key("never")
        with contextlib.suppress(ZeroDivisionError), self.transaction(key) as (raw, jobs):
            jobs[key] = tasks.quick.enqueue(raw, key).id
            raw.rollback()
            raise ZeroDivisionError

    def savepoint(self) -> None:
        kept, never = self.key("kept"), self.key("never")
        with self.transaction(kept, never) as (raw, jobs):
            jobs[kept] = tasks.quick.enqueue(raw, kept).id
            with contextlib.suppress(ZeroDivisionError), raw.transaction():
                tasks.quick.enqueue(raw, never)
                raise ZeroDivisionError

    def prepared(self) -> None:
        """Two phases, and the second is a rollback."""
        key = self.key("never")
        ledger.write("intent", key=key)
        ledger.write("fail", key=key)
        raw = self.open()
        xid = raw.xid(1, key, "torture")
        raw.tpc_begin(xid)
        tasks.quick.options(wake=False).enqueue(raw, key)
        raw.tpc_prepare()
        raw.tpc_rollback()

    def alike(self) -> None:
        """Unique by one of few keys, which all producers share: who finds it held is told of the job that holds it."""
        key, unique = self.key("alike"), f"alike-{self._chance.randrange(4)}"
        with self.transaction(key) as (raw, jobs):
            job = tasks.quick.options(unique_key=unique).enqueue(raw, key)
            jobs[key] = job.id
        if job.existing:
            ledger.write("held", job=job.id, key=key, note=unique)

    def keyed(self) -> None:
        """Repeated under its idempotency key until it is there; only then may it end."""
        key = self.key("keyed")
        while True:
            try:
                with self.transaction(key, note="keyed") as (raw, jobs):
                    jobs[key] = tasks.keyed.options(unique_key=key).enqueue(raw, key).id
                break
            except (psycopg.Error, PgQueueError, Unknown):
                self.close()
                time.sleep(0.1)
        while True:
            try:
                with self.open() as raw:
                    raw.execute("insert into known (key) values (%s) on conflict do nothing", [key])
                break
            except (psycopg.Error, PgQueueError):
                self.close()
                time.sleep(0.1)

    def bad(self) -> None:
        """By plain SQL: too deep for Python, not what the task takes, or no number that it knows."""
        key = self.key("bad")
        deep = '{"key": "k", "number": ' + "[" * 1500 + "]" * 1500 + "}"
        args = self._chance.choice([deep, '{"key": "k"}', '{"key": "k", "number": 1e5000}', "[1, 2, 3, 4]"])
        with self.transaction(key) as (raw, jobs):
            row = raw.execute(
                "insert into pgqueue.jobs (task, args) values ('torture.bad', %s::jsonb) returning id", [args]
            )
            jobs[key] = row.fetchone()[0]  # type: ignore[index]

    def unknown_task(self) -> None:
        key = self.key("unknown")
        with self.transaction(key) as (raw, jobs):
            row = raw.execute("select pgqueue.enqueue(%s, %s)", [UNKNOWN_TASK, Jsonb({"key": key})])
            jobs[key] = row.fetchone()[0]  # type: ignore[index]

    # -- operators ---------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        raw = self.open()
        found = raw.execute(
            "select id from pgqueue.jobs where state = 'queued' and task <> %s and unique_key is null limit 3",
            [UNKNOWN_TASK],
        ).fetchall()
        perform_raw(raw, db.cancel(SQL, [row[0] for row in found], "an operator"))
        raw.commit()

    def redrive(self) -> None:
        """Two operators at once."""
        raw = self.open()
        found = raw.execute("select id from pgqueue.dead_jobs where task = %s limit 3", [tasks.hopeless.name])
        ids = [row[0] for row in found.fetchall()]
        raw.rollback()
        other = threading.Thread(target=self._click, args=[ids])
        other.start()
        self._click(ids)
        other.join()

    def _click(self, ids: list[int]) -> None:
        done: list[int] = []
        try:
            with psycopg.connect(self._url, connect_timeout=3, application_name=NAME) as raw:
                done = [one.id for one in perform_raw(raw, db.redrive(SQL, ids))]
        except (psycopg.Error, PgQueueError):
            for job in done:
                ledger.write("redrive unknown", job=job)
        else:
            for job in done:
                ledger.write("redriven", job=job)


def main() -> None:
    seed = int(sys.argv[1])
    directory = Path(os.environ[ledger.VARIABLE])
    Producer(os.environ["PGQUEUE_DATABASE_URL"], f"p{seed % 10_000}", seed, directory).run()


if __name__ == "__main__":
    main()
