"""How long ended jobs are kept: what a task says about its own, over what its app says about all. Pure.

    keep, keep_for              of finished jobs: so many of the newest, so many seconds
    keep_dead, keep_dead_for    of dead jobs, likewise

Both limits hold where both are given: a job goes when it is beyond the one or the other. None is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from pgqueue.errors import InvalidOption, seconds

_MOST = 2**31 - 1  # PostgreSQL's integer


@dataclass(frozen=True, slots=True)
class Retention:
    """Checked when made; InvalidOption names the field. 0 keeps nothing. Durations are seconds, or were a timedelta."""

    NAMES: ClassVar[tuple[str, ...]] = ("keep", "keep_for", "keep_dead", "keep_dead_for")

    keep: int | None = None
    keep_for: float | timedelta | None = None
    keep_dead: int | None = None
    keep_dead_for: float | timedelta | None = None

    def __post_init__(self) -> None:
        for name in ("keep", "keep_dead"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InvalidOption(f"{name} must be a whole number of jobs, not {type(value).__name__}")
            if value is not None and not 0 <= value <= _MOST:
                raise InvalidOption(f"{name} must be between 0 and {_MOST} jobs, not {value}")
        for name in ("keep_for", "keep_dead_for"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, seconds(name, value))

    @property
    def keeps_finished(self) -> bool:
        """Whether a finished job is worth writing."""
        return self.keep != 0 and self.keep_for != 0

    def over(self, default: Retention) -> Retention:
        """What holds: each field from here, or else from `default`."""
        return Retention(
            *(mine if (mine := getattr(self, name)) is not None else getattr(default, name) for name in self.NAMES)
        )
