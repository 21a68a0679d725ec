"""An application with a schedule, whose workers have failpoints; half of them have clocks that are a day off."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pgqueue import PgQueue, Schedule
from tests.torture import failpoints, ledger

app = PgQueue()  # PGQUEUE_DATABASE_URL


# In a queue that these workers do not serve: they fire, and nothing else is the reason for what they do.
@app.task(name="tick", queue="nobodys", schedules=[Schedule(every=1, missed="all")])
def tick() -> None: ...


os.environ[ledger.VARIABLE] = str(Path(os.environ["TEST_LEDGER"]).parent)
failpoints.install()
_now, _off = time.time, (os.getpid() % 4 - 1.5) * 86_400
time.time = lambda: _now() + _off
