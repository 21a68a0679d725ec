"""What a worker is told beside its jobs: which queues and tasks are paused, which of the jobs it runs are to end, and
whether anybody waits for a job's end, who is to hear of it then.

Asked each second on the connection that listens, and at once when somebody has given an order: `db.tell` notifies.
Where nothing listens the second holds; where the listener's connection is away, the loop asks on the one that claims. A
claim passes paused queues by of its own; tasks are left out of what the worker says it knows, so that a claim with no
use for any of this costs nothing more. Pure, but for the clock that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from uuid import UUID

from pgqueue.db import Claim, Order

EVERY = 1.0  # seconds between two questions; what nobody notified us of is obeyed so late at most
_STALE = 2.0  # seconds without an answer, after which another connection asks
_AWAITED = 10.0  # seconds for which it is believed that somebody waits: who waits once will do so again
_SOONEST = 0.01  # seconds; a pause that is just about to end


def channel(worker_id: UUID) -> str:
    """On which a worker hears that there are orders: not the one that says that there are jobs."""
    return f"pgqueue_orders_{worker_id.hex}"


class Orders:
    """What one worker has heard. clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard_at = -math.inf
        self.queues: frozenset[str] = frozenset()
        self.tasks: frozenset[str] = frozenset()
        self._awaited_at = -math.inf
        self.ask_in = EVERY  # seconds until the next question

    @property
    def stale(self) -> bool:
        """Whether it is time that somebody asks, whoever it is."""
        return self._clock() - self._heard_at > _STALE

    @property
    def awaited(self) -> bool:
        """Whether somebody may wait for one of our jobs."""
        return self._clock() - self._awaited_at < _AWAITED

    def heard(self, orders: Iterable[Order]) -> bool:
        """Takes an answer in; whether something is paused no longer, and whoever sleeps is to get up."""
        self._heard_at = self._clock()
        orders = list(orders)
        if any(order.kind == "wait" for order in orders):
            self._awaited_at = self._heard_at
        pauses = [order for order in orders if order.kind in ("queue", "task")]
        before = self.queues, self.tasks
        self.queues = frozenset(order.name for order in pauses if order.kind == "queue")
        self.tasks = frozenset(order.name for order in pauses if order.kind == "task")
        ends = [order.seconds for order in pauses if order.seconds is not None]
        self.ask_in = max(_SOONEST, min([EVERY, *ends]))
        return bool(before[0] - self.queues or before[1] - self.tasks)

    def hold_up(self, claim: Claim) -> bool:
        """Whether this one may not start."""
        return claim.queue in self.queues or claim.task in self.tasks
