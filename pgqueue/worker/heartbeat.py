"""Leases: a worker that has not renewed for `lease` seconds, by the database's clock, is dead and loses its jobs.

A Heart beats for the workers of one process from a thread and a connection of its own, so that nothing a job does can
stop it. It also carries what must reach the database however long that takes: registrations and burials. What a worker
itself may believe is `deadline`: measured from before the renewal was sent, so it never outlives what others believe.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg

from pgqueue import db
from pgqueue.drivers import Steps, perform_raw
from pgqueue.link import INFRASTRUCTURE, Bounded, Trouble, backoff, connect, perform_pooled, server_side, session
from pgqueue.settings import HEART_PATIENCE
from pgqueue.sql import Statements

log = logging.getLogger("pgqueue")

# Time that counts while the machine is suspended, too, as leases do by the database's clock; time.monotonic() does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds, alike in all processes of a machine; whatever is believed of a lease goes by it."""
    return time.clock_gettime(_CLOCK)


Errand = tuple[Callable[[], Steps[Any]], Callable[[Any], None]]


class Heart(threading.Thread):
    """Beats, and runs errands in their order; both wait for the database as long as it takes."""

    def __init__(
        self, conninfo: str, sql: Statements, lease: float, *, uniform: Callable[[], float] = random.random
    ) -> None:
        super().__init__(name="pgqueue-heart", daemon=True)
        self.conninfo = conninfo
        self.sql = sql
        self._lease = lease
        self._uniform = uniform
        self._raw: Bounded | None = None
        self._pooled = False
        self._trouble = Trouble("heartbeat", conninfo)
        self._errands: deque[Errand] = deque()
        self._deadlines: dict[UUID, float] = {}
        self._resting: set[UUID] = set()
        self._changed = threading.Condition()
        self._ended = False
        self._next_beat = 0.0
        self._stopping = False  # shown in `workers`
        self.lost: deque[UUID] = deque()  # workers whose row was gone when we came to renew it

    # -- for other threads -------------------------------------------------------------------------------------------

    def send(self, steps: Callable[[], Steps[Any]], then: Callable[[Any], None] = lambda _: None) -> None:
        """Runs the steps, in one transaction, as soon as the database lets us, then `then(result)` in this thread."""
        with self._changed:
            self._errands.append((steps, then))
            self._changed.notify_all()

    def register(self, worker_id: UUID, then: Callable[[], object], **row: Any) -> None:
        """Writes the worker's row and beats for it from then on."""
        sent = [0.0]

        def steps() -> Steps[None]:
            sent[0] = now()
            return db.register(self.sql, worker_id, lease=self._lease, **row)

        def done(_: object) -> None:
            with self._changed:
                self._deadlines[worker_id] = sent[0] + self._lease
            then()

        self.send(steps, done)

    def rest(self, worker_id: UUID) -> None:
        """Beats for it no more until `resume`; its lease runs on."""
        with self._changed:
            self._resting.add(worker_id)

    def resume(self, worker_id: UUID) -> None:
        """Beats for it again, at once."""
        with self._changed:
            self._resting.discard(worker_id)
            self._next_beat = 0.0
            self._changed.notify_all()

    def show_stopping(self) -> None:
        """Says in `workers`, at once, that these workers claim no more."""
        with self._changed:
            self._stopping = True
            self._next_beat = 0.0
            self._changed.notify_all()

    def forget(self, worker_id: UUID) -> None:
        """Beats for it no more: it is dead, stopped or gone. What becomes of its row is somebody else's errand."""
        with self._changed:
            self._deadlines.pop(worker_id, None)
            self._resting.discard(worker_id)

    def deadline(self, worker_id: UUID) -> float:
        """When its lease ends, in now() seconds; for a worker that is not registered yet, never."""
        with self._changed:
            return self._deadlines.get(worker_id, float("inf"))

    def has_lost(self, worker_id: UUID) -> bool:
        """Whether its row was gone when we came to renew it."""
        with self._changed:
            return worker_id in self.lost

    def end(self, timeout: float) -> bool:
        """Stops beating; waits up to `timeout` seconds for the errands left. False when some could not be run."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.join(timeout)
        return not self.is_alive()

    @property
    def trouble(self) -> str | None:
        """Why the database does not answer; None while it does."""
        return self._trouble.why

    # -- the thread ----------------------------------------------------------------------------------------------------

    def connect(self) -> Bounded:
        """The live connection, opened when there is none. Raises an INFRASTRUCTURE error."""
        if self._raw is None or self._raw.closed:
            self._raw, self._pooled = connect(self.conninfo, "heartbeat", self._lease * HEART_PATIENCE)
        return self._raw

    def perform(self, steps: Steps[Any]) -> Any:
        """Runs the steps now, each statement committed by itself: frozen between two, we hold no lock."""
        raw = self.connect()
        answer = perform_pooled(raw, steps) if self._pooled else perform_raw(raw, steps)
        self._trouble.ends()
        return answer

    def run(self) -> None:
        tries = 0
        while True:
            with self._changed:
                if not self._errands:
                    if self._ended:
                        break
                    self._changed.wait(max(0.0, min(self._lease / 3, self._next_beat - now())))
            try:
                if now() >= self._next_beat and not self._ended:
                    self._beat()
                while self._errands:
                    self._run_errand()
                tries = 0
            except INFRASTRUCTURE as error:
                tries += 1
                self._trouble.begins(error)
                self.close()
                self._next_beat = 0.0  # as soon as it is back: a lease goes on running meanwhile
                time.sleep(min(backoff(tries, self._uniform), self._lease / 6))
            except psycopg.Error as error:
                log.error("heartbeat: %s", error.diag.message_primary or type(error).__name__)
            except Exception:  # whatever it is, a heart that stops would cost every job its worker
                log.exception("heartbeat: this should not happen", extra={"event": "heart_broken"})
                time.sleep(self._lease / 6)
        self.close()

    def _run_errand(self) -> None:
        steps, then = self._errands[0]
        try:
            raw = self.connect()
            with raw.transaction():  # half a burial would forget why its jobs came back
                if self._pooled:
                    raw.execute(session(server_side(raw.patience), local=True))
                result = self.perform(steps())
        except INFRASTRUCTURE:
            raise  # it stays the next one
        except psycopg.Error:
            self._errands.popleft()  # not the database's absence but its refusal: repeating would not help
            raise
        self._errands.popleft()
        then(result)

    def _beat(self) -> None:
        with self._changed:
            ids = [worker_id for worker_id in self._deadlines if worker_id not in self._resting]
            self._next_beat = now() + self._lease / 3
        if not ids:
            return
        sent = now()
        renewed = self.perform(db.heartbeat(self.sql, ids, self._lease, stopping=self._stopping))
        with self._changed:
            for worker_id in ids:
                if worker_id not in self._deadlines:
                    continue  # forgotten meanwhile
                if worker_id in renewed:
                    self._deadlines[worker_id] = sent + self._lease
                else:
                    del self._deadlines[worker_id]
                    self.lost.append(worker_id)

    def close(self) -> None:
        """Closes the connection, if there is one; only while the thread does not run."""
        raw, self._raw = self._raw, None
        if raw is not None:
            try:
                raw.close()
            except psycopg.Error:
                pass
