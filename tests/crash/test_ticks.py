"""Eight workers that are killed around a tick, again and again: still one job a tick, and none is left out.

One statement enqueues the job and moves the schedule on, so there is nothing between the two; a worker is killed when
that statement has gone out, and when it is committed and not a byte of its answer was read.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.crash.processes import Start, workers
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


def test_a_process_that_takes_anothers_place_does_not_bring_back_what_a_later_deploy_has_changed(
    start: Start, connection: psycopg.Connection[Any]
) -> None:
    """While a deploy goes on, workers of the code before lose processes, too, or replace them."""

    def row() -> Any:
        return connection.execute("select every, fired from pgqueue.schedules").fetchone() or (None, 0)

    def working() -> int | None:
        return next(iter(workers(connection)), None)

    worker = start(APP, processes=1, queues="others", sweep_interval=0.2)
    eventually(lambda: row()[1], timeout=60)
    first = working()
    connection.execute("update pgqueue.schedules set every = 2, next_tick = null, revision = default")  # the new code
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(lambda: working() not in (None, first), timeout=60)
    fired = row()[1]
    eventually(lambda: row()[1] > fired, timeout=30)  # by the new process, which would have written it before
    assert row()[0] == 2
    assert not worker.log("schedule_changed")
