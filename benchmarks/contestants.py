"""How a contestant is measured: its program is run in processes of its own, and says what it does (report.py).

All are measured alike. Enqueue, one by one and in bulk: from the first call of the library to the return of the last.
Drain: from the first job's start in any process until every job has run and none is left unfinished in the store.
Pick-up: from just before the enqueue, so that its commit is in it, until the job starts.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds without a job that runs, or for one enqueue
WARM_UP = 10  # the first of the jobs that an idle worker is offered are not counted: caches and plans

Connection = psycopg.Connection[tuple[Any, ...]]
Figures = Mapping[str, float]
PICKUP = ("p50", "p99")

_LIBPQ = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE",
}


class Failed(Exception):
    """A contestant's program ended, or did not do its jobs in time."""


@dataclass(frozen=True)
class Hold:
    """SQL: nothing may start; how many processes are there; now it may."""

    stop: str
    there: str
    go: str


@dataclass(frozen=True)
class Program:
    """What to run, and how to know that no job is left.

    command: without verb and number. left: SQL that gives true while a job is unfinished, or the keys of Redis lists
    that are empty when none is. env: what its program reads. analyze: whether its tables get statistics before a drain.
    bulk_verb, drain_verb, pickup_verb: where it has several. spawns: its worker makes its processes itself, told by a
    variable of that name. hold: how to have them all there before the first job starts, where report.gate() does not.
    prepares: it has the verb `schema`.
    """

    name: str
    command: Sequence[str]
    left: str | Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    analyze: bool = True
    bulk_verb: str = "bulk"
    drain_verb: str = "work"
    pickup_verb: str = "work"
    spawns: str | None = None
    hold: Hold | None = None
    prepares: bool = True
    redis: Path | None = None  # the socket of its server

    def with_env(self, **env: str) -> Program:
        return replace(self, env={**self.env, **env})

    def one(self, jobs: int) -> Callable[[str], float]:
        """Jobs a second, each in a transaction of its own."""
        return lambda database: self._enqueue("one", jobs, database)

    def bulk(self, jobs: int) -> Callable[[str], float]:
        """Jobs a second, all at once."""
        return lambda database: self._enqueue(self.bulk_verb, jobs, database)

    def drain(self, jobs: int, processes: int = 1) -> Callable[[str], float]:
        """Jobs a second, no-op, preloaded."""

        def measure(database: str) -> float:
            with self._place(database) as place:
                self._run("schema", 0, place)
                self._run(self.bulk_verb, jobs, place)
                with psycopg.connect(database, autocommit=True) as connection:
                    if self.analyze:
                        connection.execute("analyze")
                    with self._workers(self.drain_verb, place, processes, connection) as alive:
                        last, changed = 0, time.monotonic()
                        while (told := totals(place.report)).jobs < jobs:
                            if told.jobs != last:
                                last, changed = told.jobs, time.monotonic()
                            alive(done=False, since=changed)
                            time.sleep(0.005)
                        while self._left(connection):
                            alive(done=True, since=changed)
                            time.sleep(0.002)
                        ended = time.monotonic_ns()
                told = totals(place.report)
                if told.jobs != jobs:
                    raise Failed(f"{jobs} jobs ran {told.jobs} times")
                return jobs / (ended - told.first) * 1e9

        return measure

    def pickup(self, jobs: int) -> Callable[[str], Figures]:
        """Milliseconds until an idle worker has started a job: p50 and p99."""

        def measure(database: str) -> Figures:
            with self._place(database, each=True) as place:
                self._run("schema", 0, place)
                self._run("bulk", 1, place)
                with self._workers(self.pickup_verb, place) as alive:
                    began = time.monotonic()
                    while not starts(place.report):
                        alive(done=False, since=began)
                        time.sleep(0.01)
                    time.sleep(1)  # until it has lain down
                    self._run("offer", jobs + WARM_UP, place)
                    began, sent = time.monotonic(), lines(place.report / "sent")
                    while len(found := starts(place.report)) < len(sent):
                        alive(done=False, since=began)
                        time.sleep(0.01)
            waits = sorted((found[number] - at) / 1e6 for number, at in sent[WARM_UP:])
            return dict(zip(PICKUP, (statistics.median(waits), percentile(waits, 99)), strict=True))

        return measure

    def _enqueue(self, verb: str, jobs: int, database: str) -> float:
        with self._place(database) as place:
            self._run("schema", 0, place)
            said = self._run(verb, jobs, place)
            return jobs / float(json.loads(said.splitlines()[-1])["seconds"])

    @contextmanager
    def _place(self, database: str, *, each: bool = False) -> Iterator[Place]:
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            env = {**os.environ, "REPORT": directory, "PGQUEUE_DATABASE_URL": database, **self.env}
            env |= {
                _LIBPQ[name]: str(value)
                for name, value in psycopg.conninfo.conninfo_to_dict(database).items()
                if name in _LIBPQ
            }
            if each:
                env["REPORT_EACH"] = "1"
            if self.redis:
                env["BENCH_REDIS"] = str(self.redis)
                ask(self.redis, "flushall")
            yield Place(Path(directory), env)

    def _run(self, verb: str, jobs: int, place: Place) -> str:
        if verb == "schema" and not self.prepares:
            return ""
        command = [*self.command, verb, str(jobs)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=place.env, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{verb}: not done after {PATIENCE:.0f} s") from None
        if done.returncode:
            raise Failed(f"{verb}: {last_words(done.stderr or done.stdout)}")
        return done.stdout

    @contextmanager
    def _workers(
        self, verb: str, place: Place, processes: int = 1, connection: Connection | None = None
    ) -> Iterator[Callable[..., None]]:
        """Starts them together. Gives a function that raises Failed when they do not get on. connection: for a hold,
        if they shall not start before they are all there."""
        env = {**place.env, "REPORT_GATE": "1"}
        if self.spawns:
            env[self.spawns] = str(processes)
        with ExitStack() as stack:
            log = stack.enter_context(tempfile.TemporaryFile())

            def alive(*, done: bool, since: float) -> None:
                ended = [one.poll() for one in started if one.poll() is not None]
                if (ended and not done) or any(ended) or time.monotonic() - since > PATIENCE:
                    log.seek(0)
                    raise Failed(f"{verb}: {last_words(log.read().decode(errors='replace'))}")

            if self.hold and connection:
                connection.execute(self.hold.stop)
            started: list[subprocess.Popen[bytes]] = []
            for _ in range(1 if self.spawns else processes):
                one = subprocess.Popen(
                    [*self.command, verb, "0"], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
                )
                stack.callback(_end, one)
                started.append(one)
            began = time.monotonic()

            def there() -> int:
                if self.hold and connection:
                    return _value(connection, self.hold.there)
                return processes if self.hold else len(list(place.report.glob("ready-*")))

            while there() < processes:
                alive(done=False, since=began)
                time.sleep(0.01)
            if self.hold and connection:
                connection.execute(self.hold.go)
            (place.report / "go").touch()
            yield alive

    def _left(self, connection: Connection) -> bool:
        if isinstance(self.left, str):
            return bool(_value(connection, self.left))
        assert self.redis is not None
        return any(ask(self.redis, f"llen {key}") != ":0" for key in self.left)


@dataclass(frozen=True)
class Place:
    """Where one round of one contestant happens: the directory of its reports, and its environment."""

    report: Path
    env: dict[str, str]


@dataclass(frozen=True)
class Totals:
    first: int
    jobs: int


def totals(report: Path) -> Totals:
    """When the first job started and how many have, over all processes."""
    told = [line for path in report.glob("count-*") for line in lines(path)]
    return Totals(min((first for first, _ in told), default=0), sum(jobs for _, jobs in told))


def starts(report: Path) -> dict[int, int]:
    """When each job started, by its number. The job that showed that the worker is there came before all others, and
    gives way to the one that has its number."""
    said = [line for path in report.glob("jobs-*") for line in lines(path)]
    return dict(sorted(said, key=lambda line: line[1]))


def lines(path: Path) -> list[tuple[int, int]]:
    """Of a report, as far as it is written."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [(int(one), int(other)) for one, other in map(str.split, whole)]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of sorted values: the smallest that so many percent of them do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def last_words(text: str) -> str:
    """Of a program that failed: the last line that tells an error, else the last one."""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in said if re.match(r"(npm )?(\w+\.)*(\w*(Error|Exception)|error|ERROR)\b", line)]
    return (errors or said or ["it ended without a word"])[-1]


def ask(path: Path, command: str) -> str:
    """What Redis answers to a command, when that is one line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(command.encode() + b"\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += connection.recv(4_096)
    return answer.decode().strip()


@contextmanager
def redis_server() -> Iterator[Path]:
    """The socket of a Redis that keeps nothing on disk, its fastest."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        path = Path(directory, "redis.sock")
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            while not path.exists():
                if process.poll() is not None:
                    raise Failed("redis-server did not start")
                time.sleep(0.01)
            yield path
        finally:
            _end(process)


def _value(connection: Connection, query: str) -> Any:
    (row,) = connection.execute(query)
    return row[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    """With what it started. A worker may take its time to stop, and what it would say no longer matters."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


RAW = Program(
    "raw",
    [sys.executable, "-m", "benchmarks.raw"],
    "select exists (select from raw_jobs)",
    pickup_verb="wake",
    prepares=False,
)
OURS = Program(
    "pgqueue",
    [sys.executable, "-m", "benchmarks.ours"],
    "select exists (select from pgqueue.jobs)",
    spawns="OURS_PROCESSES",
    hold=Hold(
        stop="insert into pgqueue.queues (name, paused) values ('default', true)",
        there="select count(distinct worker_id) from pgqueue.sleepers where until > now()",
        go="with resumed as (update pgqueue.queues set paused = false) select count(pg_notify('pgqueue_' || "
        "replace(worker_id::text, '-', ''), '')) from pgqueue.sleepers where until > now()",
    ),
    prepares=False,
)
