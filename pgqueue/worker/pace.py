"""When what running jobs say is written: once a second at most, and what a job said before its end is written too.

Shared by progress.py and lines.py, whose put() is called from any thread and waits for nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress

EVERY = 1.0  # seconds between two writes


class Pace:
    """Rings on the worker's loop when it is time for what waits to be written."""

    def __init__(self, due: Callable[[], None]) -> None:
        """due: called on the loop when it is time."""
        self.lock = threading.Lock()  # of what waits, too
        self._ring = due
        self._armed = False  # a timer runs, or rang and was not heard yet
        self._due = False
        self._next = 0.0

    def arm(self) -> bool:
        """Something waits; true if nobody has started the timer yet. Under the lock."""
        armed, self._armed = self._armed, True
        return not armed

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the timer, from any thread. loop: the worker's."""
        with suppress(RuntimeError):  # the loop is closed: the worker has ended, and the job outlived it
            loop.call_soon_threadsafe(self._wait)

    def over(self) -> bool:
        """Whether it is time for all that waits, which is taken now. Under the lock."""
        if not self._due:
            return False
        self._due = self._armed = False
        self._next = time.monotonic() + EVERY
        return True

    def _wait(self) -> None:
        asyncio.get_running_loop().call_later(max(0.0, self._next - time.monotonic()), self._rung)

    def _rung(self) -> None:
        self._due = True
        self._ring()
