"""When two enqueues are one job: by which key, for how long it is held, and what a second call does.

    key          text that the caller names, or made of the task's name and its arguments
    held         until the job has ended, until its first claim, or for a period from its enqueue
    on conflict  keep the job that holds it, replace what it was called with, move it later, or raise

Pure: enqueue.py checks the options with this, db.py writes. The key that is made of arguments is the same from Python
and from the SQL function, which hashes a jsonb's own text: hence the order of the members and the plain numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from hashlib import sha256
from typing import Any, Literal, NamedTuple, get_args

from pgqueue.errors import InvalidOption

Until = Literal["finished", "claimed"]
OnConflict = Literal["keep", "replace", "replace_args", "replace_run_at", "debounce", "raise"]
UNTIL = get_args(Until)
ON_CONFLICT = get_args(OnConflict)
NAMES = 32  # arguments that may be chosen at most

FINISHED, CLAIMED, PERIOD = range(3)  # how long a key is held; keys of different scopes never meet


class Unique(NamedTuple):
    """What an enqueue with a key goes by. period: seconds from the enqueue; None: until says how long. debounce_for:
    seconds from the job's creation, or None."""

    key: str
    until: Until
    period: float | None
    on_conflict: OnConflict
    debounce_for: float | None = None

    @property
    def scope(self) -> int:
        if self.period is not None:
            return PERIOD
        return CLAIMED if self.until == "claimed" else FINISHED

    @property
    def replaces_args(self) -> bool:
        return self.on_conflict in ("replace", "replace_args", "debounce")

    @property
    def moved(self) -> str | None:
        """What becomes of a holder's time: 'to' that of the new call, or to it if that is 'later'; None: it stays."""
        return {"replace": "to", "replace_run_at": "to", "debounce": "later"}.get(self.on_conflict)


def key_of(task: str, args: str, names: tuple[str, ...] | None) -> str:
    """The key of a call: `shop.send#` and 32 hexadecimal digits. names: the arguments that count; None: all of them.
    One that the call leaves to its default counts as left out. InvalidOption: of positional arguments only the task
    knows the names, and the same call by name would have another key."""
    given = json.loads(args, parse_float=Decimal)
    if not isinstance(given, dict):
        raise InvalidOption("unique goes by the names of arguments, so args must be an object of named ones")
    if names is not None:
        given = {name: given[name] for name in names if name in given}
    return f"{task}#{sha256(canonical(given).encode()).hexdigest()[:32]}"


def canonical(value: Any) -> str:
    """JSON as PostgreSQL writes a jsonb: members by the length of their names, then by name; no exponents."""
    if isinstance(value, dict):
        members = sorted(value.items(), key=lambda item: (len(item[0].encode()), item[0].encode()))
        return (
            "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {canonical(one)}" for name, one in members) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(canonical, value)) + "]"
    if isinstance(value, Decimal):
        return format(value if value else abs(value), "f")
    return json.dumps(value, ensure_ascii=False)


def check_names(names: object) -> bool | tuple[str, ...]:
    """The option `unique` in one form. Raises InvalidOption."""
    if isinstance(names, bool):
        return names
    if isinstance(names, str) or not isinstance(names, tuple | list):
        raise InvalidOption(
            f"unique must be True for all arguments or a tuple of their names, not {type(names).__name__}"
            + (f': write ("{names[:40]}",)' if isinstance(names, str) and names.isidentifier() else "")
        )
    if not 1 <= len(names) <= NAMES:
        raise InvalidOption(f"unique must name 1 to {NAMES} arguments, not {len(names)}; for all of them write True")
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise InvalidOption(f"unique must name arguments, not {str(name)[:40]!r}")
    if len(set(names)) < len(names):
        raise InvalidOption("unique names an argument twice")
    return tuple(names)


def check_known(names: bool | Sequence[str], known: Sequence[str], task: str) -> None:
    """Raises InvalidOption for a name that is none of the task's arguments."""
    for name in () if isinstance(names, bool) else names:
        if name not in known:
            raise InvalidOption(
                f"unique names {name!r}, which task {task} does not take; it takes {', '.join(known) or 'none'}"
            )


def check_with_key(
    has_key: bool, *, unique_until: object, unique_for: float | None, on_conflict: object, debounce_for: float | None
) -> None:
    """The options that go with a key. Raises InvalidOption."""
    _one_of("unique_until", unique_until, UNTIL)
    _one_of("on_conflict", on_conflict, ON_CONFLICT)
    if unique_for is not None and unique_until != "finished":
        raise InvalidOption("give either unique_for, a period from the enqueue, or unique_until, not both")
    if debounce_for is not None and on_conflict != "debounce":
        raise InvalidOption("debounce_for goes with on_conflict='debounce' alone")
    if has_key:
        return
    for field, said in (
        ("unique_for", unique_for is not None),
        ("unique_until", unique_until != "finished"),
        ("on_conflict", on_conflict != "keep"),
    ):
        if said:
            raise InvalidOption(f"{field} needs a key: pass unique=True, unique=(names of arguments) or unique_key")


def _one_of(field: str, value: object, words: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in words:
        said = repr(value[:40]) if isinstance(value, str) else type(value).__name__
        raise InvalidOption(f"{field} must be one of {', '.join(words)}; not {said}")
