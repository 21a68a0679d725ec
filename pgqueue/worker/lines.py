"""What the running jobs of one worker say in their logs, of tasks that keep it: `@app.task(keep_log=True)`, `ctx.log`.

Between run.py, whose jobs say it from any thread and wait for nothing, and settle.py, which writes it: of all jobs once
a second at most, and of a job that has ended before its end is written. An attempt keeps so many lines and no more; how
many it dropped is its last one. A worker whose tasks keep none pays a look at an empty dict.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple
from uuid import UUID

from pgqueue import db
from pgqueue.db import Claim
from pgqueue.drivers import Steps
from pgqueue.failure import clean, trace
from pgqueue.settings import MAX_LOG_CHARS, MAX_LOG_LINES
from pgqueue.sql import Statements
from pgqueue.worker.pace import Pace

BATCH = 1_000  # lines a statement: 2 MB at most, or 8 of what takes four bytes a character


class Line(NamedTuple):
    """A line of one claim. n: its number there, from 1. said: when, by a clock that a machine's processes share."""

    job_id: int
    fence: int
    n: int
    said: int
    level: str
    message: str


class Lines:
    """Those that are not written yet, by job."""

    def __init__(self, due: Callable[[], None]) -> None:
        """due: called on the loop when it is time for take()."""
        self._pace = Pace(due)
        self._waiting: dict[int, list[Line]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, line: Line, loop: asyncio.AbstractEventLoop) -> None:
        """From any thread. loop: the worker's."""
        with self._pace.lock:
            self._waiting.setdefault(line.job_id, []).append(line)
            first = self._pace.arm()
        if first:
            self._pace.start(loop)

    def restore(self, lines: Iterable[Line], loop: asyncio.AbstractEventLoop) -> None:
        """What could not be written."""
        for line in lines:
            self.put(line, loop)

    def take(self, ended: Iterable[int]) -> list[Line]:
        """All of them when it is time; else only those of these jobs, which will say no more."""
        with self._pace.lock:
            if not self._pace.over():
                return [line for job_id in ended for line in self._waiting.pop(job_id, ())]
            taken, self._waiting = self._waiting, {}
            return [line for each in taken.values() for line in each]


class Keeper:
    """Keeps what one attempt says: the first lines of it, and how many there were beside them."""

    def __init__(self, lines: Lines, claim: Claim, loop: asyncio.AbstractEventLoop) -> None:
        """loop: the worker's."""
        self._lines = lines
        self._claim = claim
        self._loop = loop
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False

    def keep(self, level: int, message: object, args: tuple[object, ...], error: BaseException | None) -> None:
        """From any thread; never raises. What a thread of the job's says after its end is nobody's business."""
        with self._lock:
            if self._closed:
                return
            self._count += 1
            if self._count > MAX_LOG_LINES:
                return
            number = self._count
        self._put(number, clean(str(logging.getLevelName(level)))[:40], _text(level, message, args, error))

    def close(self) -> None:
        """The attempt has ended."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            dropped = self._count - MAX_LOG_LINES
        if dropped > 0:
            self._put(MAX_LOG_LINES + 1, "WARNING", f"{dropped:,} more dropped")

    def _put(self, number: int, level: str, message: str) -> None:
        line = Line(self._claim.id, self._claim.fence, number, time.monotonic_ns(), level, message)
        self._lines.put(line, self._loop)


def _text(level: int, message: object, args: tuple[object, ...], error: BaseException | None) -> str:
    """The line as people read it, fit to be stored."""
    try:
        text = logging.LogRecord("", level, "", 0, message, args, None).getMessage()
        if error is not None:  # the end of a traceback says most
            text = f"{text[: MAX_LOG_CHARS // 2]}\n{trace(error)[2 - MAX_LOG_CHARS // 2 :]}"
    except BaseException as broken:  # whatever it raises: it is the job's own code
        text = f"(this line cannot be printed: {type(broken).__name__})"
    text = clean(text)
    return text if len(text) <= MAX_LOG_CHARS else f"{text[: MAX_LOG_CHARS - 1]}…"


def write(sql: Statements, worker_id: UUID, lines: list[Line]) -> Steps[None]:
    """Writes them down, each with its time by the server's clock; of a job that was taken from this worker, nothing."""
    for start in range(0, len(lines), BATCH):
        some = lines[start : start + BATCH]
        now = time.monotonic_ns()
        yield from db.log_lines(
            sql,
            worker_id,
            [line.job_id for line in some],
            [line.fence for line in some],
            [line.n for line in some],
            [max(0.0, (now - line.said) / 1e9) for line in some],
            [line.level for line in some],
            [line.message for line in some],
        )
