"""Log lines for people and for machines: an event, and fields that name the job. Never its arguments.

pgqueue logs through the standard logger "pgqueue" and leaves its configuration to the application; the command line
uses these formatters. Whatever a user may have put into a field stays on its line: control characters are escaped.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

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


class TextFormatter(logging.Formatter):
    """`2026-01-31T08:15:02.113Z INFO    completed job_id=7 task=shop.send attempt=1 seconds=0.02`"""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), f"{record.levelname:<7}", one_line(record.getMessage())]
        parts += [f"{name}={one_line(str(value))}" for name, value in _fields(record).items() if name != "event"]
        if trace := _trace(record, self):
            parts.append("\n" + "\n".join(one_line(line) for line in trace.split("\n")))
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname, "message": record.getMessage()}
        line |= _fields(record)
        if trace := _trace(record, self):
            line["traceback"] = trace
        return json.dumps(line, default=str)


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


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}


def _trace(record: logging.LogRecord, formatter: logging.Formatter) -> str | None:
    """Ours of what an application raised comes as text, without what must not be logged (failure.py)."""
    if record.exc_info:
        return formatter.formatException(record.exc_info)
    made = getattr(record, "traceback", None)
    return made if isinstance(made, str) else None


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
