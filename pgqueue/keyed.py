"""An enqueue whose unique key may be held: it makes a job, keeps the one that there is, changes it, or raises.

Before: enqueue.py. Below: db.py, a statement a function. Promise: an enqueue finds the holder of its key, or makes one,
at every instant; what it has written when it finds a holder gone, or claimed just now, is taken back before it looks
again. So a chunk takes its keys in one order, and then the rows of their holders in one order, and two chunks wait for
each other one way only; and no transaction keeps the lock of a row that somebody runs, whose settle would wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pgqueue import db
from pgqueue.drivers import NO_TRANSACTION, Call, Steps, sqlstate
from pgqueue.errors import UniqueKeyTaken
from pgqueue.sql import Statements
from pgqueue.unique import CLAIMED, FINISHED, PERIOD, Unique

Row = tuple[Any, ...]  # (id, run_at, created_at) of a new job, of a chunk its id alone; of a holder as db.holder has it
New = dict[int, Row]  # jobs that were made, by their places in the chunk


class Wanted(NamedTuple):
    """A job to be enqueued: its columns, and what it is unique by; None: nothing."""

    columns: dict[str, Any]
    by: Unique | None

    @property
    def scope(self) -> int:
        return FINISHED if self.by is None else self.by.scope


def enqueue(sql: Statements, columns: dict[str, Any], by: Unique) -> Steps[tuple[Row, bool]]:
    """The new job, or the one that holds its key and true. Raises UniqueKeyTaken; nothing was written then."""
    job = Wanted(columns | {"unique_key": by.key}, by)
    while True:
        if by.scope == FINISHED:
            row, existing = yield from db.enqueue(sql, job.columns)
            if not existing:
                return row[:3], False
            held = {by.key: row}
        else:
            new, held = yield from _INSERT[by.scope](sql, [job])
            if new:
                return new[0], False
        if by.key in held:
            met = yield from _meet_alone(sql, job, held[by.key])
            if met is not None:
                return met, True
        # The holder ended, or was claimed, between two statements: the key is free now, or it runs.


def enqueue_many(sql: Statements, jobs: Sequence[Wanted]) -> Steps[list[int]]:
    """The ids of the jobs, or of those that hold their keys, in input order. In a transaction, which stays as it was
    before a call that raises if the caller goes back to a savepoint. Raises UniqueKeyTaken."""
    if not any(job.by for job in jobs):
        done = yield from _enqueue_chunk(sql, jobs)
        assert done is not None  # they meet nobody
        return done
    yield Call("savepoint pgqueue_enqueue_chunk")
    while (done := (yield from _enqueue_chunk(sql, jobs))) is None:
        # To insert what is left, while we hold other keys, would be out of order: two batches that did so waited for
        # each other for ever.
        yield Call("rollback to savepoint pgqueue_enqueue_chunk")
    yield Call("release savepoint pgqueue_enqueue_chunk")
    return done


def _enqueue_chunk(sql: Statements, jobs: Sequence[Wanted]) -> Steps[list[int] | None]:
    """None: a holder is gone, or was claimed just now; the caller takes all of it back and begins anew."""
    ids: dict[int, int] = {}
    meetings: list[tuple[int, Wanted, Row]] = []
    for scope, insert in _INSERT.items():
        places = [place for place, job in enumerate(jobs) if job.scope == scope]
        if not places:
            continue
        new, held = yield from insert(sql, [jobs[place] for place in places])
        for nth, place in enumerate(places):
            job = jobs[place]
            if nth in new:
                ids[place] = new[nth][0]
            elif job.by is None or job.by.key not in held:
                return None
            else:
                meetings.append((place, job, held[job.by.key]))
    met = yield from _meet(sql, [(job, row) for _, job, row in sorted(meetings, key=lambda meeting: meeting[0])])
    if met is None:
        return None
    ids.update((place, row[0]) for place, _, row in meetings)
    return [ids[place] for place in range(len(jobs))]


# -- make them, or find who holds their keys ---------------------------------------------------------------------------


def _insert_finished(sql: Statements, jobs: Sequence[Wanted]) -> Steps[tuple[New, db.Rowed]]:
    """Those whose key is held until its job has ended, and those without one."""
    made = yield from db.enqueue_many(sql, _arrays(jobs))
    left = [job.by.key for place, job in enumerate(jobs) if place not in made and job.by is not None]
    held = (yield from db.holders(sql, left)) if left else {}
    return {place: (id_,) for place, id_ in made.items()}, held


def _insert_claimed(sql: Statements, jobs: Sequence[Wanted]) -> Steps[tuple[New, db.Rowed]]:
    new = _first_of_each(jobs, (yield from db.enqueue_queued(sql, _arrays(jobs))))
    left = [job.by.key for place, job in enumerate(jobs) if place not in new and job.by is not None]
    return new, (yield from db.holders_queued(sql, left)) if left else {}


def _insert_periods(sql: Statements, jobs: Sequence[Wanted]) -> Steps[tuple[New, db.Rowed]]:
    """Asked before and after: an insert that meets a key locks it until the caller commits."""
    held = yield from db.holders_periods(sql, [job.by.key for job in jobs if job.by is not None])
    first: dict[str, Wanted] = {}
    for job in jobs:
        if job.by is not None and job.by.key not in held:
            first.setdefault(job.by.key, job)
    if not first:
        return {}, held
    periods = {"unique_for": [job.by and job.by.period for job in first.values()]}
    made = yield from db.enqueue_periods(sql, _arrays(list(first.values())) | periods)
    new = _first_of_each(jobs, made)
    left = [
        job.by.key
        for place, job in enumerate(jobs)
        if place not in new and job.by is not None and job.by.key not in held
    ]
    return new, (held | (yield from db.holders_periods(sql, left))) if left else held


# In this order: keys of different scopes never meet.
_INSERT = {FINISHED: _insert_finished, CLAIMED: _insert_claimed, PERIOD: _insert_periods}


def _first_of_each(jobs: Sequence[Wanted], made: db.Rowed) -> New:
    """Of several with one key the first was inserted."""
    places: dict[str, int] = {}
    for place, job in enumerate(jobs):
        if job.by is not None and job.by.key in made:
            places.setdefault(job.by.key, place)
    return {place: made[key] for key, place in places.items()}


def _arrays(jobs: Sequence[Wanted]) -> dict[str, list[Any]]:
    columns = {name: [job.columns[name] for job in jobs] for name in jobs[0].columns}
    columns["tags"] = [None if tags is None else _array(tags) for tags in columns["tags"]]
    return columns


def _array(values: list[str]) -> str:
    """A text[] literal; unnest cannot pass arrays of different lengths side by side."""
    return "{" + ",".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values) + "}"


# -- what becomes of who holds them ------------------------------------------------------------------------------------


def _meet(sql: Statements, meetings: Sequence[tuple[Wanted, Row]]) -> Steps[list[Row] | None]:
    """The holders as they are afterwards. None: one was claimed just now; go back to a savepoint, for its row may be
    locked."""
    changing = []
    for job, row in meetings:
        assert job.by is not None
        if job.by.on_conflict == "raise":
            raise UniqueKeyTaken(
                f"job {row[0]} holds the unique key {job.by.key[:80]!r}: wait for it to let go of it, cancel it, "
                "or enqueue with another on_conflict; nothing was enqueued"
            )
        if _changes(job, row):
            changing.append((job, job.by, row))
    if not changing:
        return [row for _, row in meetings]
    calls: dict[str, list[Any]] = {
        "ids": [row[0] for _, _, row in changing],
        "args": [job.columns["args"] if by.replaces_args else None for job, by, _ in changing],
        "moved": [by.moved for _, by, _ in changing],
        "debounce_for": [by.debounce_for for _, by, _ in changing],
        **{name: [job.columns[name] for job, _, _ in changing] for name in ("run_at", "delay", "wake")},
    }
    changed = yield from db.replace(sql, calls)
    if not changed.keys() >= set(calls["ids"]):
        return None
    return [changed.get(row[0], row) for _, row in meetings]


def _meet_alone(sql: Statements, job: Wanted, row: Row) -> Steps[Row | None]:
    """As _meet, with a savepoint of its own where one is needed."""
    if not _changes(job, row):
        met = yield from _meet(sql, [(job, row)])
        return met[0] if met else None
    try:
        yield Call("savepoint pgqueue_replace")
    except Exception as error:
        if sqlstate(error) != NO_TRANSACTION:
            raise
        met = yield from _meet(sql, [(job, row)])  # it commits by itself, and keeps no lock
        return met[0] if met else None
    met = yield from _meet(sql, [(job, row)])
    if met is None:
        yield Call("rollback to savepoint pgqueue_replace")
    yield Call("release savepoint pgqueue_replace")
    return met[0] if met else None


def _changes(job: Wanted, row: Row) -> bool:
    """Whether the call wants to change the holder, and nobody ran it when it was looked at."""
    return job.by is not None and (job.by.replaces_args or job.by.moved is not None) and row[3] == "queued"
