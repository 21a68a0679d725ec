"""Every type that an argument may have arrives exactly as annotated, however it was passed; many values are tried."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    TypeAlias,
    TypedDict,
    TypeVar,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.calls import arrived, same, sent

T = TypeVar("T")
PARIS = ZoneInfo("Europe/Paris")


# -- values, many ----------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
floats = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value or 0.0)  # zero has no sign in jsonb
integers = st.integers(-(10**400), 10**400)
offsets = st.none() | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
datetimes = st.datetimes(timezones=offsets).map(lambda value: value if value.tzinfo else value.replace(fold=0))
times = st.times(timezones=offsets).map(lambda value: value if value.tzinfo else value.replace(fold=0))
spans = st.timedeltas()
decimals = st.decimals(allow_nan=False, allow_infinity=False)


class Colour(Enum):
    RED = "red"
    GREEN = "g"


class Level(Enum):
    LOW = 1
    HIGH = 2


class Size(IntEnum):
    SMALL = 1
    BIG = 2**40


class Mode(StrEnum):
    FAST = "fast"
    EMPTY = ""


class Rights(Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Bits(IntFlag):
    A = 1
    B = 2


@dataclass(frozen=True, slots=True)
class Money:
    amount: Decimal
    currency: str = "EUR"


@dataclass
class Box(Generic[T]):
    content: T
    kind: ClassVar[str] = "box"


@dataclass(kw_only=True)
class Order:
    id: UUID
    total: Money
    boxes: list[Box[int]] = field(default_factory=list)
    parent: Order | None = None
    checked: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.checked = True


class Address(TypedDict, total=False):
    street: str
    since: date


class Person(TypedDict):
    name: str
    born: NotRequired[date]


class Point(NamedTuple):
    x: float
    y: Decimal = Decimal(0)


moneys = st.builds(Money, decimals, texts)
orders = st.recursive(
    st.builds(Order, id=st.uuids(), total=moneys, boxes=st.lists(st.builds(Box, integers), max_size=3)),
    lambda inner: st.builds(Order, id=st.uuids(), total=moneys, parent=inner),
    max_leaves=4,
)

VALUES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "str": (str, texts),
    "int": (int, integers),
    "float": (float, floats),
    "bool": (bool, st.booleans()),
    "datetime": (datetime, datetimes),
    "date": (date, st.dates()),
    "time": (time, times),
    "timedelta": (timedelta, spans),
    "UUID": (UUID, st.uuids(allow_nil=True)),
    "Decimal": (Decimal, decimals),
    "Enum of text": (Colour, st.sampled_from(Colour)),
    "Enum of numbers": (Level, st.sampled_from(Level)),
    "IntEnum": (Size, st.sampled_from(Size)),
    "StrEnum": (Mode, st.sampled_from(Mode)),
    "Flag": (Rights, st.integers(0, 7).map(Rights)),
    "IntFlag": (Bits, st.integers(0, 3).map(Bits)),
    "frozen dataclass with slots": (Money, moneys),
    "nested dataclass": (Order, orders),
    "generic dataclass": (Box[Decimal], st.builds(Box, decimals)),
    "TypedDict, total=False": (Address, st.fixed_dictionaries({}, optional={"street": texts, "since": st.dates()})),
    "TypedDict, NotRequired": (Person, st.fixed_dictionaries({"name": texts}, optional={"born": st.dates()})),
    "NamedTuple": (Point, st.builds(Point, floats, decimals)),
    "Optional": (Decimal | None, st.none() | decimals),
    "union of scalars": (int | float | str | bool | None, integers | floats | texts | st.booleans() | st.none()),
    "union with a date": (date | int | None, st.dates() | integers | st.none()),
    "Literal": (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    "list": (list[datetime], st.lists(datetimes)),
    "tuple of one type": (tuple[Decimal, ...], st.lists(decimals).map(tuple)),
    "tuple of several": (tuple[str, int, date], st.tuples(texts, integers, st.dates())),
    "dict": (dict[str, timedelta], st.dictionaries(texts, spans)),
    "dict by int": (dict[int, str], st.dictionaries(st.integers(-(2**63), 2**63 - 1), texts)),
    "dict by Enum": (dict[Colour, int], st.dictionaries(st.sampled_from(Colour), integers)),
    "dict by IntEnum": (dict[Size, int], st.dictionaries(st.sampled_from(Size), integers)),
    "dict by UUID": (dict[UUID, int], st.dictionaries(st.uuids(), integers)),
    "dict by date": (dict[date, int], st.dictionaries(st.dates(), integers)),
    "Sequence": (Sequence[int], st.lists(integers)),
    "Mapping": (Mapping[str, int], st.dictionaries(texts, integers)),
    "Annotated": (Annotated[int, msgspec.Meta(ge=0)], st.integers(0, 10**30)),
    "NewType": (NewType("UserId", int), integers),
    "nested containers": (list[dict[str, tuple[Colour, ...]]], st.lists(st.dictionaries(
        texts, st.lists(st.sampled_from(Colour), max_size=3).map(tuple), max_size=3), max_size=3)),
    "Any": (Any, st.recursive(
        st.none() | st.booleans() | integers | floats | texts,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
        max_leaves=20,
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_a_value_of_the_annotated_type_arrives_as_it_is(name: str, data: st.DataObject) -> None:
    annotation, values = VALUES[name]
    value = data.draw(values)
    assert same(arrived(annotation, value), value)


# -- values, particular ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (timedelta, timedelta.min),
        (timedelta, timedelta.max),
        (timedelta, timedelta(days=-1, microseconds=1)),
        (timedelta, timedelta(days=400, seconds=86399, microseconds=999999)),
        (datetime, datetime.min),
        (datetime, datetime.max.replace(tzinfo=UTC)),
        (datetime, datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))),
        (datetime, datetime(2026, 1, 1, 0, 0, 0, 1)),
        (date, date.max),
        (time, time(12, 0, tzinfo=UTC)),
        (Decimal, Decimal("0.10")),
        (Decimal, Decimal("1E+400")),
        (Decimal, Decimal("-0.000E-7")),
        (Decimal, Decimal("1234567890.12345678901234567890123456789")),
        (int, 2**53 + 1),
        (int, -(2**64) - 1),
        (Any, 2**64 + 1),
        (float, 1.0),
        (float, 1e16),
        (float, 1.7976931348623157e308),
        (float, 5e-324),
        (Any, [1.0, 1e16, -1e22, 1e300, 1e-7, 5e-324, {"a": 1e100}, 10**16]),
        (float | int, 1e16),
        (float | int, 10**16),
        (float | int, 1.0),
        (Any, [True, 1, 0, False, "1", None]),
        (Rights, Rights.READ | Rights.RUN),
        (Literal[1], 1),
        (Any, "e5,1e16:-2e7"),
        (list[Any], ["[1e16", ":1e16", 1e16]),
    ],
    ids=repr,
)
def test_the_odd_ones_arrive_as_they_are(annotation: Any, value: Any) -> None:
    assert same(arrived(annotation, value), value)


def test_the_hour_that_happens_twice_is_told_apart_by_its_offset() -> None:
    """A datetime keeps its UTC offset, and so the instant; the zone's name does not travel."""
    for fold, hours in ((0, 2), (1, 1)):
        value = datetime(2026, 10, 25, 2, 30, tzinfo=PARIS, fold=fold)
        got = arrived(datetime, value)
        assert got.utcoffset() == value.utcoffset() == timedelta(hours=hours)
        assert got.astimezone(UTC) == value.astimezone(UTC)


def test_zero_loses_its_sign_and_nothing_else() -> None:
    assert math.copysign(1, arrived(float, -0.0)) == 1.0
    assert arrived(float, -0.0) == -0.0


# -- what stands for something else ------------------------------------------------------------------------------------


class Celsius(float): ...


class Moment(datetime):
    """As pandas' Timestamp and a frozen clock's datetime are."""


class Ticket(UUID):
    """As asyncpg's UUID is."""


class Price(Decimal): ...


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (list[int], (1, 2), [1, 2]),
        (tuple[int, ...], [1, 2], (1, 2)),
        (Any, (1, (2,)), [1, [2]]),
        (tuple[float, Decimal], Point(1.0, Decimal(2)), (1.0, Decimal(2))),
        (float, 7, 7.0),
        (Decimal, 7, Decimal(7)),
        (float, Celsius(1.5), 1.5),
        (int, Size.SMALL, 1),
        (str, Mode.FAST, "fast"),
        (Any, [Size.SMALL, Mode.FAST], [1, "fast"]),
        (Mapping[str, int], {"a": 1}, {"a": 1}),
        (datetime, Moment(2026, 1, 1, 8, 15, tzinfo=UTC), datetime(2026, 1, 1, 8, 15, tzinfo=UTC)),
        (UUID, Ticket(int=7), UUID(int=7)),
        (Decimal, Price("1.50"), Decimal("1.50")),
    ],
    ids=repr,
)
def test_what_is_as_good_as_the_annotated_type_arrives_as_the_annotated_type(
    annotation: Any, value: Any, expected: Any
) -> None:
    assert same(arrived(annotation, value), expected)


# -- however it was passed ---------------------------------------------------------------------------------------------


def ship(order: Order, due: date | None = None, *, lines: list[Money], rush: bool = False) -> None: ...


ORDER = Order(id=UUID(int=7), total=Money(Decimal("1.50")))
LINES = [Money(Decimal("0.10"))]


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((ORDER,), {"lines": LINES}, {"order": ORDER, "lines": LINES}),
        ((ORDER, date(2026, 1, 1)), {"lines": []}, {"order": ORDER, "due": date(2026, 1, 1), "lines": []}),
        ((), {"lines": LINES, "rush": True, "order": ORDER}, {"order": ORDER, "lines": LINES, "rush": True}),
        ((ORDER, None), {"lines": LINES, "rush": False}, {"order": ORDER, "due": None, "lines": LINES, "rush": False}),
    ],
)
def test_positional_keyword_and_left_out_arguments_arrive_alike(
    args: tuple[Any, ...], kwargs: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert sent(ship, *args, **kwargs) == expected


@given(orders, st.none() | st.dates(), st.lists(moneys, max_size=3))
@example(ORDER, date.max, LINES)
def test_a_whole_call_arrives(order: Order, due: date | None, lines: list[Money]) -> None:
    assert same(sent(ship, order, due, lines=lines), {"order": order, "due": due, "lines": lines})


def test_defaults_are_the_workers_own_and_may_be_anything() -> None:
    """They are never stored, so that a default may be what JSON cannot hold."""

    def task(x: int = 1, since: date = date(2026, 1, 1), given: Order = ORDER, by: Colour = Colour.RED) -> None: ...

    task.__annotations__ = {"x": int, "since": date, "given": Order, "by": Colour}
    assert sent(task) == {}
    assert sent(task, since=date(2027, 1, 1)) == {"since": date(2027, 1, 1)}


# -- annotations, however they are written ----------------------------------------------------------------------------

Moneys: TypeAlias = "list[Money]"


def test_aliases_and_names_in_quotes_are_what_they_stand_for() -> None:
    def task(a: Moneys, b: list["Money"], c: "dict[str, list['Money']]") -> None: ...  # noqa: UP037

    for other in ({}, {"a": Moneys, "b": list["Money"], "c": "dict[str, list['Money']]"}):
        task.__annotations__ |= other
        assert sent(task, LINES, LINES, {"a": LINES}) == {"a": LINES, "b": LINES, "c": {"a": LINES}}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement came with Python 3.12")
def test_a_type_statement_is_what_it_stands_for() -> None:
    scope: dict[str, Any] = {"Money": Money}
    exec("type Bag = dict[str, list[Money]]", scope)
    bag = scope["Bag"]
    assert arrived(bag, {"a": LINES}) == {"a": LINES}
    assert arrived(list[bag], [{"a": LINES}]) == [{"a": LINES}]
