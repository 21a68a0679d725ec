"""`app.schedules`: schedules that are added, looked at and steered at run time, each call in a short transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar, Unpack
from zoneinfo import ZoneInfo

from pgqueue import db, schedule, ticks
from pgqueue.drivers import Steps
from pgqueue.enqueue import NewJob, Options, name, whole
from pgqueue.errors import InvalidOption, ScheduleNotFound, ScheduleTaken
from pgqueue.job import Job
from pgqueue.schedule import Schedule
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


class Home(Protocol):
    """What is needed of an app."""

    tasks: dict[str, Task[..., Any]]

    @property
    def statements(self) -> Statements: ...

    def perform(self, steps: Steps[T]) -> T: ...

    def look(self, steps: Steps[T]) -> T: ...


class Schedules:
    """`app.schedules`. Those that code declares can be paused, run and looked at; they are changed in the code."""

    def __init__(self, app: Home) -> None:
        self._app = app

    def add(
        self,
        *,
        name: str,
        task: str | Task[..., Any],
        cron: str | None = None,
        every: float | timedelta | None = None,
        timezone: str | ZoneInfo | None = None,
        args: Mapping[str, Any] | Sequence[Any] = (),
        missed: str = "latest",
        missed_limit: int = 100,
        overlap: str = "allow",
        **options: Unpack[CallOptions],
    ) -> ScheduleStats:
        """Adds a schedule, or changes the one of that name that was added before; workers need not be restarted.

        task: one of this app's, which gives options and checks the arguments, or the name of another. options: of the
        jobs, see `Options`; not delay, run_at and unique_key. Raises InvalidOption, InvalidArguments, ArgsNotJSON
        before any SQL; ScheduleTaken.
        """
        args = args if isinstance(args, Mapping | list | tuple) else _refuse_args(args)
        made = Schedule(
            cron=cron,
            every=every,
            timezone=timezone,
            args=args,
            name=_name(name),
            missed=missed,
            missed_limit=missed_limit,
            overlap=overlap,
        )
        unknown = sorted(set(options) - {field.name for field in fields(Options)})
        if unknown:
            raise InvalidOption(f"schedules.add() takes no option {unknown[0]!r}")
        schedule.check_options(Options(**options))
        columns = made.columns(name, self._job(task, args, options))
        self._app.perform(_adding(self._app.statements, columns))
        return self.get(name)

    def _job(self, task: object, args: Any, options: Mapping[str, Any]) -> NewJob:
        known = task if isinstance(task, Task) else self._app.tasks.get(name("task", task))
        if known is None:
            return NewJob(str(task), schedule.args_json(args), Options(**options))
        chosen = known.options(**options)
        new: NewJob = chosen.job(**args) if isinstance(args, Mapping) else chosen.job(*args)
        return replace(new, options=replace(new.options, delay=0.0, run_at=None, unique_key=None))

    def remove(self, *names: str) -> bool:
        """Removes them; their jobs stay. False if there was none. A declared one is back when a worker starts."""
        return bool(self._app.perform(db.remove_schedules(self._app.statements, _names(names))))

    def pause(self, *names: str) -> bool:
        """They fire no more. False if all of them were paused. Raises ScheduleNotFound, and then none is."""
        return self._pause(names, paused=True)

    def resume(self, *names: str) -> bool:
        """They fire again, from their next tick on; those of meanwhile are not made up for. False if none was."""
        return self._pause(names, paused=False)

    def _pause(self, names: tuple[str, ...], *, paused: bool) -> bool:
        return any(self._app.perform(_pausing(self._app.statements, _names(names), paused=paused)).values())

    def run_now(self, name: str) -> Job:
        """Enqueues a job of it, due now, also while it is paused; its ticks stay as they are. ScheduleNotFound."""
        return self._app.perform(_running(self._app.statements, _name(name)))

    def get(self, name: str) -> ScheduleStats:
        """One of them. Raises ScheduleNotFound."""
        for row in self._app.look(db.find_schedules(self._app.statements, [_name(name)])):
            return ScheduleStats(*row)
        raise ScheduleNotFound(f"there is no schedule {name}")

    def list(self) -> list[ScheduleStats]:
        """All of them, by name."""
        return [ScheduleStats(*row) for row in self._app.look(db.find_schedules(self._app.statements))]

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


def _adding(sql: Statements, columns: Mapping[str, Any]) -> Steps[None]:
    done = yield from db.declare(sql, columns, declared=False)
    if done.outcome == "taken":
        raise ScheduleTaken(
            f"schedule {columns['name']} is declared in code: change it there, or give this one another name"
        )
    yield from schedule.plan(sql, columns, done)


def _pausing(sql: Statements, names: Sequence[str], *, paused: bool) -> Steps[dict[str, bool]]:
    done = yield from db.pause_schedules(sql, names, paused=paused)
    _all_there(names, done)  # the transaction is rolled back
    return done


def _all_there(names: Sequence[str], found: Iterable[str]) -> None:
    missing = sorted(set(names) - set(found))
    if missing:
        raise ScheduleNotFound(f"there is no schedule {', '.join(missing)}")


def _running(sql: Statements, name: str) -> Steps[Job]:
    row = yield from db.run_now(sql, name)
    if row is None:
        raise ScheduleNotFound(f"there is no schedule {name}")
    id_, task, queue, priority, run_at, max_attempts, created_at, tags, meta = row
    return Job(
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


def _name(value: object) -> str:
    return name("name", value)


def _names(values: Sequence[str]) -> list[str]:
    if not values:
        raise InvalidOption("say which schedules, by name")
    return [_name(value) for value in values]


def _refuse_args(args: object) -> Any:
    raise InvalidOption(f"args must be a dict of named or a list of positional arguments, not {type(args).__name__}")
