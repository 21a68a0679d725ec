"""Eight workers that are killed around a tick, again and again: still one job a tick, and none is left out.

One statement enqueues the job and moves the schedule on, so there is nothing between the two; a worker is killed when
that statement has gone out, and when it is committed and not a byte of its answer was read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.crash.processes import Start
from tests.helpers import eventually
from tests.torture import failpoints

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")

APP = "tests.crash.ticking:app"


def test_eight_workers_with_wrong_clocks_killed_at_the_firing_make_one_job_of_each_tick(
    start: Start, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    for _ in range(2):
        start(APP, processes=4, queues="others", concurrency=1, sweep_interval=0.5)

    def seen(query: str) -> Any:
        return connection.execute(query.encode()).fetchone()[0]  # type: ignore[index]

    eventually(lambda: seen("select count(*) from pgqueue.workers") >= 8, timeout=60)
    for point in ("fire.sent", "fire.done", "fire.sent", "fire.done"):
        failpoints.arm(tmp_path, point, "kill")
        eventually(lambda point=point: not failpoints.is_armed(tmp_path, point), timeout=30)
        fired = seen("select fired from pgqueue.schedules")
        eventually(lambda fired=fired: seen("select fired from pgqueue.schedules") > fired + 1, timeout=30)
    rows = connection.execute(
        "select extract(epoch from run_at)::int, count(*), min(meta ->> 'tick') from pgqueue.jobs group by 1 order by 1"
    ).fetchall()
    ticks = [second for second, _, _ in rows]
    assert ticks == list(range(ticks[0], ticks[-1] + 1))
    assert {count for _, count, _ in rows} == {1}
    assert len(ticks) >= 8
    assert seen("select fired from pgqueue.schedules") >= len(ticks)
    (early,) = connection.execute("select count(*) from pgqueue.jobs where created_at < run_at").fetchone() or ()
    assert early == 0  # by the server's clock, whatever theirs say
