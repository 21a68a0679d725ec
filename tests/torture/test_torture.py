"""A minute of torture: whatever is done to workers, network and server, two things at a time, the invariants hold. And
the same with a pgqueue that is broken on purpose, where they must not.

TEST_TORTURE_SEED repeats a run's faults; `make torture SECONDS=3600` is the long one.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.helpers import eventually
from tests.torture import tasks
from tests.torture.checker import check, report
from tests.torture.faults import FAULTS, Fault
from tests.torture.run import Cluster, place, summary, torture

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")

SEED = int(os.environ.get("TEST_TORTURE_SEED") or random.randrange(2**31))
SECONDS = 60.0  # so long every fault comes once, and some twice; start, drain and check take another ten


@pytest.mark.timeout(300)
def test_a_minute_of_torture() -> None:
    said = [f"TEST_TORTURE_SEED={SEED}"]
    with place() as directory:
        evidence = torture(directory, SECONDS, SEED, tell=said.append)
    violations = check(evidence)
    said.append(summary(evidence))
    print("\n".join(said))
    assert not violations, "\n".join([*said, report(violations, evidence)])
    # And it was one: enough was done, and to enough jobs.
    assert {name for _, _, name in evidence.deeds} == {fault.__name__ for fault in FAULTS}
    assert len(evidence.rows) > 300
    assert evidence.told("kill")
    assert evidence.told("freeze")
    assert len(evidence.snapshots) > 100


def slow_ones(cluster: Cluster, chance: random.Random) -> None:
    """Enough for every slot."""
    for _ in range(20):
        cluster.enqueue(tasks.slow, chance.uniform(1.0, 1.5))


def zombie(cluster: Cluster, chance: random.Random) -> None:
    """The worker inside an application is frozen with jobs in its hands, and comes back while they run elsewhere."""
    held = """
        select job.id, job.fence from pgqueue.jobs as job join pgqueue.workers as worker on worker.id = job.worker_id
        where job.task = %s and worker.pid = %s
    """
    again = "select 1 from pgqueue.jobs where id = %s and fence > %s and state = 'running'"
    for number in range(20):
        # With a key, so that the producers' operators leave them alone, and do not cancel them before they run again.
        cluster.enqueue(tasks.slow.options(unique_key=f"zombie-{number}"), 3.0)
    eventually(lambda: cluster.sql(held, [tasks.slow.name, cluster.inside.pid]), timeout=30)
    cluster.freeze(cluster.inside.pid)
    jobs = cluster.sql(held, [tasks.slow.name, cluster.inside.pid])
    eventually(lambda: any(cluster.sql(again, job) for job in jobs), timeout=60)
    cluster.thaw()


@pytest.mark.parametrize(
    ("broken", "faults", "seen"),
    [("no fence", (zombie, slow_ones), {"I6", "I7"}), ("rescue by age", (slow_ones, slow_ones), {"I5"})],
    ids=["no fence", "rescue by age"],
)
@pytest.mark.timeout(300)
def test_the_checker_sees_what_is_broken(broken: str, faults: tuple[Fault, ...], seen: set[str]) -> None:
    """Workers whose settles name no owner and no fence, and are frozen; workers that rescue what has run for long. One
    of what must be seen is enough: what else there is depends on who was quicker."""
    with place() as directory:
        evidence = torture(directory, 1.0, SEED, broken=broken, faults=faults, supervisors=1, drain=5.0, calm=0)
    violations = check(evidence)
    assert seen & {violation.number for violation in violations}, report(violations, evidence)
