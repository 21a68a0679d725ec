"""Step 5 of a job's life, if it comes to that: its worker is gone, and the job goes back to its queue.

By liveness, never by age: a job may run for hours, and is rescued only when its worker's lease has ended or its
supervisor saw the process die. A death that was seen counts as a crash; a lapsed lease or a lost database never counts.

Which of the jobs in a process killed it nobody can tell. So all of them are suspects from then on (queued, crashes > 0)
and run one at a time in a process of their own, where a death has one explanation: a job that dies alone twice more is
dead, and one that ends in whatever other way is cleared.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

from pgqueue import db
from pgqueue.counts import Counts
from pgqueue.db import Rescued
from pgqueue.drivers import Steps
from pgqueue.events import Event, Events
from pgqueue.job import DeadReason, Job, State
from pgqueue.settings import MAX_CRASHES
from pgqueue.sql import Statements

log = logging.getLogger("pgqueue")


def sweep(sql: Statements) -> Steps[list[Rescued]]:
    """Rescues the jobs of every worker whose lease has ended; one transaction."""
    gone = yield from db.lapsed(sql)
    if not gone:
        return []
    return (yield from db.rescue(sql, gone, crashed=False, why="the worker's lease ended", max_crashes=MAX_CRASHES))


def bury(sql: Statements, workers: list[UUID], why: str, *, crashed: bool) -> Steps[list[Rescued]]:
    """Rescues the jobs of workers whose end their supervisor saw, and removes their rows; one transaction.

    crashed: whether the death may have been the jobs' doing.
    """
    yield from db.leave(sql, workers)
    return (yield from db.rescue(sql, workers, crashed=crashed, why=why, max_crashes=MAX_CRASHES))


def tell(rescued: Sequence[Rescued], events: Events, counts: Counts) -> None:
    """Logs and counts each rescued job and calls the handlers of its event."""
    record(rescued)
    count(rescued, counts)
    emit(rescued, events)


def record(rescued: Sequence[Rescued]) -> None:
    """Logs each rescued job."""
    for job in rescued:
        run = job.attempt if job.dead else job.attempt + 1  # the one that died; a rescued job has it given back
        fields = {"job_id": job.id, "task": job.task, "queue": job.queue, "attempt": run, "fence": job.fence}
        if job.cancelled is not None:
            fields["attempt"] = job.attempt
            log.info("cancelled: its worker is gone, and it was to end", extra={"event": "job_cancelled", **fields})
        elif job.dead:
            log.error(
                "its process died under it %d times: moved to the dead-letter table",
                job.crashes,
                extra={"event": "job_dead_lettered", "reason": "crashed", **fields},
            )
        else:
            log.warning("rescued from a worker that is gone", extra={"event": "job_rescued", **fields})


def count(rescued: Sequence[Rescued], counts: Counts) -> None:
    """Adds what became of each: queued again, cancelled as it was to be, or dead."""
    for job in rescued:
        became = counts.cancelled if job.cancelled is not None else counts.dead_lettered if job.dead else counts.rescued
        became[job.queue, job.task] += 1


def emit(rescued: Sequence[Rescued], events: Events) -> None:
    """Calls the handlers of each rescued job's event."""
    for job in rescued:
        name, state, error, reason = "rescued", State.QUEUED, None, None
        if job.cancelled is not None:
            name, state, error = "cancelled", State.CANCELLED, job.cancelled
        elif job.dead:
            name, state, error, reason = "dead_lettered", State.DEAD, "its worker process died", DeadReason.CRASHED
        if events.wanted(name):
            seen = Job(id=job.id, task=job.task, queue=job.queue, attempt=job.attempt, fence=job.fence, state=state)
            events.emit(Event(name, seen, error, reason=reason))
