"""The torture: a server, workers, producers, and a tormentor who does two things at a time to all of them; then the
queue drains, and the checker says whether all that happened was allowed.

    python -m tests.torture.run --seconds 60 --seed 7        or: make torture SECONDS=60 SEED=7

The seed chooses faults, victims and jobs; the machine chooses the moments, so the same seed is not the same run. Works
as root and as anybody else, and leaves nothing running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg

from pgqueue.embedded import EmbeddedPostgres
from pgqueue.migrate import upgrade
from pgqueue.testing import _temp_dir
from tests.crash.processes import ROOT, children_of, environment, is_alive, is_stopped, processes_with
from tests.crash.proxy import Proxy
from tests.helpers import eventually
from tests.torture import faults as all_faults
from tests.torture import history, ledger, tasks
from tests.torture.checker import Evidence, Rules, Snapshot, check, report
from tests.torture.faults import FAULTS, Fault, pairs
from tests.torture.producer import UNKNOWN_TASK

APP = "tests.torture.tasks:app"
SUPERVISORS, CHILDREN, SLOTS = 2, 2, 4
LEASE, SWEEP, GRACE, POLL = 2.0, 0.4, 1.5, 0.2
SETTINGS = {
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "synchronous_commit": "on",
    "deadlock_timeout": "200ms",
    "restart_after_crash": "on",
}
_TABLES = """
create table marker (key text primary key);
create table known (key text primary key);
create table effects (job_id bigint, fence int);
"""


class Cluster:
    """All that runs, and what may be done to it."""

    def __init__(self, directory: Path, *, broken: str | None = None, supervisors: int = SUPERVISORS) -> None:
        """broken: what is wrong with the workers' pgqueue, on purpose."""
        self.ledger = directory / "ledger"
        self.ledger.mkdir()
        self.lease = LEASE
        self._logs = directory / "logs"
        self._logs.mkdir()
        self._wanted = supervisors
        self._broken = broken
        self._started = 0
        self._keys = 0
        self.proxies: list[Proxy] = []  # before the workers, and before the producers
        self.supervisors: list[subprocess.Popen[bytes]] = []
        self.producers: list[subprocess.Popen[bytes]] = []
        self.insiders: list[int] = []
        self._frozen: set[int] = set()
        self._keep = threading.Event()
        self._keeper = threading.Thread(target=self._keep_up, name="service manager")
        data = directory / "server" / "data"
        data.parent.mkdir()
        os.chmod(data.parent, 0o755)  # as root, the server runs as somebody else
        os.chmod(directory, 0o755)
        self.server = EmbeddedPostgres(data, settings=SETTINGS)

    # -- its life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.server.start()
        self.url = self.server.url()
        upgrade(self.url, schema="pgqueue")
        with self.connect() as raw:
            history.install(raw)
            raw.execute(_TABLES)
        self.proxies = [Proxy(self.url), Proxy(self.url)]
        for _ in range(self._wanted):
            self.supervisors.append(self._supervise())
        self.inside = self._inside()
        self._keeper.start()
        workers = self._wanted * CHILDREN + 1
        try:
            eventually(lambda: len(self.sql("select id from pgqueue.workers")) == workers, timeout=60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_of('worker')}") from None

    def produce(self, seeds: Sequence[int]) -> None:
        for seed in seeds:
            words = "-m", "tests.torture.producer", str(seed)
            self.producers.append(self._run("producer", *words, proxy=self.proxies[1]))

    def drain(self, within: float) -> None:
        """The producers end, then the queue is empty but for what nobody knows; or time is up."""
        (self.ledger / "enough").touch()
        for producer in self.producers:
            assert producer.wait(timeout=60) == 0, self.log_of("producer")
        left = "select count(*) from pgqueue.jobs where task <> %s"
        deadline = time.monotonic() + within
        while self.sql(left, [UNKNOWN_TASK]) != [(0,)]:
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        self.say("drained")

    def stop(self) -> None:
        """As a deployment does; those who do not end are named by the checker."""
        self._keep.set()
        self._keeper.join()
        for one in self.supervisors:
            self.term(one)
        self.inside.terminate()
        for one in (*self.supervisors, self.inside):
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(timeout=GRACE + 15)
            self._has_ended(one)

    def close(self) -> None:
        """Nothing of it lives afterwards."""
        self._keep.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for pid in processes_with(self.ledger):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (*self.supervisors, *self.producers, *([self.inside] if hasattr(self, "inside") else [])):
            process.kill()
            process.wait()
        eventually(lambda: not processes_with(self.ledger))
        for proxy in self.proxies:
            proxy.go_on()
            proxy.close()
        self.server.stop()

    # -- processes -----------------------------------------------------------------------------------------------------

    def _run(self, name: str, *words: str, proxy: Proxy | None = None) -> subprocess.Popen[bytes]:
        given = {ledger.VARIABLE: str(self.ledger), "PGQUEUE_DATABASE_URL": (proxy or self.proxies[0]).url}
        if self._broken is not None:
            given["TEST_BROKEN"] = self._broken
        self._started += 1
        with (self._logs / f"{name}-{self._started}.log").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=environment(**given),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _supervise(self) -> subprocess.Popen[bytes]:
        flags = {"processes": CHILDREN, "concurrency": SLOTS, "grace": GRACE, "lease": LEASE, "poll-interval": POLL}
        flags |= {"sweep-interval": SWEEP, "log-format": "json", "log-level": "info"}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        return self._run("worker", "-m", "tests.torture.worker", APP, *words)

    def _inside(self) -> subprocess.Popen[bytes]:
        settings = {"concurrency": SLOTS, "grace": GRACE, "lease": LEASE, "poll_interval": POLL}
        settings["sweep_interval"] = SWEEP
        process = self._run("inside", "-m", "tests.torture.worker", "--inside", json.dumps(settings))
        self.insiders.append(process.pid)
        return process

    def _keep_up(self) -> None:
        """What a service manager does: what has ended is started again."""
        while not self._keep.wait(0.1):
            for place, one in enumerate(self.supervisors):
                if self._has_ended(one):
                    self.supervisors[place] = self._supervise()
            if self._has_ended(self.inside):
                self.inside = self._inside()

    def _has_ended(self, one: subprocess.Popen[bytes]) -> bool:
        if one.poll() is None:
            return False
        self.say("exit", f"{one.pid} {one.returncode}")
        return True

    def children(self) -> list[int]:
        """Those that work."""
        return [pid for one in self.supervisors for pid in children_of(one.pid) if is_alive(pid)]

    def kill(self, pid: int) -> None:
        """A child: its supervisor sees it."""
        self.say("kill", f"{pid} supervised")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def freeze(self, pid: int) -> None:
        self.say("freeze", f"{pid}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """All that are frozen; also those that a failpoint has."""
        for pid in processes_with(self.ledger):
            with contextlib.suppress(OSError):
                if is_stopped(pid):
                    self.say("thaw", f"{pid}")
                    os.kill(pid, signal.SIGCONT)

    def term(self, one: subprocess.Popen[bytes]) -> None:
        if one.poll() is None:
            self.say("term", " ".join(map(str, (one.pid, *children_of(one.pid)))))
            one.terminate()

    # -- the server, without a proxy -----------------------------------------------------------------------------------

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, application_name="tormentor", connect_timeout=5)

    def sql(self, text: str, params: Sequence[Any] | None = None) -> list[Any]:
        """Repeated until the server is there."""
        for _ in range(600):
            try:
                with self.connect() as raw:
                    raw.autocommit = True
                    raw.execute("set statement_timeout = 0; set lock_timeout = 0; set synchronous_commit = local")
                    cursor = raw.execute(text, params)
                    return cursor.fetchall() if cursor.description else []
            except (psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected):
                return []
            except (psycopg.OperationalError, psycopg.errors.InternalError_, RuntimeError):
                time.sleep(0.1)
        raise AssertionError("the server does not come back")

    def wait_for_server(self) -> None:
        self.sql("select 1")

    def restart_server(self, how: signal.Signals, seconds: float) -> None:
        os.kill(self.server.pid, how)
        self.server.stop()
        time.sleep(seconds)
        self.server.start()

    # -- notes ---------------------------------------------------------------------------------------------------------

    def say(self, event: str, note: str = "", **more: Any) -> None:
        ledger.write(event, note=note, directory=self.ledger, **more)

    def enqueue(self, task: Any, *args: Any, note: str = "") -> int:
        """A job of the tormentor's own; its id."""
        self._keys += 1
        key = f"t-{self._keys}-{task.name}"
        while True:
            self.say("intent", key=key)
            try:
                with self.connect() as raw:
                    raw.execute("set statement_timeout = 0; set lock_timeout = 0; set synchronous_commit = local")
                    job: int = task.enqueue(raw, key, *args).id
                    raw.execute("insert into marker (key) values (%s)", [key])
            except Exception as error:
                if not isinstance(error, psycopg.Error) and "closed" not in str(error):
                    raise
                self.say("unknown", key=key)
                key += "+"
                time.sleep(0.1)
            else:
                self.say("ok", job=job, key=key, note=note)
                return job

    def log_of(self, name: str) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self._logs.glob(f"{name}-*")))


class Sampler(threading.Thread):
    """Takes a picture of all tables ten times a second, for as long as the server lets it."""

    _LOOK = """
        with recent as (
            select id from pgqueue.finished_jobs
            where finished_at > now() - interval '3 s'
                or id in (select id from pgqueue.jobs union all select id from pgqueue.dead_jobs)
        )
        select extract(epoch from now())::float8,
            (select array_agg(id) from pgqueue.jobs),
            (select array_agg(id) from recent),
            (select array_agg(id) from pgqueue.dead_jobs),
            (select json_agg(json_build_array(id, worker_id, fence)) from pgqueue.jobs where state = 'running'),
            (select json_object_agg(id, extract(epoch from expires_at)) from pgqueue.workers),
            (
                select json_object_agg(application_name, seconds)
                from (
                    select application_name, max(extract(epoch from clock_timestamp() - state_change)) as seconds
                    from pg_stat_activity
                    where application_name like 'pgqueue %' and state like 'idle in transaction%'
                    group by 1
                ) as open
            ),
            (
                select json_object_agg(application_name, number)
                from (
                    select application_name, count(*) as number
                    from pg_stat_activity
                    where application_name like 'pgqueue %'
                    group by 1
                ) as connected
            )
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(name="sampler")
        self._cluster = cluster
        self._end = threading.Event()
        self.taken: list[Snapshot] = []

    def run(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(psycopg.Error, RuntimeError), self._cluster.connect() as raw:
                raw.autocommit = True
                raw.execute("set statement_timeout = 0; set lock_timeout = 0")
                raw.execute("set idle_session_timeout = 0; set default_transaction_isolation = 'repeatable read'")
                while not self._end.wait(0.1):
                    self.taken.append(self._look(raw))
            self._end.wait(0.1)

    def _look(self, raw: psycopg.Connection[Any]) -> Snapshot:
        at = time.monotonic()
        row = raw.execute(self._LOOK).fetchone()
        assert row is not None
        now, *tables, running, leases, idle, connections = row
        places: dict[int, tuple[str, ...]] = {}
        for name, ids in zip(("jobs", "finished_jobs", "dead_jobs"), tables, strict=True):
            here = (name,)
            for id in ids or ():
                places[id] = places[id] + here if id in places else here
        held = {id: (worker, fence) for id, worker, fence in running or ()}
        return Snapshot(at, now, places, held, leases or {}, idle or {}, connections or {}, now - 3.0)

    def stop(self) -> None:
        self._end.set()
        self.join()


def rules(cluster: Cluster) -> Rules:
    workers = SUPERVISORS * CHILDREN + 1
    return Rules(
        lease=LEASE,
        sweep=SWEEP,
        grace=GRACE,
        poll=POLL,
        slack=5.0,
        stall=2.0,
        delays={name: lambda attempt: min(0.15, 0.05 * 2.0 ** (attempt - 1)) for name in _SOON},
        killers=frozenset({tasks.poison.name, tasks.poison_alone.name}),
        risky=frozenset({tasks.damage.name, tasks.fork.name}),
        transactional=frozenset({tasks.transact.name, tasks.transact_async.name}),
        stays=frozenset({UNKNOWN_TASK}),
        bad=frozenset({tasks.bad.name}),
        uncooperative=frozenset(cluster.insiders),
        # A child for suspects may be there as well, by each supervisor.
        connections={
            **dict.fromkeys(("pgqueue claim", "pgqueue settle", "pgqueue listener"), workers + SUPERVISORS),
            "pgqueue chores": workers + SUPERVISORS,
            "pgqueue heartbeat": SUPERVISORS + 1,
            "pgqueue job": workers * SLOTS,
        },
        drain=60.0,
    )


_SOON = [task.name for task in (tasks.failing, tasks.hopeless)]


def torment(
    cluster: Cluster, seconds: float, seed: int, *, faults: tuple[Fault, ...] = FAULTS, tell: Any = lambda text: None
) -> None:
    """Two faults at a time, for about so long, and until each has come once."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    for number, two in enumerate(pairs(chance, faults)):
        if time.monotonic() > end and 2 * number >= len(faults):
            break
        tell(f"{' and '.join(fault.__name__ for fault in two)}")
        threads = [
            threading.Thread(target=_do, args=(cluster, fault, f"{number} {fault.__name__}", chance.random()))
            for fault in two
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    cluster.thaw()


def _do(cluster: Cluster, fault: Fault, name: str, seed: float) -> None:
    cluster.say("fault", name)
    try:
        fault(cluster, random.Random(seed))
    finally:
        cluster.say("healed", name)


def gather(cluster: Cluster, snapshots: list[Snapshot]) -> Evidence:
    """All that is known, once everything has ended."""
    with cluster.connect() as raw:
        for (xid,) in raw.execute("select gid from pg_prepared_xacts").fetchall():
            raw.commit()
            raw.autocommit = True
            raw.execute(f"rollback prepared '{xid}'")
        (now,) = raw.execute("select extract(epoch from clock_timestamp())::float8").fetchall()[0]
        offset = now - time.monotonic()
        effects = raw.execute("select job_id, fence from effects").fetchall()
        lines = ledger.read(cluster.ledger)
        changes, rows = history.read(raw), history.rows(raw)
    return Evidence(lines, changes, snapshots, rows, effects, offset, rules(cluster))


@contextlib.contextmanager
def at_work(directory: Path, **how: Any) -> Iterator[tuple[Cluster, Sampler]]:
    """A cluster that has started, and whoever takes its picture; at the end nothing of them is there."""
    cluster = Cluster(directory, **how)
    sampler = Sampler(cluster)
    try:
        cluster.start()
        sampler.start()
        yield cluster, sampler
    finally:
        if sampler.is_alive():
            sampler.stop()
        cluster.close()


def torture(
    directory: Path,
    seconds: float,
    seed: int,
    *,
    broken: str | None = None,
    faults: tuple[Fault, ...] = FAULTS,
    supervisors: int = SUPERVISORS,
    drain: float = 60.0,
    calm: int = 10,
    tell: Any = lambda text: None,
) -> Evidence:
    """The whole of it. drain: seconds that it may take; calm: jobs that idle workers get in the end."""
    with at_work(directory, broken=broken, supervisors=supervisors) as (cluster, sampler):
        cluster.produce([seed % 2**31, (seed + 1) % 2**31])
        torment(cluster, seconds, seed, faults=faults, tell=tell)
        tell("draining")
        cluster.drain(drain)
        if calm:
            for proxy in cluster.proxies:
                proxy.reset()  # so the server knows as well which connections are no more
            time.sleep(0.2)
            cluster.say("calm")
        for _ in range(calm):
            job = cluster.enqueue(tasks.quick, note="calm")
            eventually(lambda job=job: cluster.sql("select 1 from pgqueue.finished_jobs where id = %s", [job]), 20)
        cluster.stop()
        sampler.stop()
        return gather(cluster, sampler.taken)


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A directory in memory, if there is some."""
    with tempfile.TemporaryDirectory(dir=_temp_dir(), prefix="pgqueue-torture-") as directory:
        yield Path(directory)


def summary(evidence: Evidence) -> str:
    states: dict[str, int] = {}
    for row in evidence.rows.values():
        states[row["state"]] = states.get(row["state"], 0) + 1
    jobs = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    return (
        f"{len(evidence.rows)} jobs ({jobs}), {len(evidence.runs)} runs, {len(evidence.effects)} effects, "
        f"{len(evidence.told('kill'))} kills, {len(evidence.told('freeze'))} freezes, "
        f"{len(evidence.told('cut'))} lost answers, {len(evidence.told('told.claim_lost'))} lost claims, "
        f"{len(evidence.told('unknown'))} unknown outcomes, {len(evidence.snapshots)} snapshots"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Torture pgqueue.")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--only", default="", help="names of faults, separated by commas")
    parser.add_argument("--keep", default="", help="a directory that is to hold ledger and logs afterwards")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every finally: nothing is left running
    print(f"seed {given.seed}, {given.seconds:g} s", flush=True)
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} {text}", flush=True)

    faults = tuple(getattr(all_faults, name) for name in given.only.split(",")) if given.only else FAULTS
    with place() as directory:
        try:
            evidence = torture(directory, given.seconds, given.seed, faults=faults, tell=tell)
        finally:
            if given.keep:
                shutil.copytree(directory / "ledger", Path(given.keep) / "ledger", dirs_exist_ok=True)
                shutil.copytree(directory / "logs", Path(given.keep) / "logs", dirs_exist_ok=True)
    tell(summary(evidence))
    violations = check(evidence)
    print(report(violations, evidence) if violations else "no violation")
    print(f"seed {given.seed}")
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
