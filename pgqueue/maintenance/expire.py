"""Jobs that were not started in time end as expired. A claim passes them by; this takes them away."""

from __future__ import annotations

import logging

from pgqueue import db
from pgqueue.drivers import Steps
from pgqueue.sql import Statements

log = logging.getLogger("pgqueue")

BATCH = 1_000  # jobs a statement: short locks, and a long queue of late jobs takes a few of them


def expire(sql: Statements) -> Steps[int]:
    """Expires every late job, batch by batch; how many."""
    total = 0
    while True:
        done = yield from db.expire(sql, BATCH)
        total += len(done)
        if len(done) < BATCH:
            break
    if total:
        log.info("%d jobs expired before they were started", total, extra={"event": "jobs_expired"})
    return total
