"""RetryPolicy: attempt number in, delay out, with the randomness handed in; the same policy read back from a row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue import InvalidOption, RetryPolicy
from pgqueue.retry import StoredRetryPolicy

BOOM = RuntimeError("boom")


def least() -> float:
    return 0.0


def most() -> float:
    return math.nextafter(1.0, 0.0)


# -- the formula ---------------------------------------------------------------------------------------------------


def test_the_default_policy_waits_2_4_and_8_seconds() -> None:
    policy = RetryPolicy()
    assert [policy.delay_after(attempt, BOOM, least) for attempt in (1, 2, 3)] == [2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (RetryPolicy(delay=5, factor=3), [5, 15, 45, 135]),
        (RetryPolicy(delay=5, factor=1), [5, 5, 5, 5]),
        (RetryPolicy(delay=0), [0, 0, 0, 0]),
        (RetryPolicy(delay=100, factor=10, max_delay=3600), [100, 1000, 3600, 3600]),
        (RetryPolicy(delay=10, max_delay=4), [4, 4, 4, 4]),
        (RetryPolicy(delay=timedelta(minutes=1), max_delay=timedelta(minutes=3)), [60, 120, 180, 180]),
    ],
)
def test_the_delay_grows_by_the_factor_up_to_max_delay(policy: RetryPolicy, delays: list[float]) -> None:
    assert [policy.delay_after(attempt, BOOM, least) for attempt in range(1, len(delays) + 1)] == delays


def test_jitter_only_ever_adds_up_to_its_share() -> None:
    policy = RetryPolicy(delay=10, jitter=0.25)
    assert policy.delay_after(1, BOOM, least) == 10.0
    assert policy.delay_after(1, BOOM, lambda: 0.5) == 11.25
    assert policy.delay_after(1, BOOM, most) == pytest.approx(12.5)


def test_jitter_also_spreads_delays_that_are_at_the_cap() -> None:
    """A thousand jobs that failed together long ago would otherwise come back together for ever."""
    assert RetryPolicy(delay=10, max_delay=10, jitter=0.5).delay_after(99, BOOM, lambda: 0.5) == 12.5


@given(
    attempt=st.integers(1, 10_000),
    delay=st.just(0.0) | st.floats(0.001, 86_400),
    factor=st.floats(1, 1000),
    max_delay=st.floats(0, 86_400),
    jitter=st.floats(0, 10),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_no_attempt_runs_earlier_than_stated_or_later_than_the_cap_with_all_its_jitter(
    attempt: int, delay: float, factor: float, max_delay: float, jitter: float, uniform: float
) -> None:
    policy = RetryPolicy(delay=delay, factor=factor, max_delay=max_delay, jitter=jitter)
    got = policy.delay_after(attempt, BOOM, lambda: uniform)
    assert got is not None
    stated = policy.delay_after(attempt, BOOM, least)
    assert stated is not None
    assert math.isfinite(got)
    assert stated <= got <= max_delay * (1 + jitter)
    exact = Decimal(delay) * Decimal(factor) ** (attempt - 1)  # whose exponents do not end at 308
    assert stated == pytest.approx(float(min(Decimal(max_delay), exact)), rel=1e-9)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1000.0])
@pytest.mark.parametrize("delay", [0.0, 5e-324, 2.0])
def test_attempt_ten_thousand_has_a_finite_delay(delay: float, factor: float) -> None:
    policy = RetryPolicy(delay=delay, factor=factor, max_delay=60.0)
    expected = {0.0: 0.0, 2.0: 60.0 if factor > 1 else 2.0}.get(delay, delay if factor == 1 else 60.0)
    assert policy.delay_after(10_000, BOOM, least) == expected


@pytest.mark.parametrize("attempt", [0, -1])
def test_an_attempt_number_below_1_is_a_mistake_of_the_caller(attempt: int) -> None:
    with pytest.raises(ValueError, match="attempt starts at 1"):
        RetryPolicy().delay_after(attempt, BOOM, least)


# -- which failures ------------------------------------------------------------------------------------------------


class Family(Exception):
    """The base of a library's errors."""


class Child(Family):
    """One of them."""


@pytest.mark.parametrize(
    ("on", "never", "error", "expected"),
    [
        ((Exception,), (), ValueError(), True),
        ((Exception,), (ValueError,), ValueError(), False),
        ((Exception,), (ValueError,), UnicodeDecodeError("utf-8", b"", 0, 1, ""), False),  # a subclass of ValueError
        ((Exception,), (ValueError,), KeyError(), True),
        ((Family,), (), Child(), True),
        ((Family,), (Child,), Child(), False),  # never wins over on
        ((Family,), (Child,), Family(), True),
        ((Child,), (), Family(), False),
        ((), (), ValueError(), False),
        # sys.exit() in a job is a failure like any other.
        ((Exception,), (), SystemExit(1), True),
        ((Exception,), (), KeyboardInterrupt(), True),
        ((Exception,), (SystemExit,), SystemExit(1), False),
        ((Exception,), (Exception,), SystemExit(1), False),
        ((ValueError,), (), SystemExit(1), False),
        ((BaseException,), (Exception,), SystemExit(1), False),
    ],
)
def test_on_and_never_choose_which_failures_run_again_in_code_and_in_a_row_alike(
    on: tuple[type[BaseException], ...], never: tuple[type[BaseException], ...], error: BaseException, expected: bool
) -> None:
    policy = RetryPolicy(on=on, never=never)
    assert policy.retries(error) is expected
    assert read_back(policy).retries(error) is expected


# -- a function of one's own ---------------------------------------------------------------------------------------


def test_a_function_of_ones_own_gets_attempt_and_error_and_decides() -> None:
    seen = []

    def backoff(attempt: int, error: BaseException) -> float:
        seen.append((attempt, error))
        return attempt * 7.5

    policy = RetryPolicy(backoff=backoff, jitter=1.0)
    assert policy.delay_after(3, BOOM, most) == 22.5  # its word, without jitter
    assert seen == [(3, BOOM)]


def test_a_function_that_returns_none_gives_up() -> None:
    assert RetryPolicy(backoff=lambda attempt, error: None).delay_after(1, BOOM, least) is None


def raising(error: BaseException) -> Callable[[int, BaseException], float]:
    def backoff(attempt: int, why: BaseException) -> float:
        raise error

    return backoff


@pytest.mark.parametrize(
    "backoff",
    [
        raising(ZeroDivisionError()),
        raising(SystemExit(3)),
        *(lambda attempt, error, value=value: value for value in ("5", True, math.nan, math.inf, -1, 1e300, [], {})),
    ],
)
def test_a_function_that_breaks_or_returns_garbage_leaves_the_formula_to_decide(backoff: Any) -> None:
    assert RetryPolicy(delay=3, backoff=backoff).delay_after(2, BOOM, least) == 6.0


def test_a_function_may_return_a_timedelta() -> None:
    assert RetryPolicy(backoff=lambda *_: timedelta(minutes=2)).delay_after(1, BOOM, least) == 120.0


# -- in a row ------------------------------------------------------------------------------------------------------


def read_back(policy: RetryPolicy) -> StoredRetryPolicy:
    return StoredRetryPolicy.from_json(json.loads(json.dumps(policy.to_json())))


@given(
    delay=st.floats(0, 86_400),
    factor=st.floats(1, 1000),
    max_delay=st.floats(0, 86_400),
    jitter=st.floats(0, 10),
    attempt=st.integers(1, 200),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_policy_read_back_from_a_row_says_the_same(
    delay: float, factor: float, max_delay: float, jitter: float, attempt: int, uniform: float
) -> None:
    policy = RetryPolicy(delay=delay, factor=factor, max_delay=max_delay, jitter=jitter)
    said = policy.delay_after(attempt, BOOM, lambda: uniform)
    assert read_back(policy).delay_after(attempt, BOOM, lambda: uniform) == said


def test_a_row_names_exceptions_and_reading_it_imports_nothing() -> None:
    stored = RetryPolicy(on=(Family, OSError), never=(Child,)).to_json()
    assert stored["on"] == [f"{__name__}.Family", "builtins.OSError"]
    assert stored["never"] == [f"{__name__}.Child"]
    foreign = StoredRetryPolicy.from_json({**stored, "on": ["no.such.module.Error", "builtins.OSError"]})
    assert foreign.retries(ConnectionError())  # by the names of its family
    assert not foreign.retries(ValueError())


def test_a_function_cannot_travel_with_one_job() -> None:
    with pytest.raises(InvalidOption, match=r"retry\.backoff .*set it on the task"):
        RetryPolicy(backoff=lambda attempt, error: 1.0).to_json()


@pytest.mark.parametrize("row", [{}, [], None, "x", {"delay": 1}, {**RetryPolicy().to_json(), "factor": "2"}])
def test_a_row_that_holds_no_policy_is_refused_with_an_error_that_claim_expects(row: object) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        StoredRetryPolicy.from_json(row)


# -- bad policies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"delay": -1}, "retry.delay"),
        ({"delay": math.nan}, "retry.delay"),
        ({"delay": math.inf}, "retry.delay"),
        ({"delay": "2"}, "retry.delay"),
        ({"delay": True}, "retry.delay"),
        ({"delay": timedelta.max}, "retry.delay"),
        ({"max_delay": -1}, "retry.max_delay"),
        ({"max_delay": math.inf}, "retry.max_delay"),
        ({"factor": 0.5}, "retry.factor"),
        ({"factor": 1e6}, "retry.factor"),
        ({"factor": math.nan}, "retry.factor"),
        ({"factor": True}, "retry.factor"),
        ({"jitter": -0.1}, "retry.jitter"),
        ({"jitter": 11}, "retry.jitter"),
        ({"jitter": "0.1"}, "retry.jitter"),
        ({"on": ("ValueError",)}, "retry.on"),
        ({"on": (int,)}, "retry.on"),
        ({"never": (ValueError(),)}, "retry.never"),
        ({"backoff": 5}, "retry.backoff"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_by_field(bad: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        RetryPolicy(**bad)
    assert names in str(caught.value)


def test_one_exception_class_may_stand_alone() -> None:
    policy = RetryPolicy(on=OSError, never=[TimeoutError])
    assert policy.on == (OSError,)
    assert policy.never == (TimeoutError,)
