"""The operator's hands on the dead-letter table: redrive, purge. Each finds its jobs and acts in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

from pgqueue import db
from pgqueue.arguments import to_json
from pgqueue.drivers import Steps
from pgqueue.errors import MAX_ID, InvalidOption, checked_ids, seconds, whole
from pgqueue.settings import MAX_ARGS_BYTES
from pgqueue.sql import Statements

BATCH = 5_000  # jobs a statement


class DeadFilter(TypedDict, total=False):
    """Which jobs of the dead-letter table: all that are given must hold; one must be given, or everything=True.

    ids · task · queue · reason (see DeadReason) · error: text contained in the last error, as it stands ·
    older_than, younger_than: seconds since death · limit: at most so many, oldest death first.
    """

    ids: list[int]
    task: str
    queue: str
    reason: str
    error: str
    older_than: float
    younger_than: float
    limit: int
    everything: bool


def redrive(
    sql: Statements,
    *,
    args: Any = None,
    dry_run: bool = False,
    told: Callable[[int, int], None] | None = None,
    heard: Callable[[list[db.Redriven]], None] | None = None,
    **which: Unpack[DeadFilter],
) -> Steps[list[int]]:
    """Sends dead jobs back to their queues; their ids. args: new arguments, a dict or a list, for each of them. told:
    called with (how many, of how many) before each batch; heard: with each batch as it is done. Nothing is committed
    before the last.

    Atomic: all or none. Twice gives one job. Raises UniqueKeyTaken when a live job holds the unique key of one of them.
    """
    text = None
    if args is not None:
        if not isinstance(args, dict | list):
            raise InvalidOption(
                f"args must be a dict of named or a list of positional arguments, not {type(args).__name__}"
            )
        text = to_json(args, "args", MAX_ARGS_BYTES)

    def some(ids: list[int]) -> Steps[list[int]]:
        done = yield from db.redrive(sql, ids, text)
        if heard is not None:
            heard(done)
        return [job.id for job in done]

    return _each(sql, _checked(which), some, dry_run=dry_run, told=told)


def purge(
    sql: Statements,
    *,
    dry_run: bool = False,
    told: Callable[[int, int], None] | None = None,
    **which: Unpack[DeadFilter],
) -> Steps[list[int]]:
    """Removes jobs from the dead-letter table for good; their ids. told: as of redrive."""
    return _each(sql, _checked(which), lambda ids: db.purge(sql, ids), dry_run=dry_run, told=told)


def _each(
    sql: Statements,
    which: DeadFilter,
    act: Callable[[list[int]], Steps[list[int]]],
    *,
    dry_run: bool,
    told: Callable[[int, int], None] | None,
) -> Steps[list[int]]:
    ids = yield from db.find_dead(sql, **which)  # type: ignore[misc]
    if dry_run:
        return ids
    done: list[int] = []
    for start in range(0, len(ids), BATCH):
        if told is not None:
            told(start, len(ids))
        done += yield from act(ids[start : start + BATCH])
    return done


def _checked(which: DeadFilter) -> DeadFilter:
    """The filter, checked before any step. One that was forgotten must not mean every job."""
    unknown = sorted(which.keys() - DeadFilter.__annotations__.keys())
    if unknown:
        raise InvalidOption(f"there is no filter {unknown[0]!r}; there are {', '.join(DeadFilter.__annotations__)}")
    everything = which.pop("everything", False)
    if not everything and not any(value is not None for name, value in which.items() if name != "limit"):
        raise InvalidOption("say which dead jobs: an id, task, queue, reason, error or age; or everything=True")
    if which.get("ids") is not None:
        which["ids"] = checked_ids(which["ids"])
    if which.get("limit") is not None:
        whole("limit", which["limit"], 1, MAX_ID)
    for age in ("older_than", "younger_than"):
        if which.get(age) is not None:
            which[age] = seconds(age, which[age])
    return which
