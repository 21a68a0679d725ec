"""Where a claim starts, against a clock of the test's own."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pgqueue.db import Claim, Lane
from pgqueue.worker.floor import Floors


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def floors(clock: Clock) -> Floors:
    return Floors(clock)


def job(id: int, run_at: float, queue: str = "default", priority: int = 0) -> Claim:
    row: dict[str, Any] = dict.fromkeys(Claim._fields)
    return Claim(**row | {"id": id, "run_at": run_at, "queue": queue, "priority": priority})


def look(floors: Floors, clock: Clock, seconds: float, *claims: Claim) -> tuple[str, list[Lane] | None]:
    """One claim that takes so long and brings these."""
    start = floors.start()
    began = clock.now
    clock.now += seconds
    floors.claimed(start.depth, began, claims)
    return start


def test_the_first_claim_starts_at_the_bottom_and_so_does_each_until_one_has_brought_something(floors, clock) -> None:
    assert [look(floors, clock, 0.001) for _ in range(3)] == [("bottom", None)] * 3


def test_then_it_starts_at_the_lowest_of_what_the_last_one_brought_in_each_lane(floors, clock) -> None:
    brought = [job(8, 5.0), job(7, 6.0), job(3, 5.0, "mail", -1), job(4, 5.0, "mail", -1)]
    look(floors, clock, 1.0, *brought)
    look(floors, clock, 1.0, *brought)  # two seconds lower
    assert floors.start() == ("floor", [Lane("default", 0, 5.0, 8), Lane("mail", -1, 5.0, 3)])
    look(floors, clock, 0.001, job(9, 7.0))
    assert floors.start() == ("floor", [Lane("default", 0, 7.0, 9), Lane("mail", -1, 5.0, 3)])
    look(floors, clock, 0.001)
    assert floors.start() == ("floor", [Lane("default", 0, 7.0, 9), Lane("mail", -1, 5.0, 3)])


def test_it_looks_lower_and_at_the_bottom_again_as_soon_as_twenty_times_as_long_has_passed(floors, clock) -> None:
    look(floors, clock, 0.1, job(8, 5.0))
    assert look(floors, clock, 0.01) == ("lower", [Lane("default", 0, 3.0, 0)])
    depths = [look(floors, clock, 0.01)[0] for _ in range(400)]
    assert depths[0] == "floor"
    assert 15 <= depths.count("lower") <= 20
    assert 10 <= depths.count("bottom") <= 20  # each takes 0.01 s now
    assert "bottom" not in depths[:195]
    assert depths[195:205].count("bottom") == 1  # 2 s after the first
    clock.now += 10
    assert look(floors, clock, 0.125)[0] == "bottom"
    assert "bottom" not in [look(floors, clock, 0.125)[0] for _ in range(20)]  # 2.5 s
    assert look(floors, clock, 0.125)[0] == "bottom"


def test_after_one_look_that_took_long_the_next_is_due_in_five_seconds_all_the_same(floors, clock) -> None:
    look(floors, clock, 60.0, job(8, 5.0))  # the network stood still
    assert "bottom" not in [look(floors, clock, 0.125)[0] for _ in range(40)]
    assert look(floors, clock, 0.125)[0] == "bottom"


def test_what_was_given_back_is_in_reach_of_the_next_claim(floors, clock) -> None:
    look(floors, clock, 1.0, job(8, 5.0))
    look(floors, clock, 1.0, job(9, 6.0))
    floors.lower(job(2, 4.0))
    floors.lower(job(3, 4.5))
    floors.lower(job(1, 9.0, "new"))
    assert floors.start().lanes == [Lane("default", 0, 4.0, 2), Lane("new", 0, 9.0, 1)]
    floors.forget()
    assert floors.start() == ("bottom", None)


def test_a_lane_whose_jobs_have_impossible_dates_is_walked_from_its_bottom(floors, clock) -> None:
    for strange in (-math.inf, -2.1e11):
        floors.forget()
        look(floors, clock, 1.0, job(8, strange))
        assert floors.start().lanes == [Lane("default", 0, -math.inf, 0)]


def test_with_very_many_lanes_each_claim_starts_at_the_bottom(floors, clock) -> None:
    look(floors, clock, 1.0, *(job(n, 5.0, f"q{n}") for n in range(200)))
    assert floors.start().depth == "lower"
    look(floors, clock, 1.0, job(7, 5.0, "one more"))
    assert floors.start() == ("bottom", None)
