"""Every measure, one after the other."""

from __future__ import annotations

from benchmarks import bulk, drain, enqueue, pickup, rescue


def main() -> None:
    for measure in (enqueue, bulk, drain, pickup, rescue):
        measure.main()


if __name__ == "__main__":
    main()
