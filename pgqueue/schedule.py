"""What is enqueued at its time: a schedule of a task, in code or in the table, and what a tick makes of it.

Before: ticks.py, which tells when. After: maintenance/tick.py, which any worker does. A schedule is a row; the code's
are written by each worker that starts, and the last one that starts counts. Promise: one job a tick, since the
statement that enqueues it also moves the row on, and only from the tick that is due.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

from pgqueue import db, ticks
from pgqueue.arguments import to_json
from pgqueue.db import Due
from pgqueue.drivers import Steps
from pgqueue.enqueue import NewJob, Options, name
from pgqueue.errors import InvalidOption, whole
from pgqueue.settings import MAX_ARGS_BYTES
from pgqueue.sql import Statements

Missed = Literal["skip", "latest", "all"]
Overlap = Literal["allow", "skip"]
MISSED = get_args(Missed)
OVERLAP = get_args(Overlap)
MISSED_AFTER = 60.0  # seconds; a tick that nobody fired by then was missed. What a restart takes is no such thing
MOST_MISSED = 1_000  # jobs of one statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a task's job is enqueued by itself. Checked when made; InvalidOption names the field.

    cron: five fields, in timezone (UTC unless said), or every: seconds, or a timedelta · args: the job's, a dict or a
    list · name: what its row is called, the task's name unless said · missed: what becomes of ticks that nobody fired
    in time: skip, latest (the last one is made up for), all (the last missed_limit of them) · overlap: allow, or skip
    a tick while a job of this schedule is live.
    """

    cron: str | None = None
    every: float | timedelta | None = None
    timezone: str | ZoneInfo | None = None
    args: Mapping[str, Any] | list[Any] | tuple[Any, ...] = field(default=(), repr=False)
    name: str | None = None
    missed: Missed = "latest"
    missed_limit: int = 100
    overlap: Overlap = "allow"

    def __post_init__(self) -> None:
        made = ticks.timing(self.cron, self.every, self.timezone)
        if isinstance(made, ticks.Cron):
            object.__setattr__(self, "cron", made.text)
        else:
            object.__setattr__(self, "every", made.micros / 1_000_000)
        object.__setattr__(self, "timezone", ticks.zone_name(self.timezone))
        if self.name is not None:
            name("name", self.name)
        if not isinstance(self.args, Mapping | list | tuple):
            raise InvalidOption(
                f"args must be a dict of named or a list of positional arguments, not {type(self.args).__name__}"
            )
        for field_, value, known in (("missed", self.missed, MISSED), ("overlap", self.overlap, OVERLAP)):
            if value not in known:
                raise InvalidOption(f"{field_} must be one of {', '.join(known)}, not {value!r}")
        whole("missed_limit", self.missed_limit, 1, MOST_MISSED)

    @property
    def timing(self) -> ticks.Timing:
        """When it fires."""
        return ticks.timing(self.cron, self.every, self.timezone)

    def columns(self, name: str, new: NewJob) -> dict[str, Any]:
        """The row as `declare` takes it. new: the job that each tick makes."""
        job = new.columns()
        of_the_job = (
            "task", "args", "queue", "priority", "max_attempts", "expires_in", "timeout", "retry", "tags", "meta"
        )  # fmt: skip
        return {
            "name": name,
            "cron": self.cron,
            "every": self.every,
            "timezone": self.timezone,
            **{column: job[column] for column in of_the_job},
            "missed": self.missed,
            "missed_limit": self.missed_limit,
            "overlap": self.overlap,
        }


def check_options(options: Options) -> None:
    """Raises InvalidOption for those that a schedule's jobs cannot have."""
    for one in ("delay", "run_at", "unique_key", "unique"):
        if getattr(options, one):
            raise InvalidOption(
                f"{one} is no option of a schedule's jobs: each is due at its tick, which makes one job"
            )


NOT_UNIQUE = "a task with a schedule cannot be unique, as each tick makes one job: see overlap= of it"


def args_json(args: Mapping[str, Any] | list[Any] | tuple[Any, ...]) -> str:
    """Arguments for a task that is known by its name alone, as JSON."""
    return to_json(dict(args) if isinstance(args, Mapping) else list(args), "args", MAX_ARGS_BYTES)


# -- ticks ----------------------------------------------------------------------------------------------------------


class Firing(NamedTuple):
    """What a schedule whose tick has come does: these ticks become jobs, so many are passed by, and what is next."""

    ticks: list[datetime]
    passed: int
    decided: datetime
    following: datetime


def decide(due: Due, now: datetime) -> Firing:
    """Pure. due: its next_tick is not after `now`, the server's clock. InvalidOption: its time cannot be read."""
    assert due.next_tick is not None
    timing = ticks.timing(due.cron, due.every, due.timezone)
    found, count = timing.latest(due.next_tick, now, due.missed_limit if due.missed == "all" else 1)
    decided = found[-1]
    if due.missed == "skip" and (now - decided).total_seconds() > MISSED_AFTER:
        found = []
    return Firing(found, count - len(found), decided, timing.after(now))


def first_tick(due: Due) -> datetime:
    """The first tick that counts of a schedule for which none is worked out. InvalidOption: its time cannot be read."""
    timing = ticks.timing(due.cron, due.every, due.timezone)
    return timing.after(due.since if due.last_tick is None else max(due.since, due.last_tick))


# -- the row --------------------------------------------------------------------------------------------------------


def plan(sql: Statements, columns: Mapping[str, Any], done: db.Declared) -> Steps[db.Declared]:
    """The next tick of a schedule that was just written, so that it is seen at once; in the same transaction. Also of
    one that stood there: the rules of its time zone may have been changed since it was worked out."""
    if done.outcome != "taken":
        timing = ticks.timing(columns["cron"], columns["every"], columns["timezone"])
        tick = timing.after(done.since if done.last_tick is None else max(done.since, done.last_tick))
        yield from db.plan(sql, columns["name"], done.revision, tick, None)
        return done._replace(next_tick=tick)
    return done
