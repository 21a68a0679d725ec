"""Step 8 of a job's life, prune: partitions of finished jobs are made for the days ahead and emptied behind.

The work is done by the SQL function `prune`, a hardened definer's: a worker's role has no right to make tables.
"""

from __future__ import annotations

import logging

from pgqueue import db
from pgqueue.drivers import Steps
from pgqueue.settings import PARTITIONS_AHEAD
from pgqueue.sql import Statements

log = logging.getLogger("pgqueue")


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
