"""How many jobs a worker claims ahead of its free slots: what runs within 50 ms at the rate it has seen of late.

A claim costs a round trip and about a millisecond whether it brings one job or five hundred, so a worker of no-op jobs
that claims for its free slots alone does little else. Slow jobs are never claimed ahead: they would wait here while
another worker could run them. Pure, but for the clock that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable

HORIZON = 0.05  # seconds of work claimed ahead
MOST = 1_000  # jobs; beyond a few hundred in a claim nothing is won any more
_WINDOW = 0.02  # seconds over which the rate is measured
PATIENCE = 0.1  # seconds after which what still waits here is given back


class Ahead:
    """Measures the rate at which jobs are settled: a worker that cannot settle claims nothing ahead. clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._settled = 0
        self._rate = 0.0  # jobs a second

    def settled(self, number: int) -> None:
        """So many jobs have just been settled."""
        self._settled += number

    def jobs(self) -> int:
        """How many jobs to claim beyond the free slots; 0 for work that takes its time."""
        now = self._clock()
        if now - self._since >= _WINDOW:
            # Falls by halves: one slow flush is no reason to begin anew with a claim for each slot.
            self._rate = max(self._settled / (now - self._since), self._rate / 2)
            self._since, self._settled = now, 0
        return min(MOST, int(self._rate * HORIZON))

    def forget(self) -> None:
        """The rate does not hold any more."""
        self._since, self._settled, self._rate = self._clock(), 0, 0.0

    def is_late(self, claimed_at: float) -> bool:
        """Whether a job that was claimed then, by the same clock, has waited here for too long."""
        return self._clock() - claimed_at > PATIENCE
