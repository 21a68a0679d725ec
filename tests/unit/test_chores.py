"""When a worker looks after everybody's jobs: not all of a fleet at once, and none later than it says."""

from __future__ import annotations

from pgqueue.maintenance.chores import until_next


def test_no_pause_between_two_sweeps_is_longer_than_the_interval_and_no_two_are_alike():
    pauses = [until_next(5.0, lambda share=share: share / 1000) for share in range(1000)]
    assert max(pauses) <= 5.0  # the lease of 15 s and this: 20 s
    assert min(pauses) >= 2.5
    assert len(set(pauses)) == 1000
