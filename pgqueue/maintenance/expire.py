"""Jobs that were not started in time end as expired. A claim passes them by; this takes them away."""

from __future__ import annotations

import logging

from pgqueue import db
from pgqueue.counts import Counts
from pgqueue.drivers import Rows, Steps
from pgqueue.events import Event, Events
from pgqueue.job import Job, State
from pgqueue.sql import Statements

log = logging.getLogger("pgqueue")

BATCH = 1_000  # jobs a statement: short locks, and a long queue of late jobs takes a few of them


def expire(sql: Statements) -> Steps[Rows]:
    """Expires every late job, batch by batch: their (id, task, queue)."""
    late: Rows = []
    while True:
        done = yield from db.expire(sql, BATCH)
        late += done
        if len(done) < BATCH:
            return late


def tell_expired(late: Rows, events: Events, counts: Counts) -> None:
    """Logs how many there were, counts them, and calls the handlers of each one's event."""
    if late:
        log.info("%d jobs expired before they were started", len(late), extra={"event": "jobs_expired"})
    for _, task, queue in late:
        counts.expired[queue, task] += 1
    if events.wanted("expired"):
        for job_id, task, queue in late:
            events.emit(Event("expired", Job(id=job_id, task=task, queue=queue, state=State.EXPIRED)))
