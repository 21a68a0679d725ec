"""The tree drawn in errors.py is the tree of the classes, and what an application may catch is exported."""

from __future__ import annotations

import builtins
import inspect
import math
import re
from datetime import timedelta
from typing import Any

import pytest

import pgqueue
from pgqueue import Cancel, DeadLetter, InvalidOption, PgQueueError, RetryLater, Snooze, embedded, errors
from pgqueue.errors import Steer, seconds

CLASSES = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BaseException) and kind.__module__ == errors.__name__
}


def drawn() -> dict[str, tuple[str, ...]]:
    """Name -> bases, as drawn: the parent by indentation, others in parentheses."""
    found: dict[str, tuple[str, ...]] = {}
    above: list[str] = []  # the name on each level
    for line in (inspect.getdoc(errors) or "").splitlines():
        match = re.match(r"((?:    )?[│├└─ ]*)([A-Z]\w+)(?: ?\(([\w, ]+)\))?(?:  |$)", line)
        if match is None:
            continue
        indent, name, brackets = match.groups()
        del above[len(indent) // 4 - 1 :]
        others = [one for one in (brackets or "").split(", ") if hasattr(builtins, one)]  # or parameters: Snooze(delay)
        found[name] = (*(above[-1:] or ["Exception"]), *others)
        above.append(name)
    return found


def test_the_drawn_tree_is_the_tree_of_the_classes() -> None:
    assert drawn() == {name: tuple(base.__name__ for base in kind.__bases__) for name, kind in CLASSES.items()}


def test_everything_but_the_base_of_the_steers_is_exported() -> None:
    beside_its_server = {"EmbeddedPostgresError"}
    assert {name for name in pgqueue.__all__ if name in CLASSES} == CLASSES.keys() - {"Steer"} - beside_its_server
    assert beside_its_server <= vars(embedded).keys()


def test_a_steer_is_no_error_of_pgqueue_and_an_error_is_no_steer() -> None:
    """`except PgQueueError` in a job must not swallow what says how the job ends."""
    steers = {name for name, kind in CLASSES.items() if issubclass(kind, Steer)}
    assert steers == {"Steer", "RetryLater", "Snooze", "Cancel", "DeadLetter"}
    assert {name for name, kind in CLASSES.items() if issubclass(kind, PgQueueError)} == CLASSES.keys() - steers


@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_class_says_what_it_means(kind: type) -> None:
    assert vars(kind)["__doc__"]  # its own, not that of its base


@pytest.mark.parametrize(
    ("steer", "delay", "says"),
    [
        (RetryLater(), None, "the job asked to be retried later"),
        (RetryLater(5, "busy"), 5.0, "busy"),
        (RetryLater(timedelta(minutes=1)), 60.0, "the job asked to be retried later"),
        (Snooze(0), 0.0, "snoozed for 0 s"),
        (Snooze(timedelta(minutes=1)), 60.0, "snoozed for"),
    ],
)
def test_a_steer_holds_its_delay_in_seconds(steer: Any, delay: float | None, says: str) -> None:
    assert steer.delay == delay
    assert str(steer).startswith(says)


@pytest.mark.parametrize("make", [RetryLater, Snooze])
@pytest.mark.parametrize("delay", ["5", True, -1, math.nan, math.inf, 11 * 366 * 86_400, timedelta.max, []])
def test_a_steer_whose_delay_cannot_be_is_an_invalid_option(make: Any, delay: Any) -> None:
    with pytest.raises(InvalidOption, match=r"\(delay\) must be"):
        make(delay)


@pytest.mark.parametrize("make", [Cancel, DeadLetter])
def test_a_steer_without_a_reason_has_a_general_one(make: Any) -> None:
    assert str(make())
    assert str(make("why")) == "why"


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (1.5, 1.5), (timedelta(days=1), 86_400.0)])
def test_seconds_takes_numbers_and_timedeltas(value: Any, expected: float) -> None:
    assert seconds("x", value) == expected
    assert type(seconds("x", value)) is float
