"""How soon an idle worker starts a job, beside a raw LISTEN and claim loop, and the peers. Milliseconds, p50 and p99.

From just before the enqueue, so insert and commit are in it, until the job's first line; worker and application are two
processes. 200 jobs a round, 20 to 50 ms apart, offered whether or not the one before has started.
"""

from __future__ import annotations

from benchmarks.contestants import OURS, RAW
from benchmarks.harness import compare, jobs
from benchmarks.peers.field import field

JOBS = jobs(200)


def main() -> None:
    with field() as peers:
        contestants = {"raw LISTEN": RAW.pickup(JOBS), "pgqueue": OURS.pickup(JOBS)}
        contestants |= {entry.peer.name: entry.program.pickup(JOBS) for entry in peers}
        compare(
            "Idle pick-up",
            "ms",
            contestants,
            "raw LISTEN",
            more_is_better=False,
            notes=[entry.note for entry in peers],
            may_fail=[entry.peer.name for entry in peers],
        )


if __name__ == "__main__":
    main()
