"""The operator's hands on the dead-letter table: redrive, purge. Each finds its jobs and acts in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

from pgqueue import db
from pgqueue.arguments import to_json
from pgqueue.drivers import Steps
from pgqueue.errors import InvalidOption, seconds
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
    **which: Unpack[DeadFilter],
) -> Steps[list[int]]:
    """Sends dead jobs back to their queues; their ids. args: new arguments, a dict or a list, for each of them. told:
    called with (how many, of how many) before each batch; nothing is committed before the last.

    Atomic: all or none. Twice gives one job. Raises UniqueKeyTaken when a live job holds the unique key of one of them.
    """
    text = None
    if args is not None:
        if not isinstance(args, dict | list):
            raise InvalidOption(
                f"args must be a dict of named or a list of positional arguments, not {type(args).__name__}"
            )
        text = to_json(args, "args", MAX_ARGS_BYTES)
    ids = yield from _find(sql, which)
    if dry_run:
        return ids
    done: list[int] = []
    for start in range(0, len(ids), BATCH):
        if told is not None:
            told(start, len(ids))
        done += yield from db.redrive(sql, ids[start : start + BATCH], text)
    return done


def purge(
    sql: Statements,
    *,
    dry_run: bool = False,
    told: Callable[[int, int], None] | None = None,
    **which: Unpack[DeadFilter],
) -> Steps[list[int]]:
    """Removes jobs from the dead-letter table for good; their ids. told: as of redrive."""
    ids = yield from _find(sql, which)
    if dry_run:
        return ids
    done: list[int] = []
    for start in range(0, len(ids), BATCH):
        if told is not None:
            told(start, len(ids))
        done += yield from db.purge(sql, ids[start : start + BATCH])
    return done


def _find(sql: Statements, which: DeadFilter) -> Steps[list[int]]:
    """A filter that was forgotten must not mean every job."""
    everything = which.pop("everything", False)
    if not everything and not any(value is not None for name, value in which.items() if name != "limit"):
        raise InvalidOption("say which dead jobs: an id, task, queue, reason, error or age; or everything=True")
    for age in ("older_than", "younger_than"):
        if which.get(age) is not None:
            which[age] = seconds(age, which[age])
    return (yield from db.find_dead(sql, **which))  # type: ignore[misc]
