"""`app.schedules`: schedules that are added, looked at and steered at run time.

Each call in a short transaction of its own, or in the caller's: connection= takes what `task.enqueue` takes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, Required, TypeVar, Unpack, overload
from zoneinfo import ZoneInfo

from pgqueue import db, schedule, ticks
from pgqueue.drivers import AsyncConnection, Steps, SyncConnection, perform_either
from pgqueue.enqueue import NewJob, Options, name
from pgqueue.errors import InvalidOption, ScheduleNotFound, ScheduleTaken, whole
from pgqueue.job import Job, Waits, at_home
from pgqueue.schedule import Missed, Overlap, Schedule
from pgqueue.sql import Statements
from pgqueue.task import CallOptions, Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScheduleStats:
    """A row of the view schedule_stats.

    status: active · paused · orphaned (code declared it, and does no more) · invalid (`problem` says why) · unattended
    (no live worker knows its task). next_tick: None until a worker has worked it out, or where it fires no more. fired,
    skipped: ticks with and without a job. live: how many of its jobs are. since: ticks after that moment count.
    """

    name: str
    task: str
    cron: str | None
    every: float | None
    timezone: str
    queue: str
    status: str
    paused: bool
    declared: bool
    orphaned: bool
    missed: str
    missed_limit: int
    overlap: str
    next_tick: datetime | None
    last_tick: datetime | None
    fired_at: datetime | None
    fired: int
    skipped: int
    live: int
    last_job: int | None
    last_state: str | None
    problem: str | None
    changed_at: datetime
    since: datetime


class NewSchedule(CallOptions, total=False):
    """What `app.schedules.add` takes: a name, the task (one of the app's, which gives options and checks the arguments,
    or the name of another), the fields of Schedule, and options of its jobs, see `Options`; not delay, run_at and
    unique_key.
    """

    name: Required[str]
    task: Required[str | Task[..., Any]]
    cron: str | None
    every: float | timedelta | None
    timezone: str | ZoneInfo | None
    args: Mapping[str, Any] | Sequence[Any]
    missed: Missed
    missed_limit: int
    overlap: Overlap


_OF_THE_SCHEDULE = {field.name for field in fields(Schedule)} - {"name"}
_OF_THE_JOB = {field.name for field in fields(Options)}
Connection = SyncConnection | AsyncConnection | None


class Home(Protocol):
    """What is needed of an app."""

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]: ...

    @property
    def statements(self) -> Statements: ...

    @property
    def jobs(self) -> Waits: ...

    def perform(self, steps: Steps[T]) -> T: ...

    def look(self, steps: Steps[T]) -> T: ...


class Schedules:
    """`app.schedules`. Those that code declares can be paused, run and looked at; they are changed in the code."""

    def __init__(self, app: Home) -> None:
        self._app = app

    @overload
    def add(self, *, connection: SyncConnection | None = None, **new: Unpack[NewSchedule]) -> ScheduleStats: ...
    @overload
    def add(self, *, connection: AsyncConnection, **new: Unpack[NewSchedule]) -> Awaitable[ScheduleStats]: ...
    def add(self, *, connection: Connection = None, **new: Any) -> ScheduleStats | Awaitable[ScheduleStats]:
        """Adds a schedule, or changes the one of that name that was added before; workers need not be restarted.

        new: see NewSchedule. Raises InvalidOption, InvalidArguments, ArgsNotJSON before any SQL; ScheduleTaken.
        """
        missing = sorted({"name", "task"} - set(new))
        unknown = sorted(set(new) - _OF_THE_SCHEDULE - {"name", "task"} - _OF_THE_JOB)
        if missing or unknown:
            raise InvalidOption(
                f"schedules.add() needs {missing[0]}=" if missing else f"schedules.add() takes no option {unknown[0]!r}"
            )
        options = {option: value for option, value in new.items() if option in _OF_THE_JOB}
        made = Schedule(**{field: new[field] for field in _OF_THE_SCHEDULE & set(new)}, name=_name(new["name"]))
        schedule.check_options(Options(**options))
        columns = made.columns(new["name"], self._job(new["task"], made.args, options))
        return self._perform(connection, _adding(self._app.statements, columns))

    def _job(self, task: object, args: Any, options: Mapping[str, Any]) -> NewJob:
        known = task if isinstance(task, Task) else self._app.tasks.get(name("task", task))
        if known is None:
            return NewJob(str(task), schedule.args_json(args), Options(**options))
        chosen = known.options(**options)
        new: NewJob = chosen.job(**args) if isinstance(args, Mapping) else chosen.job(*args)
        if new.options.has_key:
            raise InvalidOption(f"task {known.name}: {schedule.NOT_UNIQUE}; with unique=False its jobs are plain ones")
        return replace(new, options=replace(new.options, delay=0.0, run_at=None))

    @overload
    def remove(self, *names: str, connection: SyncConnection | None = None) -> bool: ...
    @overload
    def remove(self, *names: str, connection: AsyncConnection) -> Awaitable[bool]: ...
    def remove(self, *names: str, connection: Connection = None) -> bool | Awaitable[bool]:
        """Removes them; their jobs stay. False if there was none. A declared one is back when a worker starts."""
        return self._perform(connection, _removing(self._app.statements, _names(names)))

    @overload
    def pause(self, *names: str, connection: SyncConnection | None = None) -> bool: ...
    @overload
    def pause(self, *names: str, connection: AsyncConnection) -> Awaitable[bool]: ...
    def pause(self, *names: str, connection: Connection = None) -> bool | Awaitable[bool]:
        """They fire no more. False if all of them were paused. Raises ScheduleNotFound, and then none is."""
        return self._perform(connection, _pausing(self._app.statements, _names(names), paused=True))

    @overload
    def resume(self, *names: str, connection: SyncConnection | None = None) -> bool: ...
    @overload
    def resume(self, *names: str, connection: AsyncConnection) -> Awaitable[bool]: ...
    def resume(self, *names: str, connection: Connection = None) -> bool | Awaitable[bool]:
        """They fire again, from their next tick on; those of meanwhile are not made up for. False if none was paused.
        Raises ScheduleNotFound, and then none is."""
        return self._perform(connection, _pausing(self._app.statements, _names(names), paused=False))

    @overload
    def run_now(self, name: str, *, connection: SyncConnection | None = None) -> Job: ...
    @overload
    def run_now(self, name: str, *, connection: AsyncConnection) -> Awaitable[Job]: ...
    def run_now(self, name: str, *, connection: Connection = None) -> Job | Awaitable[Job]:
        """Enqueues a job of it, due now, also while it is paused; its ticks stay as they are. ScheduleNotFound."""
        return self._perform(connection, _running(self._app.statements, _name(name), self._app.jobs))

    def _perform(self, connection: Connection, steps: Steps[T]) -> T | Awaitable[T]:
        return self._app.perform(steps) if connection is None else perform_either(connection, steps)

    def _look(self, connection: Connection, steps: Steps[T]) -> T | Awaitable[T]:
        return self._app.look(steps) if connection is None else perform_either(connection, steps)

    @overload
    def get(self, name: str, *, connection: SyncConnection | None = None) -> ScheduleStats: ...
    @overload
    def get(self, name: str, *, connection: AsyncConnection) -> Awaitable[ScheduleStats]: ...
    def get(self, name: str, *, connection: Connection = None) -> ScheduleStats | Awaitable[ScheduleStats]:
        """One of them. Raises ScheduleNotFound."""
        return self._look(connection, _one(self._app.statements, _name(name)))

    @overload
    def list(self, *, connection: SyncConnection | None = None) -> list[ScheduleStats]: ...
    @overload
    def list(self, *, connection: AsyncConnection) -> Awaitable[list[ScheduleStats]]: ...
    def list(self, *, connection: Connection = None) -> list[ScheduleStats] | Awaitable[list[ScheduleStats]]:
        """All of them, by name."""
        return self._look(connection, _all(self._app.statements))

    def preview(
        self,
        cron: str | None = None,
        *,
        every: float | timedelta | None = None,
        timezone: str | ZoneInfo | None = None,
        after: datetime | None = None,
        count: int = 5,
    ) -> Sequence[datetime]:
        """The next `count` ticks strictly after `after` (now), as aware datetimes in UTC; no database is asked."""
        return preview(cron, every=every, timezone=timezone, after=after, count=count)


def preview(
    cron: str | None,
    *,
    every: float | timedelta | None,
    timezone: str | ZoneInfo | None,
    after: datetime | None,
    count: int,
) -> list[datetime]:
    """`app.schedules.preview`, for which no app is needed."""
    timing = ticks.timing(cron, every, timezone)
    whole("count", count, 1, 1_000)
    if after is None:
        after = datetime.now(UTC)
    elif not isinstance(after, datetime) or after.utcoffset() is None:
        raise InvalidOption("after must be a datetime with a time zone, e.g. datetime.now(UTC)")
    found: list[datetime] = []
    for _ in range(count):
        after = timing.after(after)
        found.append(after)
    return found


def _adding(sql: Statements, columns: Mapping[str, Any]) -> Steps[ScheduleStats]:
    done = yield from db.declare(sql, columns, declared=False)
    if done.outcome == "taken":
        raise ScheduleTaken(
            f"schedule {columns['name']} is declared in code: change it there, or give this one another name"
        )
    yield from schedule.plan(sql, columns, done)
    rows = yield from db.find_schedules(sql, [columns["name"]])
    return ScheduleStats(*rows[0])


def _one(sql: Statements, name: str) -> Steps[ScheduleStats]:
    rows = yield from db.find_schedules(sql, [name])
    if not rows:
        raise ScheduleNotFound(f"there is no schedule {name}")
    return ScheduleStats(*rows[0])


def _all(sql: Statements) -> Steps[list[ScheduleStats]]:
    return [ScheduleStats(*row) for row in (yield from db.find_schedules(sql))]


def _removing(sql: Statements, names: Sequence[str]) -> Steps[bool]:
    return bool((yield from db.remove_schedules(sql, names)))


def _pausing(sql: Statements, names: Sequence[str], *, paused: bool) -> Steps[bool]:
    _all_there(names, (yield from db.find_schedules(sql, names)))
    return any((yield from db.pause_schedules(sql, names, paused=paused)).values())


def _all_there(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    missing = sorted(set(names) - {row[0] for row in rows})
    if missing:
        raise ScheduleNotFound(f"there is no schedule {', '.join(missing)}")


def _running(sql: Statements, name: str, home: Waits) -> Steps[Job]:
    row = yield from db.run_now(sql, name)
    if row is None:
        raise ScheduleNotFound(f"there is no schedule {name}")
    id_, task, queue, priority, run_at, max_attempts, created_at, tags, meta = row
    job = Job(
        id=id_,
        task=task,
        queue=queue,
        priority=priority,
        run_at=run_at,
        max_attempts=max_attempts,
        created_at=created_at,
        tags=tuple(tags or ()),
        meta=json.loads(meta),
    )
    return at_home(job, home)


def _name(value: object) -> str:
    return name("name", value)


def _names(values: Sequence[str]) -> list[str]:
    if not values:
        raise InvalidOption("say which schedules, by name")
    return [_name(value) for value in values]
