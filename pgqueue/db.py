"""The only module that executes SQL: one function a statement, in the order of a job's life.

Each is a generator of `Call`s (drivers/ runs it on any connection, sync or async), takes the statements of one schema
first, and returns plain data. `now` is for tests: None means the server's clock, which is the only one that counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple
from uuid import UUID

from psycopg import sql as psycopg_sql

from pgqueue.drivers import UNIQUE_VIOLATION, Call, Rows, Steps, sqlstate
from pgqueue.errors import UniqueKeyTaken
from pgqueue.retention import Retention
from pgqueue.rights import Right
from pgqueue.sql import Statements

Now = datetime | None


# -- enqueue ------------------------------------------------------------------------------------------------------


def enqueue(sql: Statements, columns: dict[str, Any]) -> Steps[tuple[tuple[Any, ...], bool]]:
    """(id, run_at, …) and false; with a unique key that a live job holds, that job's row (see holder) and true."""
    while True:
        rows = yield Call(sql["enqueue"], columns, notifies=columns["wake"])
        if rows:
            return rows[0], False
        found = yield from holder(sql, columns["unique_key"])
        if found is not None:
            return found, True
        # The holder ended between the two statements: the key is free now.


Rowed = dict[str, tuple[Any, ...]]  # what a statement says of a job, by its unique key


def enqueue_many(sql: Statements, columns: dict[str, list[Any]]) -> Steps[dict[int, int]]:
    """The ids of the new jobs by their places; none for one whose unique key a live job, or an earlier one, holds."""
    rows = yield Call(sql["enqueue_many"], columns | {"table": _jobs(sql)}, notifies=any(columns["wake"]))
    return {row[0] - 1: row[1] for row in rows}


def enqueue_queued(sql: Statements, columns: dict[str, list[Any]]) -> Steps[Rowed]:
    """(id, run_at, created_at) of the new jobs, which hold their keys until their first claim."""
    rows = yield Call(sql["enqueue_queued"], columns, notifies=any(columns["wake"]))
    return {row[0]: row[1:4] for row in rows}


def enqueue_periods(sql: Statements, columns: dict[str, list[Any]]) -> Steps[Rowed]:
    """(id, run_at, created_at) of the new jobs, which hold their keys for `unique_for` seconds. No key twice."""
    rows = yield Call(sql["enqueue_periods"], columns | {"table": _jobs(sql)}, notifies=any(columns["wake"]))
    return {row[0]: row[1:4] for row in rows}


def _jobs(sql: Statements) -> str:
    return psycopg_sql.Identifier(sql.schema, "jobs").as_string(None)


def enqueue_alike(sql: Statements, columns: dict[str, Any]) -> Steps[list[int]]:
    """The ids of jobs that differ in their arguments alone, in input order; args: JSON texts, a line each."""
    rows = yield Call(sql["enqueue_alike"], columns, notifies=columns["wake"])
    return [row[0] for row in rows]


def holder(sql: Statements, unique_key: str) -> Steps[tuple[Any, ...] | None]:
    """The live job that holds a unique key."""
    rows = yield Call(sql["holder"], {"unique_key": unique_key})
    return rows[0] if rows else None


def holders(sql: Statements, keys: Sequence[str]) -> Steps[Rowed]:
    """The live jobs that hold these unique keys, each as holder has it."""
    return {row[9]: row[:9] for row in (yield Call(sql["holders"], {"keys": sorted(set(keys))}))}


def holders_queued(sql: Statements, keys: Sequence[str]) -> Steps[Rowed]:
    """As holders, of keys that are held until the first claim."""
    return {row[9]: row[:9] for row in (yield Call(sql["holders_queued"], {"keys": sorted(set(keys))}))}


def holders_periods(sql: Statements, keys: Sequence[str]) -> Steps[Rowed]:
    """As holders, of keys that are held for a period; the jobs may have ended."""
    return {row[9]: row[:9] for row in (yield Call(sql["holders_periods"], {"keys": sorted(set(keys))}))}


def replace(sql: Statements, calls: dict[str, list[Any]]) -> Steps[dict[int, tuple[Any, ...]]]:
    """Gives queued jobs what later calls say, and returns those that it changed, by id, as holder has them. Of one that
    is missing the row may be locked: go back to a savepoint."""
    rows = yield Call(sql["replace"], calls, notifies=any(calls["wake"]))
    return {row[0]: row[:9] for row in rows}


# -- claim --------------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """One claimed row as the worker reads it: JSON as text, dates as seconds, so that one bad row spoils no batch.

    args: None when it was claimed bare."""

    id: int
    task: str
    queue: str
    priority: int
    attempt: int
    max_attempts: int
    fence: int
    crashes: int
    run_at: float
    created_at: float
    started_at: float
    timeout: float | None
    args: str | None
    retry: str | None
    tags: list[str] | None
    meta: str | None

    def __repr__(self) -> str:  # without what it holds: an error report prints the variables around it
        return f"<Claim of job {self.id}, task {self.task}, attempt {self.attempt}, fence {self.fence}>"


_AS_CLAIM: Callable[[tuple[Any, ...]], Claim] = partial(tuple.__new__, Claim)  # a third of the time of Claim._make


def claim(
    sql: Statements,
    worker_id: UUID,
    tasks: Sequence[str],
    queues: Sequence[str] | None,
    limit: int,
    after: str = "",
    now: Now = None,
    *,
    bare: bool = False,
) -> Steps[list[Claim]]:
    """Up to `limit` due jobs, now running under this worker's name, in the order they should start. bare: without the
    JSON they hold, which `stored` gives."""
    rows = yield Call(
        sql["claim"],
        {
            "worker_id": worker_id,
            "tasks": list(tasks),
            "queues": None if queues is None else list(queues),
            "after": after,
            "limit": limit,
            "bare": bare,
            "now": now,
        },
        binary=True,
    )
    return list(map(_AS_CLAIM, rows))


class Lane(NamedTuple):
    """A queue and a priority, and the lowest (run_at, id) that is to be claimed there; run_at in epoch seconds."""

    queue: str
    priority: int
    run_at: float
    id: int


def claim_above(
    sql: Statements,
    worker_id: UUID,
    tasks: Sequence[str],
    queues: Sequence[str] | None,
    limit: int,
    lanes: Sequence[Lane],
    after: str = "",
    now: Now = None,
    *,
    bare: bool = False,
) -> Steps[list[Claim]]:
    """As claim, in these lanes alone, none of which occurs twice."""
    rows = yield Call(
        sql["claim_above"],
        {
            "worker_id": worker_id,
            **_which(tasks, queues),
            "after": after,
            "limit": limit,
            "bare": bare,
            "now": now,
            "lanes": [lane.queue for lane in lanes],
            "priorities": [lane.priority for lane in lanes],
            "run_ats": [lane.run_at for lane in lanes],
            "floor_ids": [lane.id for lane in lanes],
        },
        binary=True,
    )
    return list(map(_AS_CLAIM, rows))


def claim_suspect(
    sql: Statements,
    worker_id: UUID,
    tasks: Sequence[str],
    queues: Sequence[str] | None,
    now: Now = None,
    *,
    bare: bool = False,
) -> Steps[list[Claim]]:
    """One due job under which a process died, to be run with nothing beside it; none is an answer."""
    params = {"worker_id": worker_id, **_which(tasks, queues), "bare": bare, "now": now}
    return list(map(_AS_CLAIM, (yield Call(sql["claim_suspect"], params, binary=True))))


def suspects(
    sql: Statements, tasks: Sequence[str], queues: Sequence[str] | None, most: int, now: Now = None
) -> Steps[int]:
    """How many such jobs wait; `most` if there are more."""
    rows = yield Call(sql["suspects"], {**_which(tasks, queues), "most": most, "now": now})
    return rows[0][0]  # type: ignore[no-any-return]


def next_due(
    sql: Statements, tasks: Sequence[str], queues: Sequence[str] | None, now: Now = None
) -> Steps[float | None]:
    """Seconds until the earliest scheduled job comes due, not above 0 if it just did; None without one."""
    rows = yield Call(sql["next_due"], {**_which(tasks, queues), "now": now})
    return rows[0][0]  # type: ignore[no-any-return]


def stored(sql: Statements, claim: Claim, worker_id: UUID) -> Steps[Claim]:
    """A job that was claimed bare, with its JSON. ProgramLimitExceeded: as text it is more than the server can hold."""
    rows = yield Call(sql["stored"], {"worker_id": worker_id, "id": claim.id, "fence": claim.fence})
    if not rows:
        return claim
    args, retry, meta = rows[0]
    return claim._replace(args=args, retry=retry, meta=meta)


def release_ghosts(sql: Statements, worker_id: UUID, held: Sequence[int]) -> Steps[Rows]:
    """(id, task, attempt) of jobs the table says we hold and we do not know: given back."""
    return (yield Call(sql["ghosts"], {"worker_id": worker_id, "held": list(held)}))


# -- settle: one function for each verdict, many jobs at once; they return the ids that were still ours -------------


def _array(numbers: Iterable[int]) -> str:
    """As PostgreSQL reads it. A list would do as well, but psycopg looks at each element: 0.5 µs a job and array."""
    return f"{{{','.join(map(str, numbers))}}}"


def complete(
    sql: Statements,
    worker_id: UUID,
    ids: list[int],
    fences: list[int],
    results: list[str | None],
    now: Now = None,
    *,
    kept: list[bool] | None = None,
) -> Steps[set[int]]:
    """kept: whether each job goes to `finished_jobs`, or nowhere; None: all do."""
    params = {
        "worker_id": worker_id,
        "ids": _array(ids),
        "fences": _array(fences),
        "results": None if results.count(None) == len(results) else results,  # unnest pads what is short
        "kept": None if kept is None or all(kept) else kept,
        "now": now,
    }
    return _ids((yield Call(sql["complete"], params)))


def retry(
    sql: Statements,
    worker_id: UUID,
    ids: list[int],
    fences: list[int],
    delays: list[float],
    errors: list[str],
    tracebacks: list[str | None],
    now: Now = None,
) -> Steps[set[int]]:
    params = {
        "worker_id": worker_id,
        "ids": ids,
        "fences": fences,
        "delays": delays,
        "errors": errors,
        "tracebacks": tracebacks,
        "now": now,
    }
    return _ids((yield Call(sql["retry"], params)))


def dead_letter(
    sql: Statements,
    worker_id: UUID,
    ids: list[int],
    fences: list[int],
    reasons: list[str],
    errors: list[str],
    tracebacks: list[str | None],
    now: Now = None,
) -> Steps[set[int]]:
    params = {
        "worker_id": worker_id,
        "ids": ids,
        "fences": fences,
        "reasons": reasons,
        "errors": errors,
        "tracebacks": tracebacks,
        "now": now,
    }
    return _ids((yield Call(sql["dead_letter"], params)))


def give_back(
    sql: Statements, worker_id: UUID, ids: list[int], fences: list[int], delays: list[float | None], now: Now = None
) -> Steps[set[int]]:
    """A snooze (with a delay) or a release (None): the job is queued again and no attempt is used."""
    params = {"worker_id": worker_id, "ids": ids, "fences": fences, "delays": delays, "now": now}
    rows = yield Call(sql["give_back"], params)
    if None in delays:
        yield from wake(sql, sorted({row[1] for row in rows}), worker_id)
    return _ids(rows)


def crash(
    sql: Statements, worker_id: UUID, ids: list[int], fences: list[int], errors: list[str], now: Now = None
) -> Steps[set[int]]:
    """Sends back jobs under which a process of their own died, with one crash more and no attempt used."""
    params = {"worker_id": worker_id, "ids": ids, "fences": fences, "errors": errors, "now": now}
    return _ids((yield Call(sql["crash"], params)))


def hinder(
    sql: Statements,
    worker_id: UUID,
    ids: list[int],
    fences: list[int],
    delays: list[float],
    errors: list[str],
    tracebacks: list[str | None],
    *,
    most: int,
    longest: float,
    now: Now = None,
) -> Steps[dict[int, bool]]:
    """Sends back jobs that something other than they has ended, no attempt used; False: it has been so `most` times."""
    params = {
        "worker_id": worker_id,
        "ids": ids,
        "fences": fences,
        "delays": delays,
        "errors": errors,
        "tracebacks": tracebacks,
        "most": most,
        "longest": longest,
        "now": now,
    }
    return {row[0]: row[1] for row in (yield Call(sql["hinder"], params))}


def cancel_asked(
    sql: Statements, worker_id: UUID, ids: list[int], fences: list[int], now: Now = None, *, again: bool = False
) -> Steps[list[Cancelled]]:
    """Cancels those of these jobs that were asked to end while this worker ran them. again: an earlier
    call's answer may have been lost; what it did is told, too."""
    params = {"worker_id": worker_id, "ids": ids, "fences": fences, "again": again, "now": now}
    rows = yield Call(sql["cancel_asked"], params)
    yield from answer(sql, [row[0] for row in rows])
    return [Cancelled(*row) for row in rows]


def cancel_running(
    sql: Statements, worker_id: UUID, ids: list[int], fences: list[int], errors: list[str], now: Now = None
) -> Steps[set[int]]:
    params = {"worker_id": worker_id, "ids": ids, "fences": fences, "errors": errors, "now": now}
    return _ids((yield Call(sql["cancel_running"], params)))


def settled(sql: Statements, worker_id: UUID, ids: list[int], fences: list[int]) -> Steps[dict[int, bool]]:
    """Which of these claims have been settled already, asked after a settle whose answer was lost; and whether it is
    certain that it was us: not so for a job that left no row, once this worker's lease has ended."""
    rows = yield Call(sql["settled"], {"worker_id": worker_id, "ids": ids, "fences": fences})
    return {row[0]: row[1] for row in rows}


Standing = Literal["held", "completed", "lost"]


def standing(sql: Statements, worker_id: UUID, job_id: int, fence: int) -> Steps[Standing]:
    """What became of a claim that its job's own transaction was to complete, after a COMMIT that was not answered. Not
    in one transaction: the second statement is to see what the first has waited for. A job that left no row counts as
    completed while this worker's lease stands."""
    if (yield Call(sql["standing"], {"worker_id": worker_id, "id": job_id, "fence": fence})):
        return "held"
    done = yield from settled(sql, worker_id, [job_id], [fence])
    return "completed" if done.get(job_id) else "lost"


def progress(
    sql: Statements,
    worker_id: UUID,
    ids: list[int],
    fences: list[int],
    fractions: list[float],
    notes: list[str | None],
    said: list[int],
    now: Now = None,
) -> Steps[set[int]]:
    """Writes down how far these jobs are; those that are still ours. said: what orders the words of one claim."""
    params = {
        "worker_id": worker_id,
        "ids": ids,
        "fences": fences,
        "fractions": fractions,
        "notes": notes,
        "said": said,
        "now": now,
    }
    return _ids((yield Call(sql["progress"], params)))


def log_lines(
    sql: Statements,
    worker_id: UUID,
    ids: list[int],
    fences: list[int],
    numbers: list[int],
    ages: list[float],
    levels: list[str],
    messages: list[str],
    now: Now = None,
) -> Steps[set[int]]:
    """Writes down what these jobs said, each line so many seconds ago; those of which something was new."""
    params = {
        "worker_id": worker_id,
        "ids": ids,
        "fences": fences,
        "numbers": numbers,
        "ages": ages,
        "levels": levels,
        "messages": messages,
        "now": now,
    }
    return _ids((yield Call(sql["log_lines"], params)))


# -- rescue, cancel, expire, retry now, redrive, purge, prune -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rescued:
    """A job taken back from a worker that is gone. dead: its crashes were used up, it is in the dead-letter table.
    cancelled: it had been asked to end, and why."""

    id: int
    task: str
    queue: str
    attempt: int
    fence: int
    crashes: int
    dead: bool
    cancelled: str | None = None


def rescue(
    sql: Statements, workers: list[UUID], *, crashed: bool, why: str, max_crashes: int, now: Now = None
) -> Steps[list[Rescued]]:
    """Takes back the jobs of workers that are gone, and wakes somebody for them; what was asked to end has ended."""
    ended = yield Call(sql["cancel_lost"], {"workers": workers, "now": now})
    params = {"workers": workers, "crashed": crashed, "why": why, "max_crashes": max_crashes, "now": now}
    rows = yield Call(sql["rescue"], params)
    rescued = [Rescued(*row) for row in rows]
    queues = sorted({job.queue for job in rescued if not job.dead})
    if queues:
        yield from wake(sql, queues)
    yield from answer(sql, [row[0] for row in ended] + [job.id for job in rescued if job.dead])
    return rescued + [Rescued(*row) for row in ended]


class Cancelled(NamedTuple):
    """A job that was cancelled. why: None of one that runs and was asked to end."""

    id: int
    task: str
    queue: str
    attempt: int
    fence: int
    why: str | None


def cancel(sql: Statements, ids: Sequence[int], why: str, now: Now = None) -> Steps[list[Cancelled]]:
    """Cancels queued and blocked jobs, and asks those that run to end."""
    found = [row[0] for row in (yield Call(sql["hold"], {"ids": list(ids)}))]
    if not found:
        return []
    rows = yield Call(sql["cancel"], {"ids": found, "error": why, "now": now})
    workers = sorted({row[6] for row in rows if row[6] is not None})
    if workers:
        yield from tell(sql, workers)
    yield from answer(sql, [row[0] for row in rows if row[6] is None])
    return [Cancelled(*row[:6]) for row in rows]


def change(
    sql: Statements,
    ids: Sequence[int],
    *,
    priority: int | None = None,
    run_at: datetime | None = None,
    delay: float | None = None,
    now: Now = None,
) -> Steps[set[int]]:
    """Gives queued jobs another priority, another time, or both; and wakes somebody, who may have to wait less long."""
    params = {"ids": list(ids), "priority": priority, "run_at": run_at, "delay": delay, "now": now}
    rows = yield Call(sql["change"], params)
    yield from wake(sql, sorted({row[1] for row in rows}))
    return _ids(rows)


def expire(sql: Statements, limit: int, now: Now = None) -> Steps[Rows]:
    """Moves up to `limit` jobs that were not started in time: their (id, task, queue)."""
    rows = yield Call(sql["expire"], {"limit": limit, "now": now})
    yield from answer(sql, [row[0] for row in rows])
    return rows


def retry_now(sql: Statements, ids: list[int], now: Now = None) -> Steps[set[int]]:
    """Makes queued jobs that wait for their time due now, and wakes somebody for them."""
    rows = yield Call(sql["retry_now"], {"ids": ids, "now": now})
    yield from wake(sql, sorted({row[1] for row in rows}))
    return _ids(rows)


class Redriven(NamedTuple):
    """A job that was dead until now."""

    id: int
    task: str
    queue: str
    fence: int


def redrive(sql: Statements, ids: list[int], args: str | None = None, now: Now = None) -> Steps[list[Redriven]]:
    """Sends dead jobs back to their queues; those that were dead until now. UniqueKeyTaken: nothing was redriven."""
    taken = yield Call(sql["taken"], {"ids": ids})
    if taken:
        raise UniqueKeyTaken(
            f"live job {taken[0][1]} holds the unique key of job {taken[0][0]}: wait for it to end, or cancel it; "
            "nothing was redriven"
        )
    try:
        rows = yield Call(sql["redrive"], {"ids": ids, "args": args, "now": now})
    except Exception as error:
        if sqlstate(error) != UNIQUE_VIOLATION:
            raise
        raise UniqueKeyTaken(
            "two of these jobs have the same unique key, or another job took one just now: redrive them one by one; "
            "nothing was redriven"
        ) from error
    yield from wake(sql, sorted({row[2] for row in rows}))
    return sorted(Redriven(*row) for row in rows)


def purge(sql: Statements, ids: list[int]) -> Steps[list[int]]:
    """Removes jobs from the dead-letter table for good."""
    rows = yield Call(sql["purge"], {"ids": ids})
    return sorted(row[0] for row in rows)


def prune(sql: Statements, ahead: int, retention: float) -> Steps[tuple[int, int, int]]:
    """(made, emptied, dropped) partitions of `finished_jobs`. ahead: days; retention: seconds."""
    rows = yield Call(sql["prune"], {"ahead": ahead, "retention": retention})
    return rows[0]


def retain(sql: Statements, policies: Mapping[str, Retention]) -> Steps[list[str]]:
    """Writes down what these tasks keep; those whose row changed."""
    ordered = sorted(policies.items())
    each = {name: [getattr(policy, name) for _, policy in ordered] for name in Retention.NAMES}
    return [row[0] for row in (yield Call(sql["retain"], {"tasks": [task for task, _ in ordered], **each}))]


def to_prune(sql: Statements, pause: float, now: Now = None) -> Steps[dict[str, bool]]:
    """The tasks whose turn it is, ours for `pause` seconds; and whether each limits its finished jobs."""
    return dict((yield Call(sql["to_prune"], {"pause": pause, "now": now})))


def surplus(sql: Statements, tasks: list[str], retention: float, limit: int, now: Now = None) -> Steps[Rows]:
    """(id, finished_at) of finished jobs kept no longer, up to twice `limit`. retention: the default, in seconds."""
    return (yield Call(sql["surplus"], {"tasks": tasks, "retention": retention, "limit": limit, "now": now}))


def prune_finished(sql: Statements, ids: list[int], finished_at: list[datetime]) -> Steps[set[int]]:
    """Removes these finished jobs."""
    return _ids((yield Call(sql["prune_finished"], {"ids": ids, "finished_at": finished_at})))


def prune_periods(sql: Statements, limit: int, now: Now = None) -> Steps[int]:
    """How many keys were removed whose period is over."""
    return len((yield Call(sql["prune_periods"], {"limit": limit, "now": now})))


def prune_dead(sql: Statements, tasks: list[str], limit: int, now: Now = None) -> Steps[set[int]]:
    """Removes up to `limit` dead jobs that are kept no longer."""
    return _ids((yield Call(sql["prune_dead"], {"tasks": tasks, "limit": limit, "now": now})))


def prune_waiters(sql: Statements) -> Steps[int]:
    """How many rows were removed of processes that waited for a job and are gone."""
    return len((yield Call(sql["prune_waiters"])))


def prune_progress(sql: Statements, limit: int, now: Now = None) -> Steps[set[int]]:
    """Removes up to `limit` words on the progress of jobs that have ended a while ago."""
    return _ids((yield Call(sql["prune_progress"], {"limit": limit, "now": now})))


def prune_logs(sql: Statements, after: int, limit: int) -> Steps[int | None]:
    """Looks at up to `limit` jobs that said something, and removes that of jobs that are gone; the last one, None at
    the end."""
    rows = yield Call(sql["prune_logs"], {"after": after, "limit": limit})
    return rows[0][0]  # type: ignore[no-any-return]


# -- schedules ------------------------------------------------------------------------------------------------------


class Declared(NamedTuple):
    """What became of a schedule that was written: added, changed, same (it stood there), or taken (it is another's)."""

    outcome: str
    revision: int
    since: datetime
    last_tick: datetime | None
    next_tick: datetime | None


class Due(NamedTuple):
    """A schedule whose tick has come; or, without one, whose next tick is to be worked out."""

    name: str
    task: str
    cron: str | None
    every: float | None
    timezone: str
    missed: str
    missed_limit: int
    since: datetime
    last_tick: datetime | None
    next_tick: datetime | None
    revision: int
    problem: str | None


def declare(sql: Statements, columns: Mapping[str, Any], *, declared: bool, now: Now = None) -> Steps[Declared]:
    """Writes a schedule's row. columns: see Schedule.columns. declared: in code, by a worker that starts."""
    while True:
        rows = yield Call(sql["declare"], {**columns, "declared": declared, "now": now})
        if rows:
            return Declared(*rows[0])
        # Somebody wrote it after our statement had begun: the next one sees it.


def orphan(sql: Statements, tasks: Sequence[str], names: Sequence[str], now: Now = None) -> Steps[Rows]:
    """(name, task) of schedules of these tasks that were declared, and are not among these names; they fire no more."""
    return (yield Call(sql["orphan"], {"tasks": list(tasks), "names": list(names), "now": now}))


def forget(sql: Statements, keep: float, now: Now = None) -> Steps[Rows]:
    """Removes declared schedules that have been nobody's for `keep` seconds: their (name, task)."""
    return (yield Call(sql["forget"], {"keep": keep, "now": now}))


def due(
    sql: Statements, tasks: Sequence[str], limit: int, now: Now = None
) -> Steps[tuple[datetime, float | None, list[Due]]]:
    """(the server's clock, seconds until the next tick, the schedules that are due or not planned yet)."""
    rows = yield Call(sql["due"], {"tasks": list(tasks), "limit": limit, "now": now})
    return rows[0][0], rows[0][1], [Due(*row[2:]) for row in rows if row[2] is not None]


def plan(sql: Statements, name: str, revision: int, next_tick: datetime | None, problem: str | None) -> Steps[bool]:
    """Writes down the next tick, or why there is none; false if the schedule is another by now, or it stood there."""
    params = {"name": name, "revision": revision, "next_tick": next_tick, "problem": problem}
    return bool((yield Call(sql["plan"], params)))


class Fired(NamedTuple):
    """What a firing made: busy, if a live job of the schedule kept it from that; the jobs' ids, and their queue."""

    busy: bool
    ids: list[int]
    queue: str


def fire(
    sql: Statements,
    due: Due,
    ticks: Sequence[datetime],
    following: datetime | None,
    decided: datetime,
    passed: int,
    now: Now = None,
) -> Steps[Fired | None]:
    """A job for each of the ticks, and on to the following one; None: somebody else did it, or changed the schedule."""
    params = {
        "name": due.name,
        "revision": due.revision,
        "next_tick": due.next_tick,
        "ticks": list(ticks),
        "following": following,
        "decided": decided,
        "passed": passed,
        "now": now,
    }
    rows = yield Call(sql["fire"], params)
    return Fired(*rows[0][:3]) if rows else None


def pause_schedules(sql: Statements, names: Sequence[str], *, paused: bool, now: Now = None) -> Steps[dict[str, bool]]:
    """Those of the names that there are, and whether each was changed."""
    return dict((yield Call(sql["pause"], {"names": list(names), "paused": paused, "now": now})))


def run_now(sql: Statements, name: str, now: Now = None) -> Steps[tuple[Any, ...] | None]:
    """A job of a schedule: id, task, queue, priority, run_at, max_attempts, created_at, tags, meta; None: none such."""
    rows = yield Call(sql["run_now"], {"name": name, "now": now}, notifies=True)
    return rows[0][:9] if rows else None


def remove_schedules(sql: Statements, names: Sequence[str]) -> Steps[dict[str, bool]]:
    """Those that were removed, and whether code had declared each."""
    return dict((yield Call(sql["remove"], {"names": list(names)})))


# -- workers --------------------------------------------------------------------------------------------------------


def register(
    sql: Statements,
    worker_id: UUID,
    *,
    host: str,
    pid: int,
    lease: float,
    queues: Sequence[str] | None,
    tasks: Sequence[str],
    concurrency: int,
    version: str,
    now: Now = None,
) -> Steps[None]:
    """Writes a worker's row; its lease begins."""
    yield Call(
        sql["register"],
        {
            "id": worker_id,
            "host": host,
            "pid": pid,
            "lease": lease,
            "queues": None if queues is None else list(queues),
            "tasks": list(tasks),
            "concurrency": concurrency,
            "version": version,
            "now": now,
        },
    )


def heartbeat(
    sql: Statements, ids: list[UUID], lease: float, *, stopping: bool = False, now: Now = None
) -> Steps[set[UUID]]:
    """Renews leases; the workers that still have one."""
    rows = yield Call(sql["heartbeat"], {"ids": ids, "lease": lease, "stopping": stopping, "now": now})
    return {row[0] for row in rows}


def sleep(sql: Statements, worker_id: UUID, queues: Sequence[str] | None, seconds: float) -> Steps[None]:
    """From now on, and for so many seconds, an enqueue may wake this worker."""
    yield Call(sql["sleep"], {"worker_id": worker_id, "queues": list(queues or "*"), "seconds": seconds})


def rise(sql: Statements, worker_id: UUID) -> Steps[None]:
    """Nobody needs to wake this worker."""
    yield Call(sql["rise"], {"worker_id": worker_id})


def wake(sql: Statements, queues: Sequence[str], but: UUID | None = None) -> Steps[int]:
    """Wakes one sleeper for each of these queues; how many there were."""
    if not queues:
        return 0
    rows = yield Call(sql["wake"], {"queues": list(queues), "but": but})
    return rows[0][0]  # type: ignore[no-any-return]


def lapsed(sql: Statements, now: Now = None) -> Steps[list[UUID]]:
    """Workers whose lease has ended; their rows are gone now, and their jobs are to be rescued in this transaction."""
    return [row[0] for row in (yield Call(sql["lapsed"], {"now": now}))]


def leave(sql: Statements, ids: list[UUID]) -> Steps[None]:
    """Removes worker rows."""
    yield Call(sql["leave"], {"ids": ids})


class Order(NamedTuple):
    """What a worker is to obey. kind: queue or task, paused; cancel; or wait: somebody waits for a job's end. name: of
    the queue or the task; or why the job is to end. seconds: until it resumes by itself; None: it does not."""

    kind: Literal["queue", "task", "cancel", "wait"]
    name: str
    id: int | None
    fence: int | None
    seconds: float | None


def tell(sql: Statements, workers: Sequence[UUID] | None = None) -> Steps[int]:
    """Has these workers, or all of them, ask for their orders at once; how many there were."""
    rows = yield Call(sql["tell"], {"workers": None if workers is None else list(workers)}, notifies=True)
    return rows[0][0]  # type: ignore[no-any-return]


def orders(sql: Statements, worker_id: UUID) -> Steps[list[Order]]:
    """What is paused, which of this worker's jobs are to end, and whether anybody waits for a job."""
    return [Order(*row) for row in (yield Call(sql["orders"], {"worker_id": worker_id}))]


def answer(sql: Statements, ids: Sequence[int]) -> Steps[int]:
    """Has those look at once who wait for one of these jobs, which have ended; how many there were."""
    if not ids:
        return 0
    rows = yield Call(sql["answer"], {"ids": list(ids)})
    return rows[0][0]  # type: ignore[no-any-return]


# -- who waits for a job ----------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What has become of a job that is not live. state: None: it is nowhere. oldest: the number of the oldest
    transaction that has not ended; last_id: the highest that a job has had."""

    id: int
    state: str | None
    result: str | None
    reason: str | None
    error: str | None
    oldest: int
    last_id: int


def wait(sql: Statements, waiter: UUID, ids: Sequence[int], seconds: float) -> Steps[bool]:
    """From now on, and for so many seconds, whoever ends one of these jobs has this process look. Whether workers have
    to be told that somebody waits, since nobody else does."""
    rows = yield Call(sql["wait"], {"waiter": waiter, "ids": list(ids), "seconds": seconds})
    return rows[0][0]  # type: ignore[no-any-return]


def outcomes(sql: Statements, ids: Sequence[int], *, bare: bool = False) -> Steps[dict[int, Outcome]]:
    """What has become of those of these jobs that are live no more, by id. bare: without their results.
    ProgramLimitExceeded without it: one is more than the server can hold as text."""
    rows = yield Call(sql["outcomes"], {"ids": list(ids), "bare": bare})
    return {row[0]: Outcome(*row) for row in rows}


def horizon(sql: Statements) -> Steps[int]:
    """The number of a transaction that begins now."""
    return (yield Call(sql["horizon"]))[0][0]  # type: ignore[no-any-return]


def desist(sql: Statements, waiter: UUID, ids: Sequence[int] | None = None) -> Steps[None]:
    """This process waits for these jobs no more; None: for none."""
    yield Call(sql["desist"], {"waiter": waiter, "ids": None if ids is None else list(ids)})


# -- queues and tasks that are paused ---------------------------------------------------------------------------------


def pause_queue(
    sql: Statements, queue: str, *, until: datetime | None = None, seconds: float | None = None, by: str | None = None
) -> Steps[None]:
    """No job of this queue starts from now on."""
    yield Call(sql["pause_queue"], {"queue": queue, "until": until, "seconds": seconds, "by": by})
    yield from tell(sql)


def resume_queue(sql: Statements, queue: str) -> Steps[bool]:
    """Jobs of this queue may start again; False if it was not paused."""
    rows = yield Call(sql["resume_queue"], {"queue": queue})
    if rows:
        yield from tell(sql)
    return bool(rows)


def pause_task(
    sql: Statements, task: str, *, until: datetime | None = None, seconds: float | None = None, by: str | None = None
) -> Steps[None]:
    """No job of this task starts from now on."""
    yield Call(sql["pause_task"], {"task": task, "until": until, "seconds": seconds, "by": by})
    yield from tell(sql)


def resume_task(sql: Statements, task: str) -> Steps[bool]:
    """Jobs of this task may start again; False if it was not paused."""
    rows = yield Call(sql["resume_task"], {"task": task})
    if rows:
        yield from tell(sql)
    return bool(rows)


def queues(sql: Statements) -> Steps[Rows]:
    """(name, paused, since, by, until, queued, scheduled, running, blocked, dead) of every queue."""
    return (yield Call(sql["queues"]))


def paused_tasks(sql: Statements) -> Steps[Rows]:
    """(task, since, by, until) of the tasks that are paused."""
    return (yield Call(sql["paused_tasks"]))


# -- what operators ask -----------------------------------------------------------------------------------------------


def find_jobs(
    sql: Statements,
    *,
    ids: list[int] | None = None,
    state: str | None = None,
    task: str | None = None,
    queue: str | None = None,
    before: int | None = None,
    limit: int = 50,
    bare: bool = False,
) -> Steps[Rows]:
    """bare: without their JSON. ProgramLimitExceeded without it: as text it is larger than the server can hold."""
    params = {"ids": ids, "state": state, "task": task, "queue": queue, "before": before, "limit": limit, "bare": bare}
    return (yield Call(sql["find_jobs"], params))


def find_live(
    sql: Statements,
    *,
    ids: list[int] | None = None,
    task: str | None = None,
    queue: str | None = None,
    state: str | None = None,
    unique_key: str | None = None,
    tag: str | None = None,
    limit: int | None = None,
) -> Steps[list[int]]:
    params = {
        "ids": ids,
        "task": task,
        "queue": queue,
        "state": state,
        "unique_key": unique_key,
        "tag": tag,
        "limit": limit,
    }
    return [row[0] for row in (yield Call(sql["find_live"], params))]


def find_dead(
    sql: Statements,
    *,
    ids: list[int] | None = None,
    task: str | None = None,
    queue: str | None = None,
    reason: str | None = None,
    error: str | None = None,
    older_than: float | None = None,
    younger_than: float | None = None,
    limit: int | None = None,
) -> Steps[list[int]]:
    params = {
        "ids": ids,
        "task": task,
        "queue": queue,
        "reason": reason,
        "error": error,
        "older_than": older_than,
        "younger_than": younger_than,
        "limit": limit,
    }
    return [row[0] for row in (yield Call(sql["find_dead"], params))]


def left_to_run(sql: Statements, tasks: Sequence[str], queues: Sequence[str] | None) -> Steps[tuple[int, int]]:
    """(waited for, left for later) of a draining worker."""
    rows = yield Call(sql["left_to_run"], _which(tasks, queues))
    return rows[0][0], rows[0][1]


def queue_depth(sql: Statements) -> Steps[Rows]:
    """(queue, queued, scheduled, running, blocked, dead, age of the oldest due job in seconds) for each queue."""
    return (yield Call(sql["queue_depth"]))


def why(sql: Statements, job_id: int) -> Steps[Rows]:
    """(cause, detail, since) of each thing that keeps a job from running."""
    return (yield Call(sql["why"], {"id": job_id}))


def find_queues(sql: Statements) -> Steps[Rows]:
    """The columns of queue_stats, by queue."""
    return (yield Call(sql["find_queues"]))


def find_tasks(sql: Statements) -> Steps[Rows]:
    """The columns of task_stats, the busiest task first."""
    return (yield Call(sql["find_tasks"]))


def find_workers(sql: Statements) -> Steps[Rows]:
    """The columns of worker_stats, by host and process."""
    return (yield Call(sql["find_workers"]))


def picture(sql: Statements, seconds: float, most: int) -> Steps[Rows]:
    """(kind, row as JSON) of everything at once: see stats.picture."""
    return (yield Call(sql["picture"], {"seconds": seconds, "most": most}))


def find_schedules(sql: Statements, names: Sequence[str] | None = None) -> Steps[Rows]:
    """The schedules of these names, or all, by name."""
    return (yield Call(sql["find_schedules"], {"names": None if names is None else list(names)}))


def health(sql: Statements) -> Steps[Rows]:
    """(finding, level, value, unit, detail, fix) of each measure of the database under the queue."""
    return (yield Call(sql["health"]))


def server_clock(sql: Statements) -> Steps[tuple[float, int]]:
    """(seconds since 1970 by the server's clock, the process that answers)."""
    return (yield Call(sql["server_clock"]))[0]


def progress_of(sql: Statements, job_id: int) -> Steps[tuple[Any, ...] | None]:
    """(fraction, note, at, attempt) of a job that has said how far it is."""
    rows = yield Call(sql["progress_of"], {"id": job_id})
    return rows[0] if rows else None


def log_of(sql: Statements, job_id: int, attempt: int | None, limit: int) -> Steps[Rows]:
    """(attempt, at, level, message) of the last lines that a job said, oldest first."""
    return (yield Call(sql["log_of"], {"id": job_id, "attempt": attempt, "limit": limit}))


def schema_version(sql: Statements) -> Steps[str | None]:
    """The migration the schema stands at; None when it was migrated away."""
    rows = yield Call(sql["schema_version"])
    return rows[0][0] if rows else None


def server(sql: Statements) -> Steps[tuple[str, int, str, bool]]:
    """(version text, version number, encoding, standby) of what is at the other end; 0 and "" where it won't say."""
    # In a database of encoding SQL_ASCII psycopg reads text as bytes.
    texts = [
        one.decode("ascii", "replace") if isinstance(one, bytes) else one for one in (yield Call(sql["server"]))[0]
    ]
    version, number, encoding, standby = texts
    return version, int(number or 0), encoding or "", standby == "on"


def could_run(sql: Statements, verb: str) -> Steps[None]:
    """Plans the statement and runs nothing: the server's own error when a table, column or right that it needs is not
    there, whatever they are; no list of them has to be kept."""
    yield Call(sql.plan(verb), defaultdict(lambda: None))


def missing_rights(sql: Statements, rights: Sequence[Right]) -> Steps[tuple[list[Right], str]]:
    """Those of the rights that this role does not have, and who it is."""
    columns = zip(*rights, strict=True)
    params = {
        name: list(column) for name, column in zip(("kinds", "schemas", "names", "privileges"), columns, strict=True)
    }
    rows = yield Call(sql["missing_rights"], params)
    return [rights[position - 1] for position, _ in rows], rows[0][1] if rows else ""


class Ownership(NamedTuple):
    """What a role has that is to migrate a schema. owner: of what is in it, when this role does not belong to it."""

    role: str
    database: str
    there: bool
    may_make: bool
    may_use: bool
    owner: str | None
    owner_is_superuser: bool | None


def ownership(sql: Statements) -> Steps[Ownership]:
    """Of the role that asks, and of this schema."""
    return Ownership(*(yield Call(sql["ownership"], {"home": sql.schema}))[0])


def schema_parts(sql: Statements, home: str) -> Steps[Rows]:
    """(kind, parent, name, aspect, value) of everything in the schema `home`."""
    return (yield Call(sql["schema_parts"], {"home": home}))


def _which(tasks: Sequence[str], queues: Sequence[str] | None) -> dict[str, list[str] | None]:
    """The parameters that say whose jobs: these tasks', in these queues or in all."""
    return {"tasks": list(tasks), "queues": None if queues is None else list(queues)}


def _ids(rows: Rows) -> set[int]:
    return {row[0] for row in rows}
