"""When a failed attempt runs again: attempt number in, delay out. Pure: randomness is handed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pgqueue.errors import InvalidOption, seconds

Backoff = Callable[[int, BaseException], float | None]
"""A policy's own function: (attempt, error) -> seconds until the next attempt, or None: no further attempt."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures run again, and after how long.

    The delay before attempt n + 1 is `min(max_delay, delay * factor ** (n - 1))` seconds, times a random factor in
    [1, 1 + jitter]: never earlier than stated. With the defaults and 4 attempts: at once, then after 2, 4 and 8 s.

    `on` are the exceptions that are retried, `never` those that are not even if `on` names them: they go to the
    dead-letter table at once. `backoff`, if given, decides instead of the formula: it gets the number of the failed
    attempt and its exception, and returns seconds, or None for no further attempt; an exception in it, or a delay that
    is no number of seconds, falls back to the formula. How many attempts there are is the job's max_attempts.
    """

    delay: float = 2.0
    factor: float = 2.0
    max_delay: float = 3600.0
    jitter: float = 0.1
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = ()
    backoff: Backoff | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "delay", seconds("retry.delay", self.delay))
        object.__setattr__(self, "max_delay", seconds("retry.max_delay", self.max_delay))
        for name, least, most in (("factor", 1.0, 1000.0), ("jitter", 0.0, 10.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise InvalidOption(f"retry.{name} must be a number between {least:g} and {most:g}, not {value!r}")
        for name in ("on", "never"):
            object.__setattr__(self, name, _exceptions(f"retry.{name}", getattr(self, name)))
        if self.backoff is not None and not callable(self.backoff):
            raise InvalidOption("retry.backoff must be a function of (attempt, error)")

    def retries(self, error: BaseException) -> bool:
        """Whether a failure of this kind is worth another attempt.

        SystemExit and its like count as Exception: a job that calls sys.exit() has failed like any other.
        """
        return self._names(error, self.on) and not self._names(error, self.never)

    def delay_after(self, attempt: int, error: BaseException, uniform: Callable[[], float]) -> float | None:
        """Seconds until the next try, or None when `backoff` gives up. attempt: 1 after the first failure.

        `uniform` gives a number in [0, 1). Finite for any attempt number: what overflows is at max_delay anyway.
        Raises ValueError below 1.
        """
        if attempt < 1:
            raise ValueError(f"attempt starts at 1, not {attempt}")
        if self.backoff is not None:
            try:
                own = self.backoff(attempt, error)
                return None if own is None else seconds("retry.backoff", own)
            except BaseException:  # noqa: S110  a bug in a backoff function must not cost the job: the formula decides
                pass
        try:
            delay = min(self.max_delay, self.delay * math.pow(self.factor, attempt - 1))
        except OverflowError:
            delay = self.max_delay if self.delay else 0.0
        return delay * (1.0 + self.jitter * uniform())

    @staticmethod
    def _names(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
        return isinstance(error, kinds) or (Exception in kinds and not isinstance(error, Exception))

    def to_json(self) -> dict[str, Any]:
        """The policy as a row stores it, for `options(retry=...)`: exceptions by their full name."""
        if self.backoff is not None:
            raise InvalidOption("retry.backoff is a function and cannot travel with one job: set it on the task")
        kinds = {name: [_name(kind) for kind in getattr(self, name)] for name in ("on", "never")}
        numbers = {name: getattr(self, name) for name in ("delay", "factor", "max_delay", "jitter")}
        return numbers | kinds


@dataclass(frozen=True, slots=True)
class StoredRetryPolicy:
    """A policy read back from a row. Exceptions are matched by the names of the error's family: nothing is imported."""

    policy: RetryPolicy
    on: frozenset[str]
    never: frozenset[str]

    @classmethod
    def from_json(cls, data: Any) -> StoredRetryPolicy:
        """Raises ValueError, TypeError or KeyError when the row holds no policy."""
        numbers = {name: data[name] for name in ("delay", "factor", "max_delay", "jitter")}
        return cls(RetryPolicy(**numbers), frozenset(data["on"]), frozenset(data["never"]))

    def retries(self, error: BaseException) -> bool:
        family = {_name(kind) for kind in type(error).__mro__} | {"builtins.Exception"}
        return bool(family & self.on) and not family & self.never

    def delay_after(self, attempt: int, error: BaseException, uniform: Callable[[], float]) -> float | None:
        return self.policy.delay_after(attempt, error, uniform)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _exceptions(name: str, value: object) -> tuple[type[BaseException], ...]:
    kinds = value if isinstance(value, tuple | list) else (value,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise InvalidOption(f"{name} must be exception classes, not {kind!r}")
    return tuple(kinds)
