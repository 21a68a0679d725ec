"""How many jobs a worker claims ahead of its slots, against a clock of the test's own."""

from __future__ import annotations

import pytest

from pgqueue.worker.ahead import HORIZON, MOST, PATIENCE, Ahead


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ahead(clock: Clock) -> Ahead:
    return Ahead(clock)


def settle(ahead: Ahead, clock: Clock, *, rate: float, seconds: float = 0.5) -> None:
    for _ in range(round(seconds / 0.05)):
        clock.now += 0.05
        ahead.settled(round(rate * 0.05))
        ahead.jobs()


def test_nothing_is_claimed_ahead_before_anything_was_settled(ahead: Ahead, clock: Clock) -> None:
    clock.now += 3600
    assert ahead.jobs() == 0


@pytest.mark.parametrize(("rate", "jobs"), [(20.0, 1), (2_000.0, 100), (10_000_000.0, MOST)])
def test_what_runs_within_the_horizon_is_claimed_ahead_and_never_more_than_the_most(
    ahead: Ahead, clock: Clock, rate: float, jobs: int
) -> None:
    settle(ahead, clock, rate=rate)
    assert ahead.jobs() == jobs == min(MOST, round(rate * HORIZON))


def test_jobs_that_take_their_time_are_never_claimed_ahead(ahead: Ahead, clock: Clock) -> None:
    settle(ahead, clock, rate=10_000)
    clock.now += 2.0
    ahead.settled(20)  # ten a second
    for _ in range(20):
        clock.now += 2.0
        ahead.settled(20)
        ahead.jobs()
    assert ahead.jobs() == 0


def test_one_slow_write_halves_what_is_claimed_ahead_and_a_stall_ends_it(ahead: Ahead, clock: Clock) -> None:
    settle(ahead, clock, rate=10_000)
    before = ahead.jobs()
    clock.now += 0.03
    assert ahead.jobs() == before // 2
    for _ in range(12):
        clock.now += 0.03
        ahead.jobs()
    assert ahead.jobs() == 0


def test_a_forgotten_rate_counts_no_more(ahead: Ahead, clock: Clock) -> None:
    settle(ahead, clock, rate=10_000)
    ahead.forget()
    clock.now += 0.05
    assert ahead.jobs() == 0


def test_what_waits_longer_than_patience_is_late(ahead: Ahead, clock: Clock) -> None:
    claimed = clock.now
    clock.now += PATIENCE * 0.99
    assert not ahead.is_late(claimed)
    clock.now += PATIENCE * 0.02
    assert ahead.is_late(claimed)
