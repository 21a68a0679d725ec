"""The operator's hands on live work: pause and resume, cancel, change, retry now; app.queues, app.tasks, app.jobs.

Each is one transaction: a short one of its own, or the caller's, where a connection is given (an async one makes it an
awaitable). What cannot be done is refused before any SQL. Workers hear of it at once, or within a second: see
worker/orders.py.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, overload

from pgqueue import db
from pgqueue.drivers import AsyncConnection, Steps, SyncConnection, perform_either
from pgqueue.enqueue import key, moment, name
from pgqueue.errors import MAX_ID, InvalidOption, checked_id, checked_ids, seconds, whole
from pgqueue.events import Events, cancelled
from pgqueue.job import State
from pgqueue.sql import Statements
from pgqueue.task import Task

log = logging.getLogger("pgqueue")

T = TypeVar("T")

BATCH = 1_000  # jobs a statement: it holds the locks of those that run
WHY = "cancelled by an operator"
_LIVE = tuple(state.value for state in (State.QUEUED, State.RUNNING, State.BLOCKED))


class LiveFilter(TypedDict, total=False):
    """Which jobs that have not ended: all that are given must hold; one must be given, or everything=True.

    ids · task · queue · state: queued, running or blocked · unique_key · tag: one of the job's · limit: at most so
    many, lowest id first.
    """

    ids: list[int]
    task: str
    queue: str
    state: str
    unique_key: str
    tag: str
    limit: int
    everything: bool


# -- the steps ---------------------------------------------------------------------------------------------------------


Heard = Callable[[list[db.Cancelled]], None]
"""Told of each batch as it is done, before anything is committed."""


Told = Callable[[int, int], None]
"""Told how many, of how many, before each batch, where there are several."""


def cancel(
    sql: Statements, ids: list[int], why: str, heard: Heard | None = None, told: Told | None = None
) -> Steps[dict[int, bool]]:
    """Cancels jobs that nobody runs, and asks those that run to end; by id, whether it runs."""
    done: dict[int, bool] = {}
    for start in _starts(ids, told):
        some = yield from db.cancel(sql, ids[start : start + BATCH], why)
        done |= {job.id: job.why is None for job in some}
        if heard is not None:
            heard(some)
    return dict(sorted(done.items()))


def cancel_some(
    sql: Statements, which: LiveFilter, why: str, heard: Heard | None = None, *, dry_run: bool
) -> Steps[dict[int, bool]]:
    """The same for the jobs that a filter finds."""
    ids = yield from db.find_live(sql, **which)  # type: ignore[misc]
    return dict.fromkeys(ids, False) if dry_run else (yield from cancel(sql, ids, why, heard))


def retry_now(sql: Statements, ids: list[int], told: Told | None = None) -> Steps[list[int]]:
    """Makes jobs that wait for their time or their retry due now; the ids that were made so."""
    return (yield from _in_batches(ids, lambda some: db.retry_now(sql, some), told))


def of_queued(
    sql: Statements, which: LiveFilter, act: Callable[[list[int]], Steps[list[int]]] | None
) -> Steps[list[int]]:
    """What is done to queued jobs, for those that a filter finds; the ids it was done to. None: only their ids."""
    ids = yield from db.find_live(sql, **which)  # type: ignore[misc]
    return ids if act is None else (yield from act(ids))


def _in_batches(ids: list[int], act: Callable[[list[int]], Steps[set[int]]], told: Told | None) -> Steps[list[int]]:
    done: set[int] = set()
    for start in _starts(ids, told):
        done |= yield from act(ids[start : start + BATCH])
    return sorted(done)


def _starts(ids: list[int], told: Told | None) -> Iterator[int]:
    """Where each batch begins."""
    for start in range(0, len(ids), BATCH):
        if told is not None and len(ids) > BATCH:
            told(start, len(ids))
        yield start


def filtered(which: LiveFilter, verb: str = "cancel") -> LiveFilter:
    """The filter, checked. One that was forgotten must not mean every job."""
    unknown = sorted(which.keys() - LiveFilter.__annotations__.keys())
    if unknown:
        known = ", ".join(LiveFilter.__annotations__)
        raise InvalidOption(f"{verb}() takes no filter {unknown[0]!r}; it takes {known}")
    everything = which.pop("everything", False)
    chosen = {field: value for field, value in which.items() if value is not None}
    if everything not in (True, False):
        raise InvalidOption(f"everything must be True or False, not {type(everything).__name__}")
    if not everything and not chosen.keys() - {"limit"}:
        raise InvalidOption("say which jobs: ids, task, queue, state, unique_key or tag; or everything=True")
    if "ids" in chosen:
        chosen["ids"] = checked_ids(chosen["ids"])
    for field in chosen.keys() & {"task", "queue"}:
        name(field, chosen[field])
    for field in chosen.keys() & {"unique_key", "tag"}:
        key(field, chosen[field])
    if "state" in chosen and chosen["state"] not in _LIVE:
        raise InvalidOption(f"state must be one of {', '.join(_LIVE)}, not {chosen['state']!r}")
    if "limit" in chosen:
        whole("limit", chosen["limit"], 1, MAX_ID)
    return chosen  # type: ignore[return-value]


def filtered_queued(which: LiveFilter, verb: str) -> LiveFilter:
    """The same for what can be done to queued jobs alone."""
    if which.get("state") not in (None, "queued"):
        raise InvalidOption(f"state must be queued or left out: {verb}() is for queued jobs, not {which['state']!r}")
    return {**filtered(which, verb), "state": "queued"}


def reason(why: object) -> str:
    """Why, as it is stored and shown."""
    key("why", why)
    return str(why)


def until_when(until: object) -> tuple[datetime | None, float | None]:
    """(moment, None), or (None, seconds from now); a moment is checked against the past by the server's clock alone."""
    if until is None or isinstance(until, datetime):
        if until is not None:
            moment("until", until)
        return until, None
    if isinstance(until, timedelta):
        return None, seconds("until", until, least=0.001)
    raise InvalidOption(
        f"until must be a datetime with a time zone, or a timedelta from now, not {type(until).__name__}"
    )


# -- app.queues, app.tasks ---------------------------------------------------------------------------------------------


class Home(Protocol):
    """What they need of their app."""

    events: Events

    @property
    def statements(self) -> Statements: ...

    def perform(self, steps: Steps[T]) -> T: ...

    def look(self, steps: Steps[T]) -> T: ...


def act(
    home: Home,
    connection: SyncConnection | AsyncConnection | None,
    steps: Steps[T],
    said: Callable[[T], None],
    told: Callable[[], None] = lambda: None,
) -> T | Awaitable[T]:
    """Runs the steps, in a transaction of their own or in the connection's, and says what they did in the log. told:
    calls the handlers of events, once it is committed; not of what the caller's own transaction may still undo."""
    if connection is None:
        done = home.perform(steps)
        said(done)
        told()
        return done

    def and_say() -> Steps[T]:
        done = yield from steps
        said(done)
        return done

    return perform_either(connection, and_say())


def seen(home: Home, connection: SyncConnection | AsyncConnection | None, steps: Steps[T]) -> T | Awaitable[T]:
    """What the steps read, on a connection of the app's own or as the given one's transaction sees it."""
    return home.look(steps) if connection is None else perform_either(connection, steps)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as operators see it. since, by, until: of its pause; until: when it resumes by itself, if it does.

    queued: jobs that are due; scheduled: later."""

    name: str
    paused: bool = False
    since: datetime | None = None
    by: str | None = None
    until: datetime | None = None
    queued: int = 0
    scheduled: int = 0
    running: int = 0
    blocked: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class PausedTask:
    """A task that is paused. until: when it resumes by itself, if it does."""

    name: str
    since: datetime
    by: str | None = None
    until: datetime | None = None


class Queues:
    """`app.queues`: look at queues, pause and resume them."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @overload
    def pause(
        self,
        queue: str,
        until: datetime | timedelta | None = None,
        *,
        by: str | None = None,
        connection: SyncConnection | None = None,
    ) -> None: ...
    @overload
    def pause(
        self,
        queue: str,
        until: datetime | timedelta | None = None,
        *,
        by: str | None = None,
        connection: AsyncConnection,
    ) -> Coroutine[Any, Any, None]: ...
    def pause(
        self,
        queue: str,
        until: datetime | timedelta | None = None,
        *,
        by: str | None = None,
        connection: SyncConnection | AsyncConnection | None = None,
    ) -> Awaitable[None] | None:
        """No job of this queue starts from now on; those that run go on. It need not exist yet.

        until: an aware datetime, or a timedelta from now, at which it resumes by itself. by: who did it, for people.
        Again: the later word counts."""
        moment_, after = until_when(until)
        checked = name("queue", queue), _who(by)
        steps = db.pause_queue(self._home.statements, checked[0], until=moment_, seconds=after, by=checked[1])
        return act(self._home, connection, steps, lambda _: _say(True, "queue_paused", "queue", queue, by))

    @overload
    def resume(self, queue: str, *, connection: SyncConnection | None = None) -> bool: ...
    @overload
    def resume(self, queue: str, *, connection: AsyncConnection) -> Coroutine[Any, Any, bool]: ...
    def resume(
        self, queue: str, *, connection: SyncConnection | AsyncConnection | None = None
    ) -> bool | Awaitable[bool]:
        """Jobs of this queue may start again, and sleeping workers get up for them; False if it was not paused."""
        steps = db.resume_queue(self._home.statements, name("queue", queue))
        return act(self._home, connection, steps, lambda done: _say(done, "queue_resumed", "queue", queue))

    @overload
    def list(self, *, connection: SyncConnection | None = None) -> list[Queue]: ...
    @overload
    def list(self, *, connection: AsyncConnection) -> Coroutine[Any, Any, list[Queue]]: ...
    def list(self, *, connection: SyncConnection | AsyncConnection | None = None) -> Any:
        """Every queue with a live or dead job, and each that was ever paused, by name."""
        return seen(self._home, connection, _queues(self._home.statements))


def _queues(sql: Statements) -> Steps[list[Queue]]:
    return [Queue(*row) for row in (yield from db.queues(sql))]


class Tasks(dict[str, Task[..., Any]]):
    """`app.tasks`: the app's tasks by name. Pause and resume take a Task or the name of one, be it another app's."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self._home = home

    @overload
    def pause(
        self,
        task: str | Task[..., Any],
        until: datetime | timedelta | None = None,
        *,
        by: str | None = None,
        connection: SyncConnection | None = None,
    ) -> None: ...
    @overload
    def pause(
        self,
        task: str | Task[..., Any],
        until: datetime | timedelta | None = None,
        *,
        by: str | None = None,
        connection: AsyncConnection,
    ) -> Coroutine[Any, Any, None]: ...
    def pause(
        self,
        task: str | Task[..., Any],
        until: datetime | timedelta | None = None,
        *,
        by: str | None = None,
        connection: SyncConnection | AsyncConnection | None = None,
    ) -> Awaitable[None] | None:
        """No job of this task starts from now on, whatever its queue; as `app.queues.pause`."""
        known = _task(task)
        moment_, after = until_when(until)
        steps = db.pause_task(self._home.statements, known, until=moment_, seconds=after, by=_who(by))
        return act(self._home, connection, steps, lambda _: _say(True, "task_paused", "task", known, by))

    @overload
    def resume(self, task: str | Task[..., Any], *, connection: SyncConnection | None = None) -> bool: ...
    @overload
    def resume(self, task: str | Task[..., Any], *, connection: AsyncConnection) -> Coroutine[Any, Any, bool]: ...
    def resume(
        self, task: str | Task[..., Any], *, connection: SyncConnection | AsyncConnection | None = None
    ) -> bool | Awaitable[bool]:
        """Jobs of this task may start again; False if it was not paused."""
        known = _task(task)
        steps = db.resume_task(self._home.statements, known)
        return act(self._home, connection, steps, lambda done: _say(done, "task_resumed", "task", known))

    def paused(self) -> list[PausedTask]:
        """The tasks that are paused now, by name; also those of other apps on this schema."""
        return [PausedTask(*row) for row in self._home.look(db.paused_tasks(self._home.statements))]


def _task(task: object) -> str:
    return task.name if isinstance(task, Task) else name("task", task)


def _who(by: object) -> str | None:
    if by is not None:
        key("by", by)
    return by  # type: ignore[return-value]


def _say(done: bool, event: str, kind: str, what: str, by: str | None = None) -> None:
    if not done:
        return
    verb = event.partition("_")[2]
    log.info("%s %s: %s%s", kind, what, verb, f" by {by}" if by else "", extra={"event": event, kind: what})


# -- app.jobs ----------------------------------------------------------------------------------------------------------


class Steered:
    """The part of `app.jobs` that changes what becomes of live jobs."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @overload
    def cancel(self, job_id: int, why: str = WHY, *, connection: SyncConnection | None = None) -> bool: ...
    @overload
    def cancel(self, job_id: int, why: str = WHY, *, connection: AsyncConnection) -> Coroutine[Any, Any, bool]: ...
    @overload
    def cancel(
        self,
        *,
        why: str = WHY,
        dry_run: bool = False,
        connection: SyncConnection | None = None,
        **which: Unpack[LiveFilter],
    ) -> list[int]: ...
    @overload
    def cancel(
        self, *, why: str = WHY, dry_run: bool = False, connection: AsyncConnection, **which: Unpack[LiveFilter]
    ) -> Coroutine[Any, Any, list[int]]: ...
    def cancel(
        self,
        job_id: int | None = None,
        why: str = WHY,
        *,
        dry_run: bool = False,
        connection: SyncConnection | AsyncConnection | None = None,
        **which: Unpack[LiveFilter],
    ) -> Any:
        """Cancels a job by id, or those that a filter finds (see LiveFilter); True or False, or the ids.

        One that nobody runs ends at once and never starts. One that runs is asked to end, within a second or so: an
        async one by CancelledError, a sync one by `ctx.cancelled`. Whatever it then returns or raises it is cancelled,
        and never tried again. False, or left out, is what has ended or was asked before. dry_run: only says which. The
        ids are looked up first; what starts in between is asked to end. Handlers of `cancelled` hear in this process of
        what ended at once, after the commit; not with a connection=, whose transaction may yet be rolled back."""
        said = reason(why)
        sql, heard = self._home.statements, list[db.Cancelled]()
        told = partial(_tell_cancelled, self._home.events, heard)
        if job_id is not None:
            if which or dry_run:
                raise InvalidOption("give either one job's id or filters; several ids are ids=[…]")
            ids = [checked_id(job_id)]
            one = _bool(cancel(sql, ids, said, heard.extend))
            return act(self._home, connection, one, lambda done: _say_cancelled(ids if done else []), told)
        some = _list(cancel_some(sql, filtered(which), said, heard.extend, dry_run=dry_run))
        return act(self._home, connection, some, lambda done: _say_cancelled([] if dry_run else done), told)

    @overload
    def retry_now(self, job_id: int, *, connection: SyncConnection | None = None) -> bool: ...
    @overload
    def retry_now(self, job_id: int, *, connection: AsyncConnection) -> Coroutine[Any, Any, bool]: ...
    @overload
    def retry_now(self, *, connection: SyncConnection | None = None, **which: Unpack[LiveFilter]) -> list[int]: ...
    @overload
    def retry_now(
        self, *, connection: AsyncConnection, **which: Unpack[LiveFilter]
    ) -> Coroutine[Any, Any, list[int]]: ...
    def retry_now(
        self,
        job_id: int | None = None,
        *,
        connection: SyncConnection | AsyncConnection | None = None,
        **which: Unpack[LiveFilter],
    ) -> Any:
        """Makes a queued job that waits for its time, or for its retry, due now; or those that a filter finds.

        False, or left out, is what has nothing to wait for. A sleeping worker is woken. Attempts count as before."""
        sql = self._home.statements
        return self._do("retry_now", partial(retry_now, sql), job_id, which, connection, ("job_made_due", "due now"))

    @overload
    def change(
        self,
        job_id: int,
        *,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        connection: SyncConnection | None = None,
    ) -> bool: ...
    @overload
    def change(
        self,
        job_id: int,
        *,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        connection: AsyncConnection,
    ) -> Coroutine[Any, Any, bool]: ...
    @overload
    def change(
        self,
        *,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        connection: SyncConnection | None = None,
        **which: Unpack[LiveFilter],
    ) -> list[int]: ...
    @overload
    def change(
        self,
        *,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        connection: AsyncConnection,
        **which: Unpack[LiveFilter],
    ) -> Coroutine[Any, Any, list[int]]: ...
    def change(
        self,
        job_id: int | None = None,
        *,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        connection: SyncConnection | AsyncConnection | None = None,
        **which: Unpack[LiveFilter],
    ) -> Any:
        """Gives a queued job, or those that a filter finds, another priority, another time (run_at, or delay in seconds
        from now), or both.

        False, or left out, is what it cannot be done to: it is not queued, or would have expired by then."""
        act = changing(self._home.statements, priority=priority, run_at=run_at, delay=delay)
        return self._do("change", act, job_id, which, connection, ("job_changed", "changed"))

    def _do(
        self,
        verb: str,
        act_on: Callable[[list[int]], Steps[list[int]]],
        job_id: int | None,
        which: LiveFilter,
        connection: SyncConnection | AsyncConnection | None,
        said: tuple[str, str],
    ) -> Any:
        if job_id is None:
            some = of_queued(self._home.statements, filtered_queued(which, verb), act_on)
            return act(self._home, connection, some, lambda done: say_jobs(done, *said))
        if which:
            raise InvalidOption("give either one job's id or filters; several ids are ids=[…]")
        ids = [checked_id(job_id)]
        return act(self._home, connection, _bool(act_on(ids)), lambda done: say_jobs(ids if done else [], *said))


def changing(
    sql: Statements,
    *,
    priority: int | None = None,
    run_at: datetime | None = None,
    delay: float | timedelta | None = None,
) -> Callable[..., Steps[list[int]]]:
    """Gives queued jobs (ids, told) another priority or another time; the ids that got it. Checked before any step."""
    if priority is None and run_at is None and delay is None:
        raise InvalidOption("change() needs a priority, a run_at or a delay")
    if priority is not None:
        whole("priority", priority, -100, 100)
    if run_at is not None:
        moment("run_at", run_at)
        if delay is not None:
            raise InvalidOption("give either delay or run_at, not both")
    after = None if delay is None else seconds("delay", delay)
    some = partial(db.change, sql, priority=priority, run_at=run_at, delay=after)
    return lambda ids, told=None: _in_batches(ids, some, told)


def _bool(steps: Steps[Any]) -> Steps[bool]:
    return bool((yield from steps))


def _list(steps: Steps[dict[int, bool]]) -> Steps[list[int]]:
    return list((yield from steps))


def _tell_cancelled(events: Events, done: list[db.Cancelled]) -> None:
    """Of those that have ended; who runs the others tells of them when they do."""
    events.tell([cancelled(*job) for job in done if job.why is not None])


def _say_cancelled(ids: list[int]) -> None:
    say_jobs(ids, "jobs_cancelled", "cancelled or asked to end")


def say_jobs(ids: list[int], event: str, what: str) -> None:
    """A line in the log of what was done to jobs, if any were."""
    if ids:
        some = ", ".join(map(str, ids[:20])) + (", …" if len(ids) > 20 else "")
        count, one = ("1 job", {"job_id": ids[0]}) if len(ids) == 1 else (f"{len(ids)} jobs", {})
        log.info("%s %s: %s", count, what, some, extra={"event": event, **one})
