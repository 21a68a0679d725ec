"""Every measure, one after the other."""

from __future__ import annotations

from benchmarks import bulk, drain, enqueue, held, pickup, rescue


def main() -> None:
    for measure in (enqueue, bulk, drain, held, pickup, rescue):
        measure.main()


if __name__ == "__main__":
    main()
