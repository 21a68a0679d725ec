"""Real `pgqueue worker` processes for a test: started, watched, signalled, and surely killed at its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest

from tests.helpers import eventually, whole_lines

ROOT = Path(__file__).parents[2]
APP = "tests.crash.tasks:app"

# Nothing happens to a worker with these for want of time: who needs a short lease or grace says so.
FLAGS = {
    "--concurrency": "5",
    "--grace": "60",
    "--lease": "30",
    "--poll-interval": "0.1",
    "--sweep-interval": "0.1",
    "--log-format": "json",
    "--log-level": "info",
}

# start(**DEFAULTS): a worker as anybody has it who sets nothing, for what is promised with a number.
DEFAULTS = dict.fromkeys(("concurrency", "grace", "lease", "poll_interval", "sweep_interval"))


class Entry(NamedTuple):
    """One line of the ledger."""

    at: int
    pid: int
    worker: str
    job: int
    fence: int
    attempt: int
    event: str


class Ledger:
    """What the jobs did, as they told it themselves; and the gates that let them end."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ledger"
        self.path.touch()

    def entries(self, event: str | None = None, job: int | None = None) -> list[Entry]:
        lines = (line.split() for line in whole_lines(self.path))
        told = [Entry(int(a), int(p), w, int(j), int(f), int(n), e) for a, p, w, j, f, n, e in lines]
        return [one for one in told if event in (None, one.event) and job in (None, one.job)]

    def wait_for(self, event: str, job: int, times: int = 1) -> Entry:
        """The entry of the `times`-th such event, once it is there."""
        return eventually(lambda: self.entries(event, job)[times - 1 :], timeout=30)[0]

    def open(self, gate: str) -> None:
        (self.path.parent / gate).touch()


class WorkerProcess:
    """A supervisor and its children."""

    def __init__(self, log: Path, ledger: Ledger, app: str, flags: dict[str, str | None], env: dict[str, str]) -> None:
        self.log_path = log
        words = [word for flag, value in flags.items() for word in (flag, value) if word is not None]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pgqueue", "worker", app, *words],
                cwd=ROOT,
                env=environment(TEST_LEDGER=str(ledger.path), **env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[int]:
        return [pid for pid in children_of(self.pid) if is_alive(pid)]

    def text(self) -> str:
        return self.log_path.read_text()

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines of a JSON log, of one event if named."""
        lines = [json.loads(line) for line in whole_lines(self.log_path) if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if event in (None, line.get("event"))]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it is there."""
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker goes on; its log:\n{self.text()}") from None


Start = Callable[..., WorkerProcess]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


@pytest.fixture
def start(tmp_path: Path, ledger: Ledger, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a worker: `start(lease=1, processes=2)`. At the end of the test nothing of it lives, stopped or not."""
    started: list[WorkerProcess] = []

    def begin(app: str = APP, *, url: str | None = None, env: dict[str, str] | None = None, **flags: Any) -> Any:
        given = {"--" + name.replace("_", "-"): None if value is True else str(value) for name, value in flags.items()}
        wanted = {flag: value for flag, value in (FLAGS | given).items() if value != "None"}
        database = url if url is not None else request.getfixturevalue("pgqueue_database")
        log = tmp_path / f"worker-{len(started) + 1}.log"
        started.append(WorkerProcess(log, ledger, app, wanted, {"PGQUEUE_DATABASE_URL": database, **(env or {})}))
        return started[-1]

    if "pgqueue_database" in request.fixturenames:
        request.getfixturevalue("pgqueue_database")  # before us, so that it goes after us
    yield begin
    for worker in started:
        worker.process.kill()
        worker.process.wait()
    # Children die with their supervisor, and what they started may not: whatever carries our ledger's name is ours.
    for pid in eventually(lambda: [processes_with(ledger.path)]).pop():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not processes_with(ledger.path))


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would change a worker's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")} | more


def processes_with(ledger: Path) -> list[int]:
    """Living processes that were started for this ledger."""
    mark = f"TEST_LEDGER={ledger}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and is_alive(int(entry.name)):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    """A zombie is dead: in a container there may be nobody to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def waited(pid: int) -> float:
    """Seconds so far in which a process could have run, and others had the processor: no promise is about those."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def health(worker) -> tuple[int, str]:
    """The answer of /health/ready."""
    (port,) = [line["message"].rpartition(":")[2] for line in worker.log("probe")]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# What the tables say


class Row(NamedTuple):
    """A job, wherever it is."""

    state: str
    attempt: int
    fence: int
    crashes: int
    worker: UUID | None
    reason: str | None
    errors: list[dict[str, Any]] | None


def row(connection: psycopg.Connection[Any], job: int) -> Row:
    """The one row of a job, live, ended or dead: it must never have two."""
    rows = connection.execute(
        "select state, attempt, fence, crashes, worker_id, reason, errors from pgqueue.all_jobs where id = %s", [job]
    ).fetchall()
    assert len(rows) == 1, f"job {job} has {len(rows)} rows: {rows}"
    return Row(*rows[0])


def ended(connection: psycopg.Connection[Any], job: int) -> Row:
    """The job's row, once it has ended."""
    return eventually(
        lambda: found if (found := row(connection, job)).state not in ("queued", "running") else None, timeout=30
    )


def workers(connection: psycopg.Connection[Any]) -> dict[int, UUID]:
    """Ids of the registered workers, by process id."""
    return dict(connection.execute("select pid, id from pgqueue.workers").fetchall())
