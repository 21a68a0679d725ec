"""What would not arrive as passed is refused with its place; what no argument can be, at first use of its task."""

from __future__ import annotations

import collections.abc
import functools
import typing
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, NamedTuple, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from pgqueue import ArgsNotJSON, BadRow, Context, InvalidArguments, InvalidTask, PgQueue
from pgqueue.errors import EnqueueError
from tests.unit.calls import sent, signature, taking


class Colour(Enum):
    RED = "red"


class Other(Enum):
    ROSSO = "red"


class Size(IntEnum):
    SMALL = 1


class Width(IntEnum):
    NARROW = 1


@dataclass
class Item:
    name: str
    price: Any = None


@dataclass
class SpecialItem(Item):
    discount: int = 0


@dataclass
class Basket:
    items: list[Item]


@dataclass
class Doubled:
    """Changes what it is given: 7 becomes 14, and 28 when it is made again at the worker."""

    amount: int

    def __post_init__(self) -> None:
        self.amount *= 2


@dataclass
class Rounded:
    """Makes 0.1 into 0.10, which is equal and not the same."""

    amount: Decimal

    def __post_init__(self) -> None:
        self.amount = self.amount.quantize(Decimal("0.01"))


def unrounded() -> Rounded:
    value = Rounded(Decimal(0))
    value.amount = Decimal("0.1")
    return value


@dataclass
class Counted:
    name: str
    calls: int = field(init=False, default=0)


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Address(TypedDict, total=False):
    street: str


CHANGED: list[tuple[str, Any, Any, str]] = [
    ("naive fold", datetime, datetime(2026, 10, 25, 2, 30, fold=1), "args.x has fold=1 without a time zone"),
    ("fold of a time", time, time(2, 30, fold=1), "args.x has fold=1 without a time zone"),
    (
        "offset with seconds",
        datetime,
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=561))),
        "args.x has a time zone without an offset in whole minutes",
    ),
    ("zone of a time", time, time(8, 15, tzinfo=ZoneInfo("Europe/Paris")), "args.x has a time zone without an offset"),
    ("datetime, no annotation", Any, [datetime(2026, 1, 1)], "args.x[0] is a datetime.datetime, which"),
    ("date, no annotation", Any, {"a": date(2026, 1, 1)}, "args.x.a is a datetime.date, which would arrive as str"),
    ("time, no annotation", Any, time(8, 15), "args.x is a datetime.time, which would arrive as str"),
    ("span, no annotation", Any, timedelta(1), "args.x is a datetime.timedelta, which would arrive as str"),
    ("uuid, no annotation", Any, UUID(int=7), "args.x is a uuid.UUID, which would arrive as str"),
    ("decimal, no annotation", Any, [Decimal("1.50")], "args.x[0] is a decimal.Decimal, which would arrive as str"),
    ("enum, no annotation", Any, Colour.RED, f"args.x is a {__name__}.Colour, which would arrive as str"),
    ("dataclass, no annotation", Any, Item("a"), f"args.x is a {__name__}.Item, which would arrive as dict"),
    ("named tuple, no annotation", list[Any], [Point(1)], f"args.x[0] is a {__name__}.Point, which would"),
    ("in a field annotated Any", Basket, Basket([Item("a"), Item("b", Decimal(1))]), "args.x.items[1].price is a"),
    ("int key", Any, {1: "a"}, "args.x has a key of type int, which would arrive as str: annotate"),
    ("int key in a list", list[dict[str, int]], [{"a": 1}, {2: 2}], "args.x[1] has a key of type int"),
    ("one key twice", Any, {1: "a", "1": "b"}, "args.x.1 would be lost"),
    ("enum key", dict[str, int], {Colour.RED: 1}, f"args.x has a key of type {__name__}.Colour"),
    ("key of another enum", dict[Other, int], {Colour.RED: 1}, f"args.x has a key of type {__name__}.Colour"),
    ("unknown key", Address, {"street": "a", "town": "b"}, "args.x.town would be lost"),
    ("class", list[Item], [Item("a"), SpecialItem("b")], f"Expected `{__name__}.Item`, got `{__name__}.Special"),
    ("__post_init__ that changes", Doubled, Doubled(7), "args.x.amount is a int that JSON would change"),
    ("precision", Rounded, unrounded(), "args.x.amount is a decimal.Decimal that JSON would change"),
    ("whole number too large for a float", float, 2**53 + 1, "Expected `float`, got `int` - at `args.x`"),
    ("float for a Decimal", Decimal, 0.1, "Expected `decimal.Decimal`, got `float` - at `args.x`"),
    ("whole float for an int", int, 1.0, "Expected `int`, got `float` - at `args.x`"),
    ("large float for an int", list[int], [1e16], "Expected `int`, got `float` - at `args.x[0]`"),
    ("text for a UUID", UUID, str(UUID(int=7)), "Expected `uuid.UUID`, got `str` - at `args.x`"),
    ("text for a datetime", datetime, "2026-01-01T00:00:00Z", "Expected `datetime.datetime`, got `str` - at `args.x`"),
    ("text for an enum", Colour, "red", f"Expected `{__name__}.Colour`, got `str` - at `args.x`"),
    ("number for an enum", Size, 1, f"Expected `{__name__}.Size`, got `int` - at `args.x`"),
    ("another enum", Colour, Other.ROSSO, f"Expected `{__name__}.Colour`, got `{__name__}.Other`"),
    ("another enum of the same number", Size, Width.NARROW, f"Expected `{__name__}.Size`, got `{__name__}.Width`"),
    ("dict for a dataclass", Item, {"name": "a"}, f"Expected `{__name__}.Item`, got `dict` - at `args.x`"),
    ("list for a named tuple", Point, [1.0, 2.0], f"Expected `{__name__}.Point`, got `list` - at `args.x`"),
    ("bool for an int", int, True, "Expected `int`, got `bool` - at `args.x`"),
    ("number for a bool", bool, 1, "Expected `bool`, got `int` - at `args.x`"),
    ("text for a number", int, "7", "Expected `int`, got `str` - at `args.x`"),
    ("datetime for a date", date, datetime(2026, 1, 1), "args.x"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value", "says"), [pytest.param(*row, id=name) for name, *row in CHANGED])
def test_a_value_that_would_arrive_as_another_is_refused_with_its_place(annotation: Any, value: Any, says: str) -> None:
    with pytest.raises(EnqueueError) as caught:
        signature(taking(annotation)).encode((value,), {})
    assert isinstance(caught.value, InvalidArguments | ArgsNotJSON)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_field_that_init_does_not_take_arrives_too() -> None:
    fresh, used = Counted("a"), Counted("a")
    used.calls = 3
    assert sent(taking(list[Counted]), [fresh, used]) == {"x": [fresh, used]}


def test_the_refusal_says_where_and_never_what() -> None:
    """S16: arguments stay out of messages."""
    canary = "4111111111111111"
    for annotation, value in (
        (UUID, canary),
        (Any, {"a": Decimal(canary)}),
        (Colour, canary),
        (Basket, Basket([Item(canary, Decimal(1))])),
        (int, float(canary)),
        (Doubled, Doubled(int(canary))),
    ):
        with pytest.raises(EnqueueError) as caught:
            signature(taking(annotation)).encode((value,), {})
        assert canary not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_path_names_every_step() -> None:
    def buy(items: list[Item], by: dict[str, list[Basket]] | None = None) -> None: ...

    with pytest.raises(ArgsNotJSON, match=r"^args\.items\[3\]\.price is a bytes,"):
        signature(buy).encode(([Item("a")] * 3 + [Item("b", b"1")],), {})
    with pytest.raises(ArgsNotJSON, match=r"^args\.by\.me\[1\]\.items\[0\]\.price is a decimal\.Decimal,"):
        signature(buy).encode(([],), {"by": {"me": [Basket([]), Basket([Item("a", Decimal(1))])]}})


# -- annotations -------------------------------------------------------------------------------------------------------


class Plain:
    """A class that msgspec knows nothing of."""


@dataclass
class Holder:
    inner: Plain


@dataclass
class Node:
    """Refers to itself; that is no reason to refuse it, and none to look for ever."""

    below: list[Node] = field(default_factory=list)


@dataclass
class WithInitVar:
    seed: InitVar[int]


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (bytes, "bytes cannot be stored as JSON: annotate str"),
        (bytearray, "bytearray cannot be stored as JSON: annotate str"),
        (list[bytes], "bytes cannot be stored as JSON"),
        (set, "set cannot be stored as JSON: annotate list"),
        (dict[str, set[int]] | None, "set cannot be stored as JSON: annotate list"),
        (frozenset[int], "frozenset cannot be stored as JSON: annotate list"),
        (collections.abc.Set[int], "set cannot be stored as JSON: annotate list"),
        (object, "object says nothing that could be read back: annotate Any"),
        (list[object], "object says nothing that could be read back: annotate Any"),
        (Callable[[int], int], "Callable cannot be stored as JSON"),
        (typing.Callable, "Callable cannot be stored as JSON"),
        (Iterator[int], "Iterator cannot be stored as JSON"),
        (collections.abc.Generator[int, None, None], "Generator cannot be stored as JSON"),
        (complex, "complex cannot be stored as JSON"),
        (type, "type cannot be stored as JSON"),
        (Plain, "Plain cannot be stored as JSON: annotate plain data, a dataclass, or an id"),
        (Holder, "Plain cannot be stored as JSON"),
        (list[Holder | None], "Plain cannot be stored as JSON"),
        (WithInitVar, "dataclasses with `InitVar` fields are not supported"),
        (Exception, "Exception cannot be stored as JSON"),
        (dict[tuple[int, int], int], "JSON keys are text"),
        (dict[bool, int], "JSON keys are text"),
        (UUID | str, "Type unions may not contain more than one str-like type"),
        (datetime | date, "Type unions may not contain more than one str-like type"),
        (Item | Point | Basket, "Type unions may not contain more than one dataclass"),
        (Plain | int, "custom type"),
        (list[Context], "the Context is filled in only where a parameter is annotated Context"),
        (Context | int, "the Context is filled in only where a parameter is annotated Context"),
    ],
    ids=repr,
)
def test_an_annotation_that_cannot_be_kept_makes_a_bad_task_and_names_the_parameter(annotation: Any, says: str) -> None:
    """At first use: when the task is declared, the module it stands in may be half read."""

    def task(fine: int, x: Any = None) -> None: ...

    task.__annotations__ = {"fine": int, "x": annotation}
    for act in (
        lambda made: made.check(),
        lambda made: made.encode((1,), {}),
        lambda made: made.decode('{"fine": 1}'),
    ):
        with pytest.raises(InvalidTask) as caught:
            act(signature(task))
        assert str(caught.value).startswith("task test.task: parameter x: ")
        assert says in str(caught.value)


def test_a_type_may_refer_to_itself() -> None:
    tree = Node([Node(), Node([Node()])])
    assert sent(taking(Node), tree) == {"x": tree}


def test_only_the_parameters_annotations_are_read() -> None:
    """What a task returns is often imported for type checkers alone."""

    def task(x: int) -> NoSuchThing: ...  # noqa: F821

    assert sent(task, 7) == {"x": 7}


# -- the context -------------------------------------------------------------------------------------------------------


def first(ctx: Context, amount: int) -> None: ...
def first_or_none(ctx: Context | None, amount: int) -> None: ...
def last(amount: int, ctx: Context | None = None) -> None: ...
def by_keyword(amount: int, *, here: Context) -> None: ...
def as_text(amount: int, ctx: "Context") -> None: ...  # noqa: UP037
def optional(amount: int, ctx: typing.Optional[Context] = None) -> None: ...  # noqa: UP045
def annotated(amount: int, ctx: typing.Annotated[Context, "ours"]) -> None: ...


@pytest.mark.parametrize("function", [first, first_or_none, last, by_keyword, as_text, optional, annotated])
def test_the_context_is_found_by_its_annotation_wherever_it_stands(function: Callable[..., Any]) -> None:
    made = signature(function)
    assert made.context_parameter in ("ctx", "here")
    assert made.encode((7,), {}) == '{"amount":7}'
    with pytest.raises(InvalidArguments, match=f"'{made.context_parameter}'"):
        made.encode((7,), {made.context_parameter: None})
    with pytest.raises(BadRow):
        made.decode(f'{{"amount": 7, "{made.context_parameter}": null}}')


def test_a_second_context_is_refused_even_an_optional_one() -> None:
    def task(one: Context, two: Context | None = None) -> None: ...

    with pytest.raises(InvalidTask, match="only one parameter can be the Context, not one, two"):
        signature(task).encode((), {})


# -- functions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def app() -> PgQueue:
    """Connects to nothing."""
    return PgQueue("postgresql://localhost/nowhere")


class Mailer:
    def send(self, x: int) -> None: ...

    def __call__(self, x: int) -> None: ...


def plain(x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (Mailer(), "a plain function, not Mailer: wrap it in a def"),
        (Mailer().send, "a plain function, not method: wrap it in a def"),
        (functools.partial(plain, 7), "a plain function, not partial: wrap it in a def"),
        (functools.lru_cache(plain), "a plain function, not _lru_cache_wrapper: wrap it in a def"),
        (staticmethod(plain), "below @staticmethod"),
    ],
    ids=["object", "method", "partial", "cached", "staticmethod"],
)
def test_what_only_can_be_called_is_no_task(app: PgQueue, thing: Any, says: str) -> None:
    with pytest.raises(InvalidTask, match=says):
        app.task(thing)
    assert not app.tasks


def test_parameters_without_a_name_of_their_own_are_refused_at_the_declaration(app: PgQueue) -> None:
    def positional(x: int, /) -> None: ...
    def many(x: int, *rest: int) -> None: ...
    def named(x: int, **rest: int) -> None: ...

    for function, parameter in ((positional, "x: "), (many, "*rest"), (named, "**rest")):
        with pytest.raises(InvalidTask) as caught:
            app.task(function)
        assert f"parameter {parameter}" in str(caught.value)
        assert "functools.wraps" in str(caught.value)
    assert not app.tasks


def test_a_decorator_that_uses_wraps_keeps_signature_annotations_and_context(app: PgQueue) -> None:
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def around(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return around

    def careless(function: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return around

    task = app.task(logged(logged(first)))
    assert task.signature.context_parameter == "ctx"
    assert task.job(7).args == '{"amount":7}'
    with pytest.raises(InvalidTask, match=r"functools\.wraps"):
        app.task(careless(plain))
