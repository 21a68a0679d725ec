"""Every measure, one after the other."""

from __future__ import annotations

from benchmarks import backlog, breakdown, bulk, commits, cost, drain, enqueue, held, monitor, pickup, rescue, retention


def main() -> None:
    for measure in (enqueue, bulk, drain, breakdown, pickup, held, backlog, commits, cost, retention, rescue, monitor):
        measure.main()


if __name__ == "__main__":
    main()
