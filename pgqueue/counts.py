"""What a worker process has done since it last told its supervisor: counters and histograms, by queue and task.

A child adds to them on the hot path (two dictionary look-ups a job) and hands them over once a second; the supervisor
sums them up over its children, so that a counter never falls when a child is replaced.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# Upper bounds in seconds; a job's wait and run spread over six orders of magnitude.
BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 1800.0)

Key = tuple[str, str]  # queue, task

# Jobs, and of `failed` and `retried` attempts, by (queue, task); each is a counter of /metrics.
NAMES = ("completed", "failed", "retried", "dead_lettered", "rescued", "cancelled", "expired")


@dataclass
class Histogram:
    """Counts per bucket, the last one beyond the largest bound; and the sum of what was observed."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def add(self, buckets: list[int], total: float) -> None:
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, buckets, strict=True)]
        self.total += total


@dataclass
class Counts:
    """Those of NAMES, by (queue, task). wait, run: histograms in seconds."""

    completed: Counter[Key] = field(default_factory=Counter)
    failed: Counter[Key] = field(default_factory=Counter)
    retried: Counter[Key] = field(default_factory=Counter)
    dead_lettered: Counter[Key] = field(default_factory=Counter)
    rescued: Counter[Key] = field(default_factory=Counter)
    cancelled: Counter[Key] = field(default_factory=Counter)
    expired: Counter[Key] = field(default_factory=Counter)
    claims_lost: int = 0
    wait: dict[Key, Histogram] = field(default_factory=dict)
    run: dict[Key, Histogram] = field(default_factory=dict)
    _both: dict[Key, tuple[Histogram, Histogram]] = field(default_factory=dict, repr=False)  # one look-up a job

    def ended(self, key: Key, wait: float, run: float) -> None:
        """An attempt ended, whatever its outcome, after so many seconds of waiting and of running."""
        both = self._both.get(key)
        if both is None:
            both = self.wait.setdefault(key, Histogram()), self.run.setdefault(key, Histogram())
            self._both[key] = both
        waits, runs = both
        waits.observe(wait if wait > 0.0 else 0.0)
        runs.observe(run)

    @property
    def anything(self) -> bool:
        """Whether anything was counted."""
        return bool(self.run or self.claims_lost or any(getattr(self, name) for name in NAMES))

    def to_json(self) -> dict[str, Any]:
        """For the channel to the supervisor."""
        return {
            "counters": {name: [[*key, value] for key, value in getattr(self, name).items()] for name in NAMES},
            "histograms": {
                name: [[*key, one.buckets, one.total] for key, one in getattr(self, name).items()]
                for name in ("wait", "run")
            },
            "claims_lost": self.claims_lost,
        }

    def add(self, message: dict[str, Any]) -> None:
        """Adds what a child handed over."""
        for name, counted in message["counters"].items():
            for queue, task, value in counted:
                getattr(self, name)[queue, task] += value
        for name, observed in message["histograms"].items():
            for queue, task, buckets, total in observed:
                getattr(self, name).setdefault((queue, task), Histogram()).add(buckets, total)
        self.claims_lost += message["claims_lost"]
