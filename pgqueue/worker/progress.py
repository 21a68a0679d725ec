"""How far the running jobs of one worker are, as they say themselves: `ctx.progress(0.4, note="...")`.

Between run.py, whose jobs say it from any thread and wait for nothing, and settle.py, which writes it: what is new of
all jobs in one statement, once a second at most, and of a job that has ended what it said last, just before its end is
written. Only the latest word of a job is kept. A worker whose jobs never say anything pays a look at an empty dict.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple
from uuid import UUID

from pgqueue import db
from pgqueue.drivers import Steps
from pgqueue.sql import Statements
from pgqueue.worker.pace import Pace


class Mark(NamedTuple):
    """What a job said. said: when, by a clock that all processes of a machine share. told: set when its claim turns out
    to be lost, as ctx.cancelled shows."""

    job_id: int
    fence: int
    fraction: float
    note: str | None
    said: int
    told: threading.Event


class Marks:
    """The latest of each job that is not written yet."""

    def __init__(self, due: Callable[[], None]) -> None:
        """due: called on the loop when it is time for take()."""
        self._pace = Pace(due)
        self._latest: dict[int, Mark] = {}

    def __bool__(self) -> bool:
        return bool(self._latest)

    def put(self, mark: Mark, loop: asyncio.AbstractEventLoop) -> None:
        """From any thread. loop: the worker's."""
        with self._pace.lock:
            self._latest[mark.job_id] = mark
            first = self._pace.arm()
        if first:
            self._pace.start(loop)

    def restore(self, marks: Iterable[Mark], loop: asyncio.AbstractEventLoop) -> None:
        """What could not be written, unless its job has said more since."""
        for mark in marks:
            with self._pace.lock:
                newer = mark.job_id in self._latest
            if not newer:
                self.put(mark, loop)

    def take(self, ended: Iterable[int]) -> list[Mark]:
        """All of them when it is time; else only those of these jobs, which will say no more."""
        with self._pace.lock:
            if not self._pace.over():
                return [self._latest.pop(job_id) for job_id in ended if job_id in self._latest]
            taken, self._latest = list(self._latest.values()), {}
            return taken

    def pop(self, job_id: int) -> Mark | None:
        """That of one job, which writes it itself."""
        with self._pace.lock:
            return self._latest.pop(job_id, None)


def write(sql: Statements, worker_id: UUID, marks: list[Mark]) -> Steps[None]:
    """Writes them down; a job that was taken from this worker is told so, and nothing of it is written."""
    ids, fences = [mark.job_id for mark in marks], [mark.fence for mark in marks]
    fractions, notes = [mark.fraction for mark in marks], [mark.note for mark in marks]
    said = [mark.said for mark in marks]
    held = yield from db.progress(sql, worker_id, ids, fences, fractions, notes, said)
    for mark in marks:
        if mark.job_id not in held:
            mark.told.set()
