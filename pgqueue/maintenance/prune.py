"""Step 8 of a job's life, prune: partitions of finished jobs are made for the days ahead and emptied behind.

That is done by the SQL function `prune`, a hardened definer's: a worker's role has no right to make tables.

Tasks that say how many of their jobs are kept, or how long, are pruned by the row. What they say stands in `retention`,
written by every worker when it starts, so that any worker can do it, whichever tasks it knows. In chunks, each a
transaction of its own that locks nothing anybody else waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pgqueue import db
from pgqueue.drivers import Steps
from pgqueue.retention import Retention
from pgqueue.settings import PARTITIONS_AHEAD
from pgqueue.sql import Statements

log = logging.getLogger("pgqueue")

CHUNK = 5_000  # rows removed by one statement
PROGRESS_CHUNK = 20_000  # small rows, and a part between two sweeps keeps up with 4,000 jobs a second
LOGS_CHUNK = 2_000  # jobs that are looked for by one statement: 0.2 s
PART = 20 * CHUNK  # rows that one scan finds at most: some 2 s of work


def prune(sql: Statements, retention: float) -> Steps[None]:
    """retention: seconds a finished job is kept at least."""
    made, emptied, dropped = yield from db.prune(sql, PARTITIONS_AHEAD, retention)
    if made or emptied or dropped:
        log.info(
            "partitions of finished jobs: %d made, %d emptied, %d dropped",
            made,
            emptied,
            dropped,
            extra={"event": "pruned"},
        )


def prune_progress(sql: Statements) -> Steps[bool]:
    """Removes what jobs said of their progress that ended a while ago, one part of it; whether there may be more."""
    gone = yield from db.prune_progress(sql, PROGRESS_CHUNK)
    return len(gone) >= PROGRESS_CHUNK


def prune_logs(sql: Statements, after: int) -> Steps[int | None]:
    """Removes what jobs said in their logs that are kept no longer, of the next; where to go on, None at the end."""
    return (yield from db.prune_logs(sql, after, LOGS_CHUNK))


def prune_periods(sql: Statements) -> Steps[None]:
    """Removes keys that were held for a period which is over."""
    while (yield from db.prune_periods(sql, CHUNK)) == CHUNK:
        pass


def prune_waiters(sql: Statements) -> Steps[None]:
    """Removes what processes have left behind that waited for a job and are gone."""
    yield from db.prune_waiters(sql)


def retain(sql: Statements, policies: Mapping[str, Retention]) -> Steps[None]:
    """Writes down what a worker's tasks keep; the last one that starts counts, and a change is said aloud."""
    for task in (yield from db.retain(sql, policies)):
        policy = policies[task]
        said = {name: getattr(policy, name) for name in Retention.NAMES if getattr(policy, name) is not None}
        log.info(
            "retention of %s is now %s",
            task,
            ", ".join(f"{name}={value:g}" for name, value in said.items()) or "the default",
            extra={"event": "retention_changed", "task": task, **said},
        )


def prune_jobs(sql: Statements, turn: Mapping[str, bool], retention: float) -> Steps[bool]:
    """Removes what these tasks keep no longer, one part of it; whether there is more. retention: the default."""
    limited = sorted(task for task, limits in turn.items() if limits)
    found = (yield from db.surplus(sql, limited, retention, PART)) if limited else []
    finished = 0
    for start in range(0, len(found), CHUNK):
        part = found[start : start + CHUNK]
        finished += len((yield from db.prune_finished(sql, [row[0] for row in part], [row[1] for row in part])))
    dead = len((yield from db.prune_dead(sql, sorted(turn), CHUNK)))
    if finished or dead:
        log.info(
            "pruned %d finished and %d dead jobs that are kept no longer",
            finished,
            dead,
            extra={"event": "jobs_pruned", "finished": finished, "dead": dead},
        )
    return (len(found) >= PART and finished > 0) or dead >= CHUNK
