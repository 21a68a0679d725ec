"""What a contestant's program says while it is measured: how many jobs have run, or when a job started.

It runs in a process of its own, under an interpreter and libraries of its own, so this file needs nothing but the
standard library; report.js says the same for Node. Times are those of the system's monotonic clock, in nanoseconds,
which is one clock for every process of a machine. All of it goes to files in the directory REPORT:

    ready-PID       the process has loaded what it needs, and waits for the file `go`, so that two start together
    count-PID       one line, written anew every few milliseconds: when the first job started, and how many have
    jobs-PID        instead of it, if REPORT_EACH: `NUMBER TIME`, a line a job
    sent            `NUMBER TIME` just before each enqueue of a pick-up

A job says that it runs by `ran(number)`. Counting costs it 0.1 µs; every contestant's job pays that.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

NOTE = "forty bytes of payload"
EVERY = 0.005  # seconds between two counts

_EACH = "REPORT_EACH" in os.environ
_calls: list[int] = []  # append() is atomic, so threads may share it
_lock = threading.Lock()
_file: int | None = None


def directory() -> Path:
    return Path(os.environ["REPORT"])


def gate() -> None:
    """Waits until whoever measures lets all processes of a contestant go."""
    if "REPORT_GATE" not in os.environ:
        return
    (directory() / f"ready-{os.getpid()}").touch()
    while not (directory() / "go").exists():
        time.sleep(0.001)


def ran(number: int) -> None:
    """A job has started."""
    if _file is None:
        _open()
    if _EACH:
        assert _file is not None
        os.write(_file, b"%d %d\n" % (number, time.monotonic_ns()))
    else:
        _calls.append(number)


def _open() -> None:
    global _file
    with _lock:
        if _file is not None:
            return
        first = time.monotonic_ns()
        kind = "jobs" if _EACH else "count"
        nobody = "REPORT" not in os.environ  # a measure that has the worker in its own process
        place = os.devnull if nobody else directory() / f"{kind}-{os.getpid()}"
        _file = os.open(place, os.O_WRONLY | os.O_CREAT, 0o600)
        if not (_EACH or nobody):
            threading.Thread(target=_tell, args=(first,), daemon=True).start()


def _tell(first: int) -> None:
    assert _file is not None
    told = 0
    while True:
        time.sleep(EVERY)
        total = len(_calls)
        if total != told:
            os.pwrite(_file, b"%020d %020d\n" % (first, total), 0)  # of one length: whoever reads it gets it whole
            told = total


class Sent:
    """The times of the enqueues of a pick-up: `for number in sent.numbers(200): sent.now(number); enqueue(number)`."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def now(self, number: int) -> None:
        self._lines.append(f"{number} {time.monotonic_ns()}\n")

    def write(self) -> None:
        place = directory() / "sent"
        place.with_suffix(".part").write_text("".join(self._lines))
        place.with_suffix(".part").rename(place)


def pause(number: int) -> float:
    """Seconds before the enqueue of that number: 20 to 50 ms, the same for everybody."""
    return (20 + number * 17 % 31) / 1_000


def say(seconds: float) -> None:
    """The answer of `one` and `bulk`: from the first call of the library to the last one's return."""
    print(json.dumps({"seconds": seconds}))


def verbs(**known: Callable[[int], None]) -> None:
    """The command line of a program: a verb and a number of jobs.

    schema: make the tables; one: enqueue each job in a transaction of its own; bulk: enqueue all of them the fastest
    way; work: run jobs until killed, after gate(); offer: enqueue them one by one with a pause() before each.
    """
    known[sys.argv[1]](int(sys.argv[2]))
