"""Enqueue 100,000 jobs at once, beside COPY and INSERT … SELECT unnest of the same rows, and the peers.

Jobs a second.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.contestants import OURS, RAW
from benchmarks.harness import compare, jobs
from benchmarks.peers.field import field

JOBS = jobs(100_000)


def main() -> None:
    with field() as peers:
        unnest = replace(RAW, bulk_verb="unnest")
        contestants = {"raw COPY": RAW.bulk(JOBS), "raw unnest": unnest.bulk(JOBS), "pgqueue": OURS.bulk(JOBS)}
        contestants |= {entry.name(JOBS): entry.program.bulk(entry.jobs(JOBS)) for entry in peers}
        compare(
            f"Enqueue {JOBS:,} jobs at once",
            "jobs/s",
            contestants,
            "raw COPY",
            more_is_better=True,
            notes=[entry.note for entry in peers],
            may_fail=[entry.name(JOBS) for entry in peers],
        )


if __name__ == "__main__":
    main()
