"""Killed at each of its named points, a worker leaves nothing behind that is lost, done twice, or stuck."""

from __future__ import annotations

import os
import time

import pytest

from tests.crash.processes import children_of
from tests.torture import failpoints, tasks
from tests.torture.checker import check, report
from tests.torture.faults import POINTS
from tests.torture.run import Cluster, at_work, gather, place

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")


def pass_by(cluster: Cluster, point: str) -> None:
    """Has somebody come by that point, if it is not come by all the time."""
    match point.partition(".")[0]:
        case "retry":
            cluster.enqueue(tasks.failing)
        case "give_back":
            cluster.enqueue(tasks.snoozing)
        case "dead_letter":
            cluster.enqueue(tasks.hopeless)
        case "commit":
            cluster.enqueue(tasks.transact)
            cluster.enqueue(tasks.transact_async)
        case "cancel_running":
            cluster.enqueue(tasks.steered, True)
        case "cancel_asked":
            cluster.enqueue(tasks.recanted)
        case "crash":  # three times, each in a process of its own: one such job at a time is enough
            if not cluster.sql("select 1 from pgqueue.jobs where task = %s", [tasks.poison_alone.name]):
                cluster.enqueue(tasks.poison_alone)
        case "standing":  # somebody loses the answer to a job's own COMMIT
            if not failpoints.is_armed(cluster.ledger, "commit.done"):
                failpoints.arm(cluster.ledger, "commit.done", "cut")
            cluster.enqueue(tasks.transact)
        case "rescue":
            cluster.enqueue(tasks.slow, 1.0)
            for child in cluster.children()[:1]:
                cluster.kill(child)
        case "stop" | "leave" | "register":  # and the next comes in its place
            at_work = {row[0] for row in cluster.sql("select pid from pgqueue.workers where not stopping")}
            for one in cluster.supervisors:
                if at_work.intersection(children_of(one.pid)):
                    cluster.term(one)
                    return
        case "heartbeat" | "ghosts":
            pass
        case _:
            cluster.enqueue(tasks.transact if point == "run.transaction" else tasks.quick)


@pytest.mark.timeout(300)
def test_killed_at_each_point_a_worker_loses_nothing_and_does_nothing_twice() -> None:
    with place() as directory, at_work(directory) as (cluster, sampler):
        for point in (*POINTS, "stop"):
            cluster.say("fault", point)
            failpoints.arm(cluster.ledger, point, "kill")
            deadline = time.monotonic() + 30
            while failpoints.is_armed(cluster.ledger, point):
                assert time.monotonic() < deadline, f"nobody came by {point}"
                pass_by(cluster, point)
                time.sleep(0.15)
            failpoints.disarm(cluster.ledger, "commit.done")
            cluster.say("healed", point)
        cluster.drain(60.0)
        cluster.stop()
        sampler.stop()
        evidence = gather(cluster, sampler.taken)
    violations = check(evidence)
    assert not violations, report(violations, evidence)
    killed = {line.note.split()[1] for line in evidence.told("kill")} - {"supervised"}
    assert killed == {*POINTS, "stop"}
