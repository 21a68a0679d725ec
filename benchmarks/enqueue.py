"""Enqueue one job a transaction, beside a raw one-row INSERT and the peers. Jobs a second.

And inside an application's transaction, through a SQLAlchemy Session: what an enqueue adds to it, beside what one more
INSERT of SQLAlchemy Core adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import Session

from benchmarks.contestants import OURS, RAW
from benchmarks.harness import compare, jobs
from benchmarks.peers.field import field
from benchmarks.report import NOTE
from benchmarks.tasks import noop

JOBS = jobs(2_000)

orders = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)


def insert(session: Session) -> None:
    session.execute(sa.insert(orders).values(user_id=7, note=NOTE))


def transactions(*steps: Callable[[Session], object]) -> Callable[[str], float]:
    """Microseconds for a transaction that takes these steps."""

    def measure(database: str) -> float:
        engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database))
        try:
            orders.create(engine)
            for number in (JOBS // 10, JOBS):  # first the caches and prepared statements
                began = time.perf_counter()
                for _ in range(number):
                    with Session(engine) as session, session.begin():
                        for step in steps:
                            step(session)
            return (time.perf_counter() - began) / JOBS * 1e6
        finally:
            engine.dispose()

    return measure


def one_a_transaction() -> None:
    with field() as peers:
        contestants = {"raw INSERT": RAW.one(JOBS), "pgqueue": OURS.one(JOBS)}
        contestants |= {entry.name(JOBS): entry.program.one(entry.jobs(JOBS)) for entry in peers}
        compare(
            "Enqueue, one job a transaction",
            "jobs/s",
            contestants,
            "raw INSERT",
            more_is_better=True,
            notes=[entry.note for entry in peers],
            may_fail=[entry.name(JOBS) for entry in peers],
        )


def inside_a_session() -> None:
    medians = compare(
        "A transaction of a SQLAlchemy Session",
        "µs",
        {
            "an INSERT": transactions(insert),
            "and an INSERT more": transactions(insert, insert),
            "and an enqueue": transactions(insert, lambda session: noop.enqueue(session, 7, NOTE)),
        },
        "an INSERT",
        more_is_better=False,
    )
    base = medians["an INSERT"]
    more, enqueue = medians["and an INSERT more"] - base, medians["and an enqueue"] - base
    print(f"  an enqueue adds {enqueue:.0f} µs, one more INSERT {more:.0f} µs: {enqueue / more:.2f} times")


def main() -> None:
    one_a_transaction()
    inside_a_session()


if __name__ == "__main__":
    main()
