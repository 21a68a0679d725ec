"""decide(): an outcome, the attempts left and the policy in; one verdict out. No clock, no database, no dice."""

from __future__ import annotations

import inspect
import json
from typing import Any, get_args

import pytest

from pgqueue import Cancel, DeadLetter, DeadReason, RetryLater, RetryPolicy, Snooze
from pgqueue.errors import TaskTimeout
from pgqueue.retry import StoredRetryPolicy
from pgqueue.settings import MAX_RESULT_BYTES
from pgqueue.worker import run, settle
from pgqueue.worker.run import Crashed, Encoded, Failed, Hindered, Interrupted, Outcome, Steered, Succeeded, Unreadable
from pgqueue.worker.settle import (
    ToCancelled,
    ToComplete,
    ToCrashed,
    ToDead,
    ToGiveBack,
    ToHinder,
    ToRetry,
    Verdict,
    decide,
)

LEFT, LAST = (1, 4), (4, 4)  # (attempt, max_attempts)

FAILED = Failed(ValueError("no"), "ValueError: no", "the traceback")
LATE = Failed(TaskTimeout("late"), "TaskTimeout: late", None, timed_out=True)

RETRIES = RetryPolicy(delay=2)
REFUSES = RetryPolicy(never=(ValueError, TaskTimeout))
NARROW = RetryPolicy(on=(ConnectionError,))
GIVES_UP = RetryPolicy(backoff=lambda attempt, error: None)
OWN = RetryPolicy(backoff=lambda attempt, error: 99.0)
STORED = StoredRetryPolicy.from_json(RetryPolicy(delay=3).to_json())
STORED_REFUSES = StoredRetryPolicy.from_json(REFUSES.to_json())


def decided(outcome: Outcome, attempts: tuple[int, int], policy: Any, uniform: float = 0.0) -> Verdict:
    return decide(outcome, *attempts, policy, lambda: uniform)


VERDICTS: list[tuple[Outcome, tuple[int, int], Any, Verdict]] = [
    # A failure: again while attempts are left and the policy wants it, with its error kept.
    (FAILED, LEFT, RETRIES, ToRetry(2.0, "ValueError: no", "the traceback")),
    (FAILED, (2, 4), RETRIES, ToRetry(4.0, "ValueError: no", "the traceback")),
    (FAILED, (3, 4), RETRIES, ToRetry(8.0, "ValueError: no", "the traceback")),
    (FAILED, LAST, RETRIES, ToDead(DeadReason.ATTEMPTS, "ValueError: no", "the traceback")),
    (FAILED, (1, 1), RETRIES, ToDead(DeadReason.ATTEMPTS, "ValueError: no", "the traceback")),
    (FAILED, (5, 4), RETRIES, ToDead(DeadReason.ATTEMPTS, "ValueError: no", "the traceback")),  # lowered meanwhile
    (FAILED, LEFT, REFUSES, ToDead(DeadReason.NEVER, "ValueError: no", "the traceback")),
    (FAILED, LAST, REFUSES, ToDead(DeadReason.NEVER, "ValueError: no", "the traceback")),
    (FAILED, LEFT, NARROW, ToDead(DeadReason.NEVER, "ValueError: no", "the traceback")),
    (FAILED, LEFT, GIVES_UP, ToDead(DeadReason.ATTEMPTS, "ValueError: no", "the traceback")),
    (FAILED, LEFT, OWN, ToRetry(99.0, "ValueError: no", "the traceback")),
    (FAILED, LAST, OWN, ToDead(DeadReason.ATTEMPTS, "ValueError: no", "the traceback")),
    (FAILED, LEFT, STORED, ToRetry(3.0, "ValueError: no", "the traceback")),
    (FAILED, LEFT, STORED_REFUSES, ToDead(DeadReason.NEVER, "ValueError: no", "the traceback")),
    # A timeout is a failure; only as the last one it gives the reason.
    (LATE, LEFT, RETRIES, ToRetry(2.0, "TaskTimeout: late")),
    (LATE, LAST, RETRIES, ToDead(DeadReason.TIMEOUT, "TaskTimeout: late")),
    (LATE, LEFT, REFUSES, ToDead(DeadReason.NEVER, "TaskTimeout: late")),
    # What the job says itself counts whatever the policy says. RetryLater alone uses an attempt.
    (Steered(RetryLater(60)), LEFT, REFUSES, ToRetry(60.0, "the job asked to be retried later")),
    (Steered(RetryLater(0)), LEFT, RETRIES, ToRetry(0.0, "the job asked to be retried later")),
    (Steered(RetryLater(60, "busy")), LAST, RETRIES, ToDead(DeadReason.ATTEMPTS, "busy")),
    (Steered(RetryLater()), (2, 4), RETRIES, ToRetry(4.0, "the job asked to be retried later")),
    (Steered(RetryLater()), LEFT, GIVES_UP, ToDead(DeadReason.ATTEMPTS, "the job asked to be retried later")),
    (Steered(RetryLater()), LEFT, STORED, ToRetry(3.0, "the job asked to be retried later")),
    (Steered(Snooze(60)), LEFT, RETRIES, ToGiveBack(60.0)),
    (Steered(Snooze(60)), LAST, RETRIES, ToGiveBack(60.0)),
    (Steered(Cancel("sold out")), LEFT, RETRIES, ToCancelled("sold out")),
    (Steered(Cancel()), LAST, RETRIES, ToCancelled("the job cancelled itself")),
    (Steered(DeadLetter("corrupt")), LEFT, RETRIES, ToDead(DeadReason.DEAD_LETTER, "corrupt")),
    (Steered(DeadLetter("corrupt")), LAST, RETRIES, ToDead(DeadReason.DEAD_LETTER, "corrupt")),
    # A stopping worker gives the job back; a row that cannot be read is not read again.
    (Interrupted(), LEFT, RETRIES, ToGiveBack(None)),
    (Interrupted(), LAST, REFUSES, ToGiveBack(None)),
    (Unreadable("bad args"), LEFT, RETRIES, ToDead(DeadReason.BAD_ROW, "bad args")),
    (Unreadable("bad args"), LAST, RETRIES, ToDead(DeadReason.BAD_ROW, "bad args")),
    # A process that a job had to itself has died: again without an attempt, until that was so three times.
    (Crashed("its process was killed by SIGKILL", 1), LAST, REFUSES, ToCrashed("its process was killed by SIGKILL")),
    (Crashed("it died", 3), LEFT, RETRIES, ToDead(DeadReason.CRASHED, "it died")),
    # It was the database or the machine: again without an attempt; what it is if that goes on is decided as well.
    (
        Hindered(FAILED),
        LAST,
        RETRIES,
        ToHinder(
            1.0,
            "ValueError: no (no attempt used)",
            "the traceback",
            ToDead(DeadReason.ATTEMPTS, "ValueError: no", "the traceback"),
        ),
    ),
    (
        Hindered(LATE),
        LEFT,
        RETRIES,
        ToHinder(1.0, "TaskTimeout: late (no attempt used)", None, ToRetry(2.0, "TaskTimeout: late")),
    ),
    # A success is one, also in the last attempt.
    (Succeeded(), LEFT, RETRIES, ToComplete(None)),
    (Succeeded({"sent": 2}), LAST, REFUSES, ToComplete('{"sent":2}')),
    (Succeeded(Encoded('{"sent":2}')), LAST, REFUSES, ToComplete('{"sent":2}')),
]


@pytest.mark.parametrize(("outcome", "attempts", "policy", "verdict"), VERDICTS)
def test_every_outcome_has_its_verdict(
    outcome: Outcome, attempts: tuple[int, int], policy: Any, verdict: Verdict
) -> None:
    assert decided(outcome, attempts, policy) == verdict


def test_the_table_above_knows_every_outcome_and_every_verdict() -> None:
    assert {type(row[0]) for row in VERDICTS} == set(get_args(run.Outcome))
    assert {type(row[3]) for row in VERDICTS} == set(get_args(settle.Verdict)) == set(settle._WRITES)


def test_something_that_is_no_outcome_is_not_settled_in_silence() -> None:
    with pytest.raises(AssertionError, match="no verdict"):
        decided(object(), LEFT, RETRIES)


def test_a_decision_reads_no_clock_and_rolls_no_dice() -> None:
    """Its only randomness is handed in, and the same input gives the same verdict."""
    jittered = RetryPolicy(delay=2, jitter=0.5)
    assert decided(FAILED, LEFT, jittered, 0.5) == decided(FAILED, LEFT, jittered, 0.5)
    assert decided(FAILED, LEFT, jittered, 0.5) == ToRetry(2.5, "ValueError: no", "the traceback")
    assert not {"time", "random", "datetime", "uuid4"} & set(inspect.getclosurevars(decide).globals)


# -- results: whatever comes back, the job is done ----------------------------------------------------------------


def result(value: object) -> Any:
    verdict = decided(Succeeded(value), LEFT, RETRIES)
    assert isinstance(verdict, ToComplete)
    return None if verdict.result is None else json.loads(verdict.result)


@pytest.mark.parametrize("value", [0, "", [], False, {"a": [1, 2.5, None]}, "grün"])
def test_a_result_that_json_can_hold_is_kept(value: object) -> None:
    assert result(value) == value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "result is a object"),
        (b"bytes", "result is a bytes"),
        ({"a": {1, 2}}, "result.a is a set"),
        (float("nan"), "result is nan"),
        ("\0", "result contains a NUL character"),
        ("\ud800", "result contains a lone surrogate"),
        pytest.param(10**5000, "result has more than 4,000 digits", id="huge"),
    ],
)
def test_a_result_that_cannot_be_kept_leaves_a_marker_and_the_job_is_done(value: object, why: str) -> None:
    kept = result(value)
    assert kept.keys() == {"$pgqueue", "bytes", "why"}
    assert kept["$pgqueue"] == "result dropped"
    assert kept["why"].startswith(why)


def test_a_result_that_is_too_large_leaves_its_size() -> None:
    kept = result("x" * MAX_RESULT_BYTES)  # and two quotation marks
    assert kept["bytes"] == MAX_RESULT_BYTES + 2
    assert f"more than {MAX_RESULT_BYTES:,}" in kept["why"]
    assert result("x" * (MAX_RESULT_BYTES - 2)) == "x" * (MAX_RESULT_BYTES - 2)


@pytest.mark.parametrize("steer", [Cancel, DeadLetter, lambda why: RetryLater(1, why)])
def test_what_a_job_says_is_made_fit_to_be_stored(steer: Any) -> None:
    verdict: Any = decided(Steered(steer("a\0b\ud800c")), LEFT, RETRIES)
    said = verdict.why if isinstance(verdict, ToCancelled) else verdict.error
    assert said == "a\\x00b\\ud800c"
