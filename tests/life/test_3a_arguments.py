"""Step 3, run: what a job was given is what it gets, type for type, after the way through the database and back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from pydantic import BaseModel

from pgqueue import ArgsNotJSON, PgQueue
from tests.life.workbench import ended
from tests.unit.calls import same
from tests.unit.test_arguments_types import (
    Address,
    Bits,
    Box,
    Colour,
    Level,
    Mode,
    Money,
    Order,
    Point,
    Rights,
    Size,
)

Look = psycopg.Connection[Any]
Drain = Callable[..., None]


class Parcel(BaseModel):
    id: UUID
    weight: Decimal
    labels: set[str] = set()


MONEY = Money(Decimal("0.10"), "CHF")
VALUES: list[tuple[Any, Any]] = [
    (str, "ü\u202e\U0001f600\n\\u0000 \"'"),
    (int, 2**53 + 1),
    (int, -(2**64) - 1),
    (int, 10**4000 - 1),
    (Any, 2**64 + 1),
    (Any, [True, 1, 1.0, "1", None, 0.0]),
    (Any, [1e16, -1e22, 1.7976931348623157e308, 5e-324, 1e-7, 0.1, 10**16, "1e16", {"a": 1e100}]),
    (float, 1.0),
    (float, 1e300),
    (int | float, 1e16),
    (int | float, 10**16),
    (datetime, datetime(2026, 10, 25, 2, 30, 0, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))),
    (datetime, datetime(2026, 1, 31, 8, 15, 2, 999999)),
    (datetime, datetime.max.replace(tzinfo=UTC)),
    (date, date.min),
    (time, time(23, 59, 59, 999999)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (timedelta, timedelta.max),
    (UUID, UUID(int=7)),
    (Decimal, Decimal("0.10")),
    (Decimal, Decimal("1E+400")),
    (Colour, Colour.GREEN),
    (Level, Level.HIGH),
    (Size, Size.BIG),
    (Mode, Mode.EMPTY),
    (Rights, Rights.READ | Rights.RUN),
    (Bits, Bits.A | Bits.B),
    (Order, Order(id=UUID(int=1), total=MONEY, boxes=[Box(1), Box(2**70)], parent=Order(id=UUID(int=2), total=MONEY))),
    (Box[Money], Box(MONEY)),
    (Address, {"since": date(2020, 2, 29)}),
    (Point, Point(1.0, Decimal("2.50"))),
    (Money | None, MONEY),
    (tuple[str, date, float], ("x", date(2026, 1, 1), 2.0)),
    (list[tuple[int, ...]], [(1, 2), ()]),
    (dict[int, str], {10: "a", 9: "b", -1: "c"}),
    (dict[Colour, list[Decimal]], {Colour.RED: [Decimal("1.00")]}),
    (dict[UUID, timedelta], {UUID(int=3): timedelta(seconds=1)}),
    (Parcel, Parcel(id=UUID(int=9), weight=Decimal("1.50"), labels={"x", "y"})),
]


@pytest.mark.parametrize("how", ["positional", "keyword", "in bulk"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_every_value_arrives_as_it_was_passed(
    app: PgQueue, connection: Look, drain: Drain, kind: str, how: str
) -> None:
    got: dict[int, Any] = {}

    def declare(number: int, annotation: Any) -> Any:
        def plain(x: Any, number: int = number, unsaid: Any = MONEY) -> None:
            got[number] = (x, unsaid)

        async def awaited(x: Any, number: int = number, unsaid: Any = MONEY) -> None:
            await asyncio.sleep(0)
            got[number] = (x, unsaid)

        function = plain if kind == "sync" else awaited
        function.__annotations__ = {"x": annotation, "number": int, "unsaid": Money}
        return app.task(name=f"task_{number}")(function)

    for number, (annotation, value) in enumerate(VALUES):
        task = declare(number, annotation)
        if how == "positional":
            task.enqueue(connection, value)
        elif how == "keyword":
            task.enqueue(connection, number=number, x=value)
        else:
            task.enqueue_many(connection, [{"x": value}])
    drain()
    assert got.keys() == set(range(len(VALUES)))
    for number, (annotation, value) in enumerate(VALUES):
        x, unsaid = got[number]
        assert same(x, value), (annotation, value, x)
        assert unsaid == MONEY


def test_the_zones_name_and_the_sign_of_zero_stay_behind(app: PgQueue, connection: Look, drain: Drain) -> None:
    got: list[Any] = []

    def task(at: datetime, zero: float) -> None:
        got.extend([at, zero])

    autumn = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris"))
    app.task(task).enqueue(connection, autumn, -0.0)
    drain()
    at, zero = got
    assert (at.astimezone(UTC), at.utcoffset()) == (autumn.astimezone(UTC), timedelta(hours=1))
    assert (zero, math.copysign(1, zero)) == (0.0, 1.0)


def test_a_refused_value_writes_nothing_and_leaves_the_transaction_usable(
    app: PgQueue, pgqueue_database: str, connection: Look
) -> None:
    @app.task
    def task(x: Any, items: list[Money] | None = None) -> None: ...

    with psycopg.connect(pgqueue_database) as mine:
        task.enqueue(mine, 1)
        for refused in ({"x": Decimal(1)}, {"x": {1: 2}}, {"x": 1, "items": [MONEY, MONEY, {"amount": "1"}]}):
            with pytest.raises((ArgsNotJSON, TypeError), match=r"args\.(x|items\[2\])"):
                task.enqueue(mine, **refused)
            with pytest.raises((ArgsNotJSON, TypeError), match=r"args\.(x|items\[2\])"):
                task.enqueue_many(mine, [{"x": 1}, refused])
        task.enqueue(mine, 2)
    assert connection.execute("select args from pgqueue.jobs order by id").fetchall() == [({"x": 1},), ({"x": 2},)]


class Verdict(Enum):
    GOOD = "good"


@dataclass
class Report:
    at: datetime
    took: timedelta
    verdict: Verdict
    by: dict[Verdict, Decimal]


def test_a_result_is_kept_as_json(app: PgQueue, connection: Look, drain: Drain) -> None:
    """It is data for whoever reads the table: nothing is annotated that could make a Report of it again."""

    @app.task
    def task(which: str) -> Any:
        report = Report(
            datetime(2026, 1, 1, tzinfo=UTC), timedelta(seconds=90), Verdict.GOOD, {Verdict.GOOD: Decimal("1.50")}
        )
        return {
            "dataclass": report,
            "model": Parcel(id=UUID(int=9), weight=Decimal("1.50"), labels={"x"}),
            "float": [1e16, 1.0],
            "tuple": (1, Point(1.0)),
        }[which]

    jobs = {which: task.enqueue(connection, which) for which in ("dataclass", "model", "float", "tuple")}
    drain()
    results = {which: ended(connection, job).result for which, job in jobs.items()}
    assert results["dataclass"] == {
        "at": "2026-01-01T00:00:00Z",
        "took": "PT90S",
        "verdict": "good",
        "by": {"good": "1.50"},
    }
    assert results["model"] == {"id": str(UUID(int=9)), "weight": "1.50", "labels": ["x"]}
    assert results["float"] == [1e16, 1.0]
    assert [type(item) for item in results["float"]] == [float, float]
    assert results["tuple"] == [1, [1.0, "0"]]
