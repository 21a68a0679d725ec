"""Drain preloaded no-op jobs, beside a raw loop (claim 500 with SKIP LOCKED, delete them) and the peers. Jobs a second.

The clock is the same for all: from the first job's start, in whichever process, until every job has run and the store
holds none that is unfinished. So the last settle is in it, and the start of processes is not; they start together.
pgqueue is `pgqueue worker`; fences, history and logging as by default.
"""

from __future__ import annotations

from benchmarks.contestants import OURS, RAW
from benchmarks.harness import compare, jobs
from benchmarks.peers.field import field

JOBS = jobs(50_000)
BEST = 500  # concurrency: as many as one claim brings


def main() -> None:
    wide = OURS.with_env(OURS_CONCURRENCY=str(BEST))
    unkept = OURS.with_env(OURS_TASK="bench.noop_unkept")
    threads = OURS.with_env(OURS_TASK="bench.noop_thread")
    with field() as peers:
        contestants = {
            "raw loop": RAW.drain(JOBS),
            "raw loop, 2 processes": RAW.drain(JOBS, 2),
            "pgqueue": OURS.drain(JOBS),
            "pgqueue, 2 processes": OURS.drain(JOBS, 2),
            f"pgqueue, concurrency {BEST}": wide.drain(JOBS),
            "pgqueue, keep=0": unkept.drain(JOBS),
            "pgqueue, plain def": threads.drain(JOBS),
        }
        rivals = {}
        for entry in peers:
            rivals[entry.name(JOBS)] = entry.program.drain(entry.jobs(JOBS))
            if entry.peer.two_processes:
                rivals[entry.name(JOBS, ", 2 processes")] = entry.program.drain(entry.jobs(JOBS), 2)
        medians = compare(
            f"Drain {JOBS:,} no-op jobs",
            "jobs/s",
            contestants | rivals,
            "raw loop",
            more_is_better=True,
            notes=[entry.note for entry in peers],
            may_fail=rivals,
        )
    ours = medians["pgqueue"]
    print(f"  2 processes: {medians['pgqueue, 2 processes'] / medians['raw loop, 2 processes']:.2f} of raw's two")
    print(f"  with history (the default): {ours / medians['pgqueue, keep=0']:.2f} of the rate without")
    best = max(ours, medians[f"pgqueue, concurrency {BEST}"])
    print(f"  concurrency 20 (the default): {ours / best:.2f} of the best setting")


if __name__ == "__main__":
    main()
