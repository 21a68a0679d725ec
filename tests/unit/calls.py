"""A call's way from the enqueuer to the worker, without a database."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from pgqueue.arguments import Signature


def signature(function: Callable[..., Any]) -> Signature:
    return Signature(function, "test.task")


def through_jsonb(text: str) -> str:
    """The text as PostgreSQL gives it back: a number keeps its value and loses its exponent and the sign of zero."""

    def write(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)}: {write(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(write, value)) + "]"
        if isinstance(value, Decimal):
            return format(abs(value) if value == 0 else value, "f")
        return json.dumps(value, ensure_ascii=False)

    return write(json.loads(text, parse_float=Decimal))


def sent(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The call as it arrives at the worker."""
    made = signature(function)
    return made.decode(through_jsonb(made.encode(args, kwargs)))


def arrived(annotation: Any, value: Any) -> Any:
    """What a parameter of that annotation is at the worker."""
    return sent(taking(annotation), value)["x"]


def taking(annotation: Any) -> Callable[..., Any]:
    """A function of one parameter, x."""

    def task(x) -> None: ...

    task.__annotations__["x"] = annotation
    return task


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down: 1 is not True, 0.10 not 0.1, a list no tuple."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(item, other[key]) and any(same(key, k) for k in other) for key, item in one.items()
        )
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, datetime):
        return one.utcoffset() == other.utcoffset() and one.replace(tzinfo=None) == other.replace(tzinfo=None)
    return bool(one == other)
