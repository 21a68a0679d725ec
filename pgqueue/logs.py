"""Log lines for people and for machines: an event, and fields that name the job. Never its arguments.

pgqueue logs through the standard logger "pgqueue" and leaves its configuration to the application; the command line
uses these formatters. Whatever a user may have put into a field stays on its line: control characters are escaped.
A line that something else logs inside a job, a library say, is given the job's name by them.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Protocol

FIELDS = (
    "event",
    "job_id",
    "task",
    "queue",
    "attempt",
    "max_attempts",
    "fence",
    "worker_id",
    "schedule",
    "tick",
    "connection",
    "seconds",
    "delay",
    "reason",
    "error",
)

# What a record has that nobody has put there; taskName from Python 3.12 on.
STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_KNOWN = STANDARD | {*FIELDS, "traceback"}  # what has a place of its own in a line

_DEEPEST = 20  # levels of what is nested in an `extra`
_LONGEST = 1024  # bits of a whole number in an `extra`


class Named(Protocol):
    """An attempt, as far as a log line is concerned."""

    @property
    def log_fields(self) -> dict[str, Any]: ...


running: ContextVar[Named | None] = ContextVar("pgqueue_running", default=None)
"""The attempt in whose thread or asyncio task this is; kept only once somebody reads it, see `names_jobs`."""

names_jobs = False  # whether a formatter of ours was made; on the hot path nothing is set for nobody


def name_jobs() -> None:
    """From now on each attempt is known by its name to what it calls."""
    global names_jobs
    names_jobs = True


class _Naming(logging.Formatter):
    """One that tells inside which job a line was logged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # logging.config gives some, of no use here
        name_jobs()


class TextFormatter(_Naming):
    """`2026-01-31T08:15:02.113Z INFO    completed job_id=7 task=shop.send attempt=1 seconds=0.02`"""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), f"{record.levelname:<7}", one_line(record.getMessage())]
        parts += [f"{name}={one_line(str(value))}" for name, value in _fields(record).items() if name != "event"]
        if trace := _trace(record, self):
            parts.append("\n" + "\n".join(one_line(line) for line in trace.split("\n")))
        return " ".join(parts)


class JsonFormatter(_Naming):
    """One JSON object a line; fields that are not pgqueue's own, of `extra={...}`, stand below `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if trace := _trace(record, self):
            line["traceback"] = trace
        own = {name: value for name, value in vars(record).items() if name not in _KNOWN}
        if own:
            line["extra"] = own
        try:
            return json.dumps(line, default=_text, allow_nan=False)
        except (TypeError, ValueError, RecursionError):  # a NaN, a key that is no text, a list that holds itself
            return json.dumps(_plain(line), allow_nan=False)


def configure(level: str = "info", form: str = "text") -> None:
    """Log to standard error; `form` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of each broken connection; we say so once
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its plugins, at each import


def one_line(text: str) -> str:
    """`text` with control characters, line breaks and direction marks escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def of_the_job(record: logging.LogRecord) -> dict[str, Any]:
    """What names the job inside which the line is logged; nothing outside, or for a line that names one itself."""
    inside = running.get()
    return {} if inside is None or getattr(record, "job_id", None) is not None else inside.log_fields


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    known = {**of_the_job(record), **vars(record)}
    return {name: value for name in FIELDS if (value := known.get(name)) is not None}


def _text(value: object) -> str:
    try:
        return str(value)
    except BaseException as broken:  # whatever it raises: it is an application's own code
        return f"(a {type(value).__name__} that cannot be printed: {type(broken).__name__})"


def _plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """What JSON can hold of it; the rest as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, int):  # one of 5,000 digits cannot be printed
        return value if value.bit_length() <= _LONGEST else _text(value)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, dict | list | tuple):
        return _text(value)
    if id(value) in above or len(above) >= _DEEPEST:
        return "…"
    inside = (*above, id(value))
    if isinstance(value, dict):
        return {key if isinstance(key, str) else _text(key): _plain(one, inside) for key, one in value.items()}
    return [_plain(one, inside) for one in value]


def _trace(record: logging.LogRecord, formatter: logging.Formatter) -> str | None:
    """Ours of what an application raised comes as text, without what must not be logged (failure.py)."""
    if record.exc_info:
        return formatter.formatException(record.exc_info)
    made = getattr(record, "traceback", None)
    return made if isinstance(made, str) else None


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
