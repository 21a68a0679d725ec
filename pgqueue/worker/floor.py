"""Where a claim starts: in each lane, a (queue, priority), at the lowest job that this worker last claimed there.

Jobs that have gone leave dead entries at the low end of their lane's index range. While some long transaction holds the
horizon nothing can remove them, and a claim from the bottom walks all of them: measured, 0.13 of the rate after 100,000
jobs. A claim from the floor does not meet them.

What comes to lie below a floor (its transaction committed late, it was given back, its run_at is in the past) is found
by looking lower: two seconds lower often, at the bottom less often, each in a twentieth of the time, and 5 s after the
last one at the latest. Where nothing holds the horizon a look costs a millisecond or less, so it comes every few. Only
the bottom shows lanes that are new. Pure, but for the clock that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pgqueue.db import Claim, Lane

_SHARE = 20.0  # a look takes a part of the time at most: this one
_LATEST = 5.0  # seconds between two looks, however long one takes: it may have been the network that took it
_LOWER = 2.0  # seconds; what committed that late is found soon
_EARLIEST = -1e11  # epoch seconds
_MOST = 200  # lanes; who serves more starts at the bottom each time

Depth = Literal["floor", "lower", "bottom"]


class Start(NamedTuple):
    """lanes: those to claim in, None: all there are, from the bottom."""

    depth: Depth
    lanes: list[Lane] | None


@dataclass(slots=True)
class _Turn:
    """When a look of one depth is due again."""

    at: float = -math.inf

    def took(self, began: float, ended: float) -> None:
        self.at = ended + min(_SHARE * (ended - began), _LATEST)


def _place(claim: Claim) -> tuple[float, int]:
    """Of a job that plain SQL gave a time before all others, the bottom: two seconds less may be no time at all."""
    return (claim.run_at, claim.id) if claim.run_at > _EARLIEST else (-math.inf, 0)


class Floors:
    """The floors of one worker. clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._floors: dict[tuple[str, int], tuple[float, int]] = {}
        self._bottom, self._lower = _Turn(), _Turn()

    def start(self) -> Start:
        """Where the next claim should begin."""
        now = self._clock()
        if not self._floors or now >= self._bottom.at:
            return Start("bottom", None)
        if now >= self._lower.at:
            return Start("lower", [Lane(*lane, run_at - _LOWER, 0) for lane, (run_at, _) in self._floors.items()])
        return Start("floor", [Lane(*lane, *floor) for lane, floor in self._floors.items()])

    def claimed(self, depth: Depth, began: float, claims: Iterable[Claim]) -> None:
        """What a claim that began then, by the same clock, has brought, in the order of the claim."""
        if depth == "bottom":
            self._bottom.took(began, self._clock())
        elif depth == "lower":
            self._lower.took(began, self._clock())
        lowest: dict[tuple[str, int], tuple[float, int]] = {}
        for claim in claims:
            lowest.setdefault((claim.queue, claim.priority), _place(claim))
        self._floors |= lowest
        if len(self._floors) > _MOST:
            self.forget()

    def lower(self, claim: Claim) -> None:
        """This one was given back, and is to be found at once."""
        lane, place = (claim.queue, claim.priority), _place(claim)
        self._floors[lane] = min(self._floors.get(lane, place), place)

    def forget(self) -> None:
        """The next claim starts at the bottom."""
        self._floors.clear()
