"""pydantic's models are arguments like dataclasses, where pydantic is installed; without it nothing asks for it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, TypeVar
from uuid import UUID

import pytest

from pgqueue import ArgsNotJSON, BadRow, InvalidArguments, InvalidTask
from pgqueue.arguments import result_json
from tests.unit.calls import arrived, sent, signature, taking

pydantic = pytest.importorskip("pydantic", minversion="2")

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, SecretStr, field_validator  # noqa: E402
from pydantic.dataclasses import dataclass as model_dataclass  # noqa: E402

T = TypeVar("T")


class Colour(Enum):
    RED = "red"


class Item(BaseModel):
    sku: str
    price: Decimal
    count: int = 1


class Order(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: UUID
    at: datetime
    items: list[Item] = []
    colour: Colour | None = None
    raw: bytes = b""
    labels: set[str] = set()
    parent: Order | None = None


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    user_id: int = Field(alias="userId")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: int


class Box(BaseModel, Generic[T]):
    content: T


class Names(RootModel[list[str]]): ...


class Guarded(BaseModel):
    card: str
    secret: SecretStr | None = None

    @field_validator("card")
    @classmethod
    def _digits(cls, value: str) -> str:
        if not value.isdecimal():
            raise ValueError(f"{value} is no card")
        return value


class Hidden(BaseModel):
    a: int
    _calls: int = PrivateAttr(default=0)


@model_dataclass
class Validated:
    at: date
    size: int = Field(ge=0, default=0)


@dataclass
class Holder:
    order: Order
    more: list[Item]


ITEM = Item(sku="A", price=Decimal("0.10"))
ORDER = Order(
    id=UUID(int=7),
    at=datetime(2026, 1, 31, 8, 15, 2, 7, UTC),
    items=[ITEM, ITEM],
    colour=Colour.RED,
    raw=b"abc",
    labels={"x", "y"},
)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Item, ITEM),
        (Order, ORDER),
        (Order, ORDER.model_copy(update={"parent": ORDER})),
        (Order | None, None),
        (Order | None, ORDER),
        (list[Item], [ITEM, ITEM]),
        (dict[str, Item], {"a": ITEM}),
        (Holder, Holder(ORDER, [ITEM])),
        (Aliased, Aliased(userId=7)),
        (Open, Open(a=1, b=[1, 2])),
        (Box[int], Box[int](content=7)),
        (Box[Item], Box[Item](content=ITEM)),
        (Names, Names(["a", "b"])),
        (Validated, Validated(at=date(2026, 1, 1), size=3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_arrives_as_that_model(annotation: Any, value: Any) -> None:
    got = arrived(annotation, value)
    assert got == value
    assert type(got) is type(value)


def test_the_fields_of_a_model_have_their_types() -> None:
    got = arrived(Order, ORDER)
    assert [type(item) for item in got.items] == [Item, Item]
    assert (got.items[0].price.as_tuple(), got.labels, got.raw) == (Decimal("0.10").as_tuple(), {"x", "y"}, b"abc")


def test_what_a_model_keeps_to_itself_is_no_part_of_the_call() -> None:
    value = Hidden(a=7)
    value._calls = 3
    assert arrived(Hidden, value) == Hidden(a=7)


def test_a_model_that_would_not_come_back_equal_is_refused_with_its_place() -> None:
    hidden = Guarded(card="41", secret=SecretStr("x"))
    with pytest.raises(
        ArgsNotJSON, match=r"^args\.x\[1\]\.secret is a pydantic\.types\.SecretStr that JSON would chan"
    ):
        signature(taking(list[Guarded])).encode(([Guarded(card="41"), hidden],), {})
    with pytest.raises(ArgsNotJSON, match=r"^args\.x is a .*Item, which would arrive as dict: annotate it as it is"):
        signature(taking(Any)).encode((ITEM,), {})
    with pytest.raises(InvalidArguments, match=r"Expected `.*Item`, got `dict` - at `args\.x`"):
        signature(taking(Item)).encode(({"sku": "A", "price": "0.10"},), {})
    with pytest.raises(ArgsNotJSON, match=r"^args\.x\.sku contains a NUL character"):
        signature(taking(Item)).encode((Item(sku="a\0b", price=Decimal(1)),), {})
    not_valid = Guarded.model_construct(card="4111x")
    with pytest.raises(InvalidArguments) as caught:
        signature(taking(Guarded)).encode((not_valid,), {})
    assert str(caught.value) == "task test.task: ValidationError - at `args.x`"


def test_a_stored_model_that_does_not_validate_is_a_bad_row_and_its_values_stay_out_of_the_message() -> None:
    with pytest.raises(BadRow) as caught:
        signature(taking(Guarded)).decode('{"x": {"card": "4111111111111111x"}}')
    assert str(caught.value) == "the stored arguments do not fit task test.task: ValidationError - at `args.x`"
    assert caught.value.__cause__ is None


def test_what_plain_sql_wrote_is_read_as_the_model_reads_json() -> None:
    text = '{"x": {"id": "00000000-0000-0000-0000-000000000007", "at": "2026-01-31T08:15:02Z", "items": []}}'
    assert signature(taking(Order)).decode(text)["x"].at == datetime(2026, 1, 31, 8, 15, 2, tzinfo=UTC)


def test_a_union_of_models_is_refused() -> None:
    with pytest.raises(InvalidTask, match=r"^task test\.task: parameter x: .*custom type"):
        signature(taking(Item | Order)).check()


def test_a_model_may_be_a_result() -> None:
    assert result_json(ITEM) == '{"sku":"A","price":"0.10","count":1}'
    assert result_json([ITEM]) == '[{"sku":"A","price":"0.10","count":1}]'


def test_a_model_is_passed_beside_plain_arguments() -> None:
    def buy(order: Order, times: int = 1, *, note: str = "") -> None: ...

    assert sent(buy, ORDER, note="x") == {"order": ORDER, "note": "x"}
    assert sent(buy, times=2, order=ORDER) == {"order": ORDER, "times": 2}


def test_pgqueue_does_without_pydantic() -> None:
    script = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from pgqueue import PgQueue\n"
        "app = PgQueue('postgresql://localhost/nowhere')\n"
        "@app.task\n"
        "def send(x: int, y: list[str]) -> None: ...\n"
        'assert send.job(7, [\'a\']).args == \'{"x":7,"y":["a"]}\'\n'
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
