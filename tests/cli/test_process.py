"""The command as a process of its own: no terminal, no reader, no stdout at all, another locale, pid 1."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue
from tests.cli.conftest import Fill
from tests.crash.processes import children_of, is_alive
from tests.helpers import eventually

ROOT = Path(__file__).parents[2]
PGQUEUE = [sys.executable, "-W", "error", "-m", "pgqueue"]

# Every command that prints, with a job 1 that is dead and a job 2 that waits.
PRINTING: list[tuple[str, ...]] = [
    ("--help",),
    ("--version",),
    ("migrate",),
    ("migrate", "--sql"),
    ("enqueue", "shop.send"),
    ("jobs", "list"),
    ("jobs", "list", "--json"),
    ("jobs", "show", "2"),
    ("jobs", "cancel", "2"),
    ("jobs", "retry", "2"),
    ("dead", "list"),
    ("dead", "show", "1", "--json"),
    ("dead", "redrive", "1"),
    ("dead", "purge", "--all"),
    ("completion", "bash"),
]


@pytest.fixture
def environment(pgqueue_database: str, fill: Fill) -> dict[str, str]:
    fill("dead")
    fill(run_at="2100-01-01T00:00:00Z")
    return {**os.environ, "PGQUEUE_DATABASE_URL": pgqueue_database}


@pytest.mark.parametrize("arguments", [*PRINTING, ("demo",)], ids=" ".join)
def test_whose_reader_is_gone_ends_quietly(environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [*PGQUEUE, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=gone, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("arguments", [one for one in PRINTING if one[0] not in ("dead", "--help")][2::2], ids=" ".join)
def test_without_any_stdout_it_does_its_work(environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    """`>&-`: no connection may get the number of a stream and be written to."""
    line = " ".join(f"'{word}'" for word in [*PGQUEUE, *arguments])
    done = subprocess.run(["sh", "-c", f"exec {line} <&- >&-"], env=environment, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_any_stream_at_all_its_exit_code_still_tells(environment: dict[str, str]) -> None:
    for arguments, code in (("jobs retry 2", 0), ("jobs retry 3", 1), ("jobs retry x", 2), ("jobs list --schema x", 3)):
        line = f"exec '{PGQUEUE[0]}' -m pgqueue {arguments} <&- >&- 2>&-"
        assert subprocess.run(["sh", "-c", line], env=environment).returncode == code, arguments


def test_in_a_locale_that_knows_only_ascii_it_reads_and_writes_what_it_is_given(
    environment: dict[str, str], app: PgQueue
) -> None:
    ascii_only = {
        **environment, "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "100",
    }  # fmt: skip

    def run(*arguments: str) -> bytes:
        done = subprocess.run([*PGQUEUE, *arguments], env=ascii_only, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode("utf-8")

    said = json.loads(run("enqueue", "shop.greet", '{"an": "日本 🎈"}', "--unique-key", "ключ", "--json"))
    job = app.jobs.get(said["id"])
    assert (job.task, job.args, job.unique_key) == ("shop.greet", {"an": "日本 🎈"}, "ключ")
    run("jobs", "list")
    assert "ключ" in run("jobs", "show", str(job.id))
    assert json.loads(run("jobs", "show", str(job.id), "--args", "--json"))["args"] == {"an": "日本 🎈"}
    for command in ((), ("worker",), ("dead", "redrive"), ("demo",)):
        run(*command, "--help")


def test_without_a_terminal_it_prints_no_colours_and_asks_nothing(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*PGQUEUE, "dead", "list"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "shop.send" in done.stdout


# -- pid 1, as in a container ------------------------------------------------------------------------------------------

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def may_unshare() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0


ORPHANS = """
import subprocess
from pgqueue import PgQueue

app = PgQueue()

@app.task(name="orphan")
def orphan() -> None:
    \"\"\"Leaves a process without a parent, which ends when the file appears.\"\"\"
    script = 'until test -e gone; do sleep 0.02; done'
    subprocess.run(["sh", "-c", f"({script}) >/dev/null 2>&1 & "], check=True)
"""


@pytest.mark.skipif(not may_unshare(), reason="no right to make a pid namespace")
def test_as_pid_1_it_reaps_orphans_and_ends_in_good_order(
    pgqueue_database: str, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """The kernel gives pid 1 every process whose parent has died, and sends it no signal that it does not handle."""
    (tmp_path / "orphans.py").write_text(ORPHANS)
    connection.execute("select pgqueue.enqueue('orphan')")
    line = [*UNSHARE, *PGQUEUE, "worker", "orphans:app", "--poll-interval", "0.1", "--grace", "5"]
    environment = {**os.environ, "PGQUEUE_DATABASE_URL": pgqueue_database, "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            line, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        done = "select count(*) from pgqueue.finished_jobs where state = 'completed'"
        eventually(lambda: connection.execute(done).fetchone() == (1,), timeout=30)
        (first,) = children_of(process.pid)
        status = Path(f"/proc/{first}/status").read_text()
        assert [line.split()[-1] for line in status.splitlines() if line.startswith("NSpid")] == ["1"]
        eventually(lambda: len(children_of(first)) == 2)  # the process that works, and the orphan
        (tmp_path / "gone").touch()
        (worker,) = eventually(lambda: found if len(found := children_of(first)) == 1 else None)  # zombies would count
        assert is_alive(worker)
        os.kill(first, signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        assert "SIGTERM: claiming no more" in log.read_text()
        assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)
    finally:
        process.kill()  # and with it all of its namespace
        process.wait()


STUCK = """
import asyncio, time
from pgqueue import PgQueue

app = PgQueue()

@app.task(name="thread")
def thread() -> None:
    while True:
        time.sleep(0.1)

@app.task(name="swallower")
async def swallower() -> None:
    while True:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            pass
"""


@pytest.mark.skipif(not may_unshare(), reason="no right to make a pid namespace")
def test_as_pid_1_it_ends_in_time_names_what_was_stuck_and_says_so(
    pgqueue_database: str, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    jobs = [connection.execute("select pgqueue.enqueue(%s)", [task]).fetchone() for task in ("thread", "swallower")]
    flags = ["--poll-interval", "0.1", "--grace", "1", "--log-format", "json"]
    environment = {**os.environ, "PGQUEUE_DATABASE_URL": pgqueue_database, "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*UNSHARE, *PGQUEUE, "worker", "stuck:app", *flags],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        running = "select count(*) from pgqueue.jobs where state = 'running'"
        eventually(lambda: connection.execute(running).fetchone() == (2,), timeout=30)
        (first,) = children_of(process.pid)
        began = time.monotonic()
        os.kill(first, signal.SIGTERM)
        assert process.wait(30) == 1, log.read_text()
        assert time.monotonic() - began < 1 + 10
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert sorted((line["job_id"],) for line in lines if line.get("event") == "job_stuck") == jobs
        ready = "select count(*) from pgqueue.jobs where state = 'queued' and attempt = 0 and run_at <= now()"
        assert connection.execute(ready).fetchone() == (2,)
        assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)
    finally:
        process.kill()  # and with it all of its namespace
        process.wait()
