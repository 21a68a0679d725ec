"""What producers, jobs and the tormentor say that they did: a file outside the tested database, one for each process.

Opened with O_APPEND, one write() a line, synced before anything else happens: so it holds what a killed process did
until its last moment, and what the database may have lost. Times are CLOCK_MONOTONIC, which all processes of a machine
share. Who reads it is checker.py.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple

from pgqueue import Job
from tests.helpers import whole_lines

VARIABLE = "TEST_LEDGER"  # the directory; also what marks a process as ours


class Line(NamedTuple):
    """One thing that happened. job, fence, attempt: 0 where it concerns none; worker, key: empty."""

    mono_ns: int
    pid: int
    worker: str
    job: int
    fence: int
    attempt: int
    key: str  # the producer's name of the enqueue, which its job carries
    event: str
    note: str

    @property
    def at(self) -> float:
        """Seconds of time.monotonic()."""
        return self.mono_ns / 1e9

    def __str__(self) -> str:
        run = f" job {self.job} fence {self.fence} attempt {self.attempt} worker {self.worker[:8]}" if self.job else ""
        return f"{self.at:.3f} pid {self.pid} {self.event}{run} {self.key} {self.note}".rstrip()


# process, directory -> descriptor: a fork must not write into its parent's, nor one test into that of another
_files: dict[tuple[int, Path], int] = {}


def write(
    event: str,
    *,
    of: Job | None = None,
    job: int = 0,
    key: str = "",
    note: str = "",
    directory: Path | None = None,
) -> float:
    """One line, on disk when this returns; its time. of: the run that speaks. directory: else TEST_LEDGER's."""
    place = directory or Path(os.environ[VARIABLE])
    now = time.monotonic_ns()
    run = ("", job, 0, 0) if of is None else (of.worker_id or "", of.id, of.fence, of.attempt)
    line = "\t".join(map(str, (now, os.getpid(), *run, key, event, note.replace("\t", " ").replace("\n", " ")))) + "\n"
    mine = os.getpid(), place
    if mine not in _files:
        _files.clear()
        _files[mine] = _open(place)
    try:
        _put(_files[mine], line.encode())
    except OSError:  # a job that closes every descriptor closes this one, too
        _files[mine] = _open(place)
        _put(_files[mine], line.encode())
    return now / 1e9


def _open(directory: Path) -> int:
    # Far up: a job that closes the first 256 descriptors may have another file where ours was.
    low = os.open(directory / f"{os.getpid()}.ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 600)
    os.close(low)
    return high


def _put(file: int, line: bytes) -> None:
    if os.write(file, line) != len(line):
        raise RuntimeError("half a line was written: the disk is full")
    os.fsync(file)


def read(directory: Path) -> list[Line]:
    """All lines of all processes, in the order of their times."""
    lines = [line for file in directory.glob("*.ledger") for line in whole_lines(file)]
    return sorted(map(parse, lines))


def parse(line: str) -> Line:
    at, pid, worker, job, fence, attempt, key, event, note = line.split("\t")
    return Line(int(at), int(pid), worker, int(job), int(fence), int(attempt), key, event, note)
