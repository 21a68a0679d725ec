"""Tells which job blocks the event loop: nothing else on it gets anywhere meanwhile, and no lease says so.

A thread that asks the loop for a sign every second. After a few without one it logs, once, where the loop's thread is
and which job's task that is (`loop_blocked`), and when it is over, for how long it was (`loop_free`). Code and names of
files are shown, never a value. A loop that is kept from the GIL by a thread looks the same, but in the midst of no job.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any

from pgqueue import logs
from pgqueue.worker.coroutines import carried

log = logging.getLogger("pgqueue")

LOOK = 1.0  # seconds
SILENT = 5  # looks in a row without a sign. Not seconds: a process that was frozen was not blocked
_FRAMES = 15  # the last ones; the first are the event loop's own


class Watchdog(threading.Thread):
    """Watches the loop that it is made on."""

    def __init__(self, *, look: float = LOOK) -> None:
        super().__init__(name="pgqueue-watchdog", daemon=True)
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._answered = threading.Event()
        self._ended = threading.Event()

    def end(self) -> None:
        """Watches no more."""
        self._ended.set()

    def run(self) -> None:
        while not self._ended.is_set():
            asked = time.monotonic()
            self._answered.clear()
            try:
                self._loop.call_soon_threadsafe(self._answered.set)
            except RuntimeError:  # there is no loop any more
                return
            silent = 0
            while not self._answered.wait(self._look) and not self._ended.is_set():
                silent += 1
                if silent == SILENT:
                    self._tell(time.monotonic() - asked)
            if silent >= SILENT:
                seconds = time.monotonic() - asked
                fields = {"event": "loop_free", "seconds": round(seconds, 1)}
                log.warning("the event loop was blocked for %.1f s", seconds, extra=fields)
            self._ended.wait(self._look)

    def _tell(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._watched)
        where = "".join(traceback.format_stack(frame)[-_FRAMES:]).rstrip()
        job = self._job(frame)
        fields = {} if job is None else job.log_fields
        whose = "in no job's task" if job is None else f"by job {fields['job_id']} ({fields['task']})"
        log.warning(
            "the event loop has been blocked for %.0f s, %s; an async job must not wait without await. It is at:\n%s",
            seconds,
            whose,
            where,
            extra={"event": "loop_blocked", "seconds": round(seconds, 1), **fields},
        )

    def _job(self, frame: FrameType | None) -> logs.Named | None:
        if (body := carried(frame)) is not None:
            return body.attempt
        # A task that a job has started; from Python 3.12 on it says in whose context it runs.
        context: Any = getattr(asyncio.current_task(self._loop), "get_context", dict)()
        named: logs.Named | None = context.get(logs.running)
        return named
