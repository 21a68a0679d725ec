"""A call's arguments, to JSON and back: what arrives is as annotated, and what would not is refused by place."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgqueue import ArgsNotJSON, BadRow, Context, InvalidArguments, InvalidTask
from pgqueue.arguments import to_json
from pgqueue.settings import MAX_ARGS_BYTES, MAX_DEPTH
from tests.unit.calls import sent, signature

# -- plain data ------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
integers = st.integers(-(10**400), 10**400)
floats = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | integers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=25,
)


def anything(x: Any) -> None: ...


def unannotated(x): ...


def a_float(x: float) -> None: ...


@given(plain)
@example({"": "", "$": "$.x", "a.b": [[[]], {}]})
@example("\u202e\u0085\u2028\x7f\U0001f600")
@example(2**53 + 1)
@example(2**64)
def test_plain_data_arrives_as_it_was_sent(value: Any) -> None:
    assert sent(anything, value) == {"x": value}
    assert sent(unannotated, value) == {"x": value}


@given(floats)
@example(1.7976931348623157e308)
@example(5e-324)
@example(1e16)
def test_a_parameter_annotated_float_arrives_as_that_float(value: float) -> None:
    """jsonb turns 1e308 into 309 digits, and 1e16 into a whole number."""
    arrived = sent(a_float, value)["x"]
    assert arrived == value
    assert type(arrived) is float


def test_subclasses_of_plain_types_are_what_they_are_subclasses_of() -> None:
    """numpy's float64 is a float, markupsafe's Markup a str."""

    class Markup(str):
        def __str__(self) -> str:
            return "not the text itself"

    class Celsius(float): ...

    class Count(int): ...

    class Config(dict[str, Any]): ...

    class Path(list[Any]): ...

    given_ = [
        Markup("<b>"),
        Celsius(1.5),
        Count(3),
        Config(a=1),
        Path([1]),
        OrderedDict(b=2),
        MappingProxyType({"c": 3}),
    ]
    arrived = sent(anything, given_)["x"]
    assert arrived == ["<b>", 1.5, 3, {"a": 1}, [1], {"b": 2}, {"c": 3}]
    assert [type(item) for item in arrived] == [str, float, int, dict, list, dict, dict]


# -- annotated types ----------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    GREEN = "g"


class Size(IntEnum):
    SMALL = 1


class Mode(StrEnum):
    FAST = "fast"


@dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str = "EUR"


@dataclass
class Order:
    id: UUID
    total: Money
    lines: list[Line]
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class Line:
    """Defined below what refers to it."""

    sku: str
    ordered_on: date


class Address(TypedDict):
    street: str
    since: date


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Shape(msgspec.Struct):
    corners: list[Point]


UserId = NewType("UserId", int)
UUID_ = UUID("6e1c2c9c-07e0-4d1c-8d5b-6a0f3d2b1c4e")
LINE = Line("A-1", date(2026, 2, 28))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (datetime, datetime(2026, 3, 29, 1, 30, 0, 123456, UTC)),
        (datetime, datetime(2026, 3, 29, 1, 30)),
        (datetime, datetime(2026, 3, 29, 1, 30, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))),
        (date, date(1, 1, 1)),
        (time, time(23, 59, 59, 999999)),
        (timedelta, timedelta(days=-3, microseconds=1)),
        (timedelta, timedelta(days=400, seconds=5)),
        (UUID, UUID_),
        (Decimal, Decimal("0.10")),
        (Decimal, Decimal("1e-400")),
        (Colour, Colour.RED),
        (Colour, Colour.GREEN),
        (Size, Size.SMALL),
        (Mode, Mode.FAST),
        (Money, Money(Decimal("9.90"))),
        (Order, Order(UUID_, Money(Decimal(1), "CHF"), [LINE, LINE], {"gift": "yes"})),
        (Address, {"street": "Main 1", "since": date(2020, 2, 29)}),
        (Point, Point(1.5, -2.0)),
        (Shape, Shape([Point(0.0), Point(1.0, 1.0)])),
        (UserId, UserId(7)),
        (Annotated[int, msgspec.Meta(ge=0)], 7),
        (Literal["a", "b"], "b"),
        (Money | None, None),
        (Money | None, Money(Decimal(3))),
        (int | str, 7),
        (int | str, "7"),
        (list[date], [date(2026, 1, 1)]),
        (tuple[int, ...], (1, 2, 3)),
        (tuple[str, date], ("x", date(2026, 1, 1))),
        (dict[str, UUID], {"k": UUID_}),
        (dict[int, str], {1: "a", -2: "b"}),
        (list[dict[str, list[Colour]]], [{"k": [Colour.RED]}, {}]),
        (bool, True),
        (None, None),
    ],
    ids=repr,
)
def test_an_argument_arrives_as_the_annotated_type(annotation: Any, value: Any) -> None:
    def task(x) -> None: ...

    task.__annotations__["x"] = annotation
    arrived = sent(task, value)["x"]
    assert arrived == value
    assert type(arrived) is type(value)
    if isinstance(value, datetime):
        assert arrived.utcoffset() == value.utcoffset()


def later(order: Order, then: Later | None = None) -> None: ...


@dataclass
class Later:
    at: datetime


def test_annotations_are_resolved_when_the_module_is_complete() -> None:
    """`from __future__ import annotations` makes all of them text, and Later stands below the task that names it."""
    order = Order(UUID_, Money(Decimal(1)), [])
    assert sent(later, order, Later(datetime(2026, 1, 1, tzinfo=UTC))) == {
        "order": order,
        "then": Later(datetime(2026, 1, 1, tzinfo=UTC)),
    }


class Mixed(Enum):
    TEXT = "x"
    NUMBER = 1


def test_a_task_whose_annotations_cannot_be_read_is_a_bad_task_and_no_bad_call_or_row() -> None:
    """Or a worker would dead-letter every job of it as a row that cannot be read."""

    def unresolved(x: NoSuchThing) -> None: ...  # noqa: F821

    def unreadable(x: Mixed) -> None: ...

    for task, why in ((unresolved, "NoSuchThing"), (unreadable, "Enums must contain either all str or all int")):
        for act in (
            lambda made: made.check(),
            lambda made: made.encode((1,), {}),
            lambda made: made.decode('{"x": 1}'),
        ):
            with pytest.raises(InvalidTask, match=f"^task test.task: .*{why}"):
                act(signature(task))


# -- the call --------------------------------------------------------------------------------------------------------


def pay(amount: int, currency: str = "EUR", *, note: str | None = None, tags: list[str] | None = None) -> None: ...


def test_a_call_is_stored_by_name_and_what_it_leaves_out_is_left_out() -> None:
    """So that the default of the worker's own version holds."""
    assert json.loads(signature(pay).encode((7,), {"note": "x"})) == {"amount": 7, "note": "x"}
    assert signature(pay).decode('{"amount": 7}') == {"amount": 7}


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "missing a required argument: 'amount'"),
        ((1, "EUR", "x"), {}, "too many positional arguments"),
        ((1,), {"amount": 2}, "multiple values for argument 'amount'"),
        ((1,), {"colour": 2}, "unexpected keyword argument 'colour'"),
        (("7",), {}, "Expected `int`, got `str` - at `args.amount`"),
        ((True,), {}, "Expected `int`, got `bool` - at `args.amount`"),
        ((7.5,), {}, "Expected `int`, got `float` - at `args.amount`"),
        ((7,), {"tags": ["a", 5]}, "Expected `str`, got `int` - at `args.tags[1]`"),
    ],
)
def test_a_call_that_does_not_fit_the_signature_is_refused_before_any_sql(
    args: tuple[Any, ...], kwargs: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidArguments) as caught:
        signature(pay).encode(args, kwargs)
    assert str(caught.value).startswith("task test.task: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "function", [lambda *args: None, lambda **options: None, lambda x, /: None, lambda x, *rest, y=1: None]
)
def test_parameters_that_cannot_be_stored_by_name_make_no_task(function: Callable[..., Any]) -> None:
    with pytest.raises(InvalidTask, match="cannot be stored by name"):
        signature(function)


def with_context(ctx: Context, amount: int) -> None: ...


def context_last(amount: int, *, ctx: Context) -> None: ...


@pytest.mark.parametrize("function", [with_context, context_last])
def test_the_context_is_no_part_of_the_call(function: Callable[..., Any]) -> None:
    made = signature(function)
    assert made.context_parameter == "ctx"
    assert made.encode((7,), {}) == '{"amount":7}'
    assert made.decode("[7]") == {"amount": 7}
    with pytest.raises(InvalidArguments, match="'ctx'"):
        made.encode((7,), {"ctx": 1})
    with pytest.raises(BadRow):
        made.decode('{"amount": 7, "ctx": {}}')


def test_a_task_has_one_context_at_most() -> None:
    def task(one: Context, two: Context) -> None: ...

    with pytest.raises(InvalidTask, match="only one parameter can be the Context, not one, two"):
        signature(task).encode((), {})


@pytest.mark.parametrize("name", ["self", "session", "queue", "connection", "args", "kwargs", "sql", "cls", "_x"])
def test_parameters_may_have_any_name(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def task({name}: int, other: str = ''): ...", scope)
    assert sent(scope["task"], 7) == {name: 7}
    assert sent(scope["task"], **{name: 7, "other": "x"}) == {name: 7, "other": "x"}


# -- refused values ---------------------------------------------------------------------------------------------------


class Odd(Enum):
    BYTES = b"x"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


NOT_FINITE = (math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("-Infinity"))

REFUSED: list[tuple[str, Any, str, str]] = [
    *(("number", {"a": [1, value]}, "args.x.a[1]", f"is {value}, which JSON cannot hold") for value in NOT_FINITE),
    ("nul", {"a": ["fine", "a\0b"]}, "args.x.a[1]", "contains a NUL character"),
    ("surrogate", {"a": ["fine", "\ud800"]}, "args.x.a[1]", "contains a lone surrogate"),
    ("nul in a key", {"a": [{"k\0": 1}]}, "a key of args.x.a[0]", "contains a NUL character"),
    ("surrogate in a key", [{"\udfff": 1}], "a key of args.x[0]", "contains a lone surrogate"),
    ("bytes", [[b"x"]], "args.x[0][0]", "is a bytes,"),
    ("bytearray", bytearray(b"x"), "args.x", "is a bytearray,"),
    ("set", {"a": {1}}, "args.x.a", "is a set,"),
    ("frozenset", frozenset(), "args.x", "is a frozenset,"),
    ("generator", [(one for one in ())], "args.x[0]", "is a generator,"),
    ("range", range(3), "args.x", "is a range,"),
    ("deque", deque(), "args.x", "is a collections.deque,"),
    ("object", {"a": {"b": object()}}, "args.x.a.b", "is a object,"),
    ("complex", 1j, "args.x", "is a complex,"),
    ("class", Money, "args.x", "is a type,"),
    ("function", len, "args.x", "is a builtin_function_or_method,"),
    ("exception", ValueError("x"), "args.x", "is a ValueError,"),
    ("in a dataclass", Money(Decimal(1), b"EUR"), "args.x.currency", "is a bytes,"),
    ("in a named tuple", [Point(math.nan)], "args.x[0].x", "is nan,"),
    ("in a struct", Shape([Point(1.0, math.inf)]), "args.x.corners[0].y", "is inf,"),
    ("in an enum", {"a": Odd.BYTES}, "args.x.a", "is a bytes,"),
    ("in a tuple", (1, (2, {3})), "args.x[1][1]", "is a set,"),
    ("huge", {"a": [10**4000]}, "args.x.a[0]", "has more than 4,000 digits"),
    ("huge negative", -(10**4000), "args.x", "has more than 4,000 digits"),
    ("key None", {"a": {None: 1}}, "args.x.a", "has a key of type NoneType"),
    ("key bool", {True: 1}, "args.x", "has a key of type bool"),
    ("key float", {1.5: 1}, "args.x", "has a key of type float"),
    ("key tuple", {(1, 2): 1}, "args.x", "has a key of type tuple"),
    ("key date", {date(2026, 1, 1): 1}, "args.x", "has a key of type datetime.date"),
    ("too deep", nested(MAX_DEPTH), "args.x" + "[0]" * (MAX_DEPTH - 1), f"is nested more than {MAX_DEPTH} deep"),
    ("cyclic", cyclic(), "args.x" + "[0]" * (MAX_DEPTH - 1), f"is nested more than {MAX_DEPTH} deep"),
]


@pytest.mark.parametrize(("value", "path", "says"), [pytest.param(*row, id=name) for name, *row in REFUSED])
def test_a_value_that_would_not_survive_the_way_is_refused_with_its_place(value: Any, path: str, says: str) -> None:
    with pytest.raises(ArgsNotJSON) as caught:
        signature(anything).encode((value,), {})
    place, message = str(caught.value).split(" ", 1)
    if path.startswith("a key of "):
        place, message = str(caught.value)[: len(path)], str(caught.value)[len(path) + 1 :]
    assert place == path[:200]
    assert message.startswith(says)


def test_a_hundred_levels_and_four_thousand_digits_are_still_taken() -> None:
    deepest = nested(MAX_DEPTH - 1)  # the arguments themselves are the first level
    assert sent(anything, deepest) == {"x": deepest}
    assert sent(anything, 10**4000 - 1) == {"x": 10**4000 - 1}


def test_arguments_may_take_256_kb_and_not_a_byte_more() -> None:
    room = MAX_ARGS_BYTES - len('{"x":""}')
    assert len(signature(anything).encode(("x" * room,), {})) == MAX_ARGS_BYTES
    with pytest.raises(ArgsNotJSON) as caught:
        signature(anything).encode(("x" * (room + 1),), {})
    assert f"{MAX_ARGS_BYTES + 1:,} bytes as JSON, more than {MAX_ARGS_BYTES:,}" in str(caught.value)
    with pytest.raises(ArgsNotJSON):  # bytes, not characters
        signature(anything).encode(("ü" * (room // 2 + 1),), {})


def test_what_the_database_would_print_counts_and_not_what_was_written() -> None:
    few, many = [1e-300] * 800, [1e-300] * 900  # 6 characters each, of which jsonb makes 302
    assert sent(anything, few) == {"x": few}
    with pytest.raises(ArgsNotJSON, match=r"^args takes 276,\d{3} bytes as JSON, more than 262,144"):
        signature(anything).encode((many,), {})
    with pytest.raises(ArgsNotJSON, match=r"^args takes"):
        signature(anything).encode(({"deep": [{"a": many}]},), {})
    text = "1e-300," * 20_000
    assert sent(anything, text) == {"x": text}


def test_the_root_of_the_path_is_what_the_caller_calls_it() -> None:
    with pytest.raises(ArgsNotJSON, match=r"^meta\.a is a set,"):
        to_json({"a": set()}, "meta", 100)


# -- stored rows, whatever they hold ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[7]", {"amount": 7}),
        (' \n[7, "CHF"]', {"amount": 7, "currency": "CHF"}),
        ('{"amount": 7, "note": null}', {"amount": 7, "note": None}),
    ],
)
def test_an_array_is_positional_and_an_object_named(text: str, expected: dict[str, Any]) -> None:
    assert signature(pay).decode(text) == expected


def test_positional_arguments_arrive_as_annotated_too() -> None:
    assert signature(later).decode(signature(later).encode((Order(UUID_, Money(Decimal(1)), [LINE]),), {})) == {
        "order": Order(UUID_, Money(Decimal(1)), [LINE])
    }
    assert signature(later).decode(
        f'[{{"id": "{UUID_}", "total": {{"amount": "1"}}, "lines": []}}, {{"at": "2026-01-01T00:00:00Z"}}]'
    ) == {"order": Order(UUID_, Money(Decimal(1)), []), "then": Later(datetime(2026, 1, 1, tzinfo=UTC))}


@dataclass
class Strict:
    card: str

    def __post_init__(self) -> None:
        if not self.card.isdecimal():
            raise ValueError(f"{self.card} is no card - at `{self.card}`")


def keeps_secrets(
    number: int = 0,
    colour: Colour = Colour.RED,
    mode: Literal["a", "b"] = "a",
    id: UUID | None = None,
    when: datetime | None = None,
    price: Decimal | None = None,
    card: Strict | None = None,
    many: dict[str, dict[str, int]] | None = None,
    by_number: dict[int, str] | None = None,
    bounded: Annotated[str, msgspec.Meta(pattern="^x$")] = "x",
    at: Point | None = None,
) -> None: ...


CANARY = "4111111111111111x"


@pytest.mark.parametrize(
    "text",
    [
        f'{{"number": "{CANARY}"}}',
        f'{{"colour": "{CANARY}"}}',
        f'{{"colour": "{CANARY} - at `$.{CANARY}`"}}',
        f'{{"mode": "{CANARY}"}}',
        f'{{"id": "{CANARY}"}}',
        f'{{"when": "{CANARY}"}}',
        f'{{"price": "{CANARY}"}}',
        f'{{"card": {{"card": "{CANARY}"}}}}',
        f'{{"many": {{"{CANARY}": {{"{CANARY}": "{CANARY}"}}}}}}',
        f'{{"by_number": {{"{CANARY}": "x"}}}}',
        f'{{"bounded": "{CANARY}"}}',
        f'{{"at": ["{CANARY}"]}}',
        f'["{CANARY}"]',
        f'[0, "{CANARY}"]',
        f"[{', '.join([f'{chr(34)}{CANARY}{chr(34)}'] * 20)}]",
        f'"{CANARY}"',
        f'{{"number": {CANARY}}}',
        f'{{"number": "{CANARY}',
        "",
        "null",
        "7",
        "{",
        '{"number": ' + "9" * 5_000 + "}",
        '{"number": 1e5000}',
        "[1e5000]",
        '{"many": ' + "[" * 10_000 + "]" * 10_000 + "}",
        "[" * 10_000 + "]" * 10_000,
        '{"number": "\\ud800"}',
    ],
    ids=lambda text: text[:40],
)
def test_a_stored_row_that_does_not_fit_is_a_bad_row_and_its_values_stay_out_of_the_message(text: str) -> None:
    with pytest.raises(BadRow) as caught:
        signature(keeps_secrets).decode(text)
    message = str(caught.value)
    assert message.startswith("the stored arguments do not fit task test.task: ")
    assert CANARY[:8] not in message
    assert len(message) < 300
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # a traceback must not show them either


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"number": "x"}', "Expected `int`, got `str` - at `args.number`"),
        ('{"colour": "green"}', "Invalid enum value - at `args.colour`"),
        ('{"card": {"card": "x"}}', "ValueError - at `args.card`"),
        ('{"at": [1, "x"]}', "Expected `float`, got `str` - at `args.at[1]`"),
        ('{"nonsense": 1}', "Object contains unknown field `nonsense`"),
    ],
)
def test_a_bad_row_names_the_place(text: str, place: str) -> None:
    with pytest.raises(BadRow) as caught:
        signature(keeps_secrets).decode(text)
    assert str(caught.value).endswith(place)


@given(st.text() | plain.map(lambda value: json.dumps(value, default=str)))
def test_reading_a_row_gives_arguments_or_a_bad_row_and_nothing_else(text: str) -> None:
    try:
        arguments = signature(keeps_secrets).decode(text)
    except BadRow:
        return
    assert isinstance(arguments, dict)
