"""Ticks that have come become jobs: any worker's chore, with a look at the very moment, so that nobody has to lead.

All that counts is the server's clock; ours only measures how long to wait. Each worker waits for the next tick of the
tasks it knows, and looks now and then for schedules that were added or changed meanwhile. All of them may see a tick
come; the statement that fires it lets one do it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pgqueue import db, schedule
from pgqueue.db import Due, Now
from pgqueue.drivers import Steps, sqlstate
from pgqueue.errors import InvalidOption
from pgqueue.sql import Statements

log = logging.getLogger("pgqueue")

BATCH = 100  # schedules of one look
LOST = 0.25  # seconds until another look, when somebody else had a schedule that was due: he may yet fail
KEEP_ORPHANS = 7 * 86_400.0  # seconds; long enough to be seen, and for a deploy that is taken back


def declare(
    sql: Statements, declared: Sequence[Mapping[str, Any]], tasks: Sequence[str], now: Now = None
) -> Steps[None]:
    """Writes down what a worker's code declares, and makes orphans of what it does no more. declared: the rows."""
    for columns in sorted(declared, key=lambda columns: str(columns["name"])):
        done = yield from schedule.plan(sql, columns, (yield from db.declare(sql, columns, declared=True, now=now)))
        name, task = columns["name"], columns["task"]
        when = columns["cron"] or f"every {columns['every']:g} s"
        fields = {"schedule": name, "task": task}
        if done.outcome == "taken":
            log.warning(
                "schedule %s is declared in code, but there is one of that name that was added at run time: it "
                "stays as it is; remove it, or give this one another name",
                name,
                extra={"event": "schedule_taken", **fields},
            )
        elif done.outcome != "same":
            log.info(
                "schedule %s of %s %s: %s, %s, next at %s",
                name, task, done.outcome, when, columns["timezone"], _utc(done.next_tick),
                extra={"event": f"schedule_{done.outcome}", **fields},
            )  # fmt: skip
    names = [columns["name"] for columns in declared]
    for name, task in (yield from db.orphan(sql, tasks, names, now)):
        log.warning(
            "schedule %s of %s is declared no more: it fires no more, and is removed in %g days",
            name,
            task,
            KEEP_ORPHANS / 86_400,
            extra={"event": "schedule_orphaned", "schedule": name, "task": task},
        )


def forget(sql: Statements, now: Now = None) -> Steps[None]:
    """Removes orphans that have been there for long."""
    for name, task in (yield from db.forget(sql, KEEP_ORPHANS, now)):
        log.info(
            "removed schedule %s, which is declared no more",
            name,
            extra={"event": "schedule_removed", "schedule": name, "task": task},
        )


def look(sql: Statements, tasks: Sequence[str], now: Now = None) -> Steps[float | None]:
    """Fires what is due; seconds until another look is: the next tick, or at once, after a firing. None: no tick."""
    clock, seconds, found = yield from db.due(sql, tasks, BATCH, now)
    mine = False
    for due in found:
        try:
            mine |= yield from _plan(sql, due) if due.next_tick is None else _fire(sql, due, clock, now)
        except Exception as error:
            why = _why(error)
            if why is None:
                raise
            if (yield from db.plan(sql, due.name, due.revision, None, why)):
                log.error(
                    "schedule %s does not fire: %s",
                    due.name,
                    why,
                    extra={"event": "schedule_invalid", "schedule": due.name, "task": due.task},
                )
    if mine:
        return 0.0
    lost = any(due.problem is None for due in found)
    return min(LOST, LOST if seconds is None else seconds) if lost else seconds


def _plan(sql: Statements, due: Due) -> Steps[bool]:
    """Whether it was ours."""
    return (yield from db.plan(sql, due.name, due.revision, schedule.first_tick(due), None))


def _fire(sql: Statements, due: Due, clock: datetime, now: Now) -> Steps[bool]:
    """Whether it was ours."""
    firing = schedule.decide(due, clock)
    done = yield from db.fire(sql, due, firing.ticks, firing.following, firing.decided, firing.passed, now)
    if done is None:
        return False
    fields = {"schedule": due.name, "task": due.task, "tick": _utc(firing.decided)}
    if done.ids:
        log.info(
            "schedule %s fired%s",
            due.name,
            f" {len(done.ids)} ticks" if len(done.ids) > 1 else "",
            extra={"event": "schedule_fired", "job_id": done.ids[-1], "queue": done.queue, **fields},
        )
    skipped = firing.passed + len(firing.ticks) - len(done.ids)
    if skipped:
        log.info(
            "schedule %s skipped %s: %s",
            due.name,
            f"{skipped} ticks" if skipped > 1 else "a tick",
            "a job of it is live" if done.busy else "missed" if firing.passed else "one job for all of them",
            extra={"event": "schedule_skipped", **fields},
        )
    return True


def _why(error: Exception) -> str | None:
    """What is wrong with a row that plain SQL wrote, which must stop no other; None: it is nothing of that kind."""
    if isinstance(error, InvalidOption):
        return str(error)
    if (sqlstate(error) or "")[:2] in ("22", "23"):  # a value that no job can have
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def _utc(moment: Any) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")
