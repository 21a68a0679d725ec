"""An exception as text that may be kept and logged: its class, its message, its traceback.

Of a database's error the primary message alone: DETAIL, the failing row and SQLAlchemy's parameters hold what belongs
to the application's users. The text is fit for PostgreSQL, and bounded.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import psycopg
from sqlalchemy.exc import StatementError

from pgqueue.settings import MAX_ERROR_CHARS, MAX_TRACEBACK_CHARS

_OWN = ("pgqueue.worker.", "pgqueue.middleware", "pgqueue.events")  # frames of no use to whoever wrote it


class Place(str):
    """A note on an error: which middleware raised it, and when. What is kept of the error says it."""


def describe(error: BaseException) -> str:
    """`ValueError: no such plan`, fit to be stored: no NUL, no lone surrogate, at most 10,000 characters."""
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    message = _message(error)
    text = clean(f"{name}: {message}" if message else name)
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, Place):
            text = f"{text[: MAX_ERROR_CHARS - len(note) - 3]} ({note})"
    return text[:MAX_ERROR_CHARS]


def trace(error: BaseException) -> str:
    """The traceback with its causes, without pgqueue's own frames; its end is kept when it is long."""
    parts = [
        part
        for link in reversed(list(_chain(error)))
        for part in (*traceback.format_tb(_own_frames_off(link)), f"{describe(link)}\n\n")
    ]
    return clean("".join(parts).rstrip())[-MAX_TRACEBACK_CHARS:]


def clean(text: str) -> str:
    """Text that PostgreSQL can store."""
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


def _message(error: BaseException) -> str:
    """A database error's first line only: its DETAIL and parameters may hold what must not be stored."""
    if isinstance(error, StatementError):
        return (
            _message(error.orig) if error.orig is not None else str(error.args[0] if error.args else "").split("\n")[0]
        )
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary
    if isinstance(error, psycopg.ProgrammingError):
        return "(its message may hold a connection string)"
    try:
        return str(error)
    except BaseException as broken:  # whatever it raises, SystemExit included: it is the job's own code
        return f"(its message cannot be printed: {type(broken).__name__})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, at most 10 links; a cycle ends it."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) < 10:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _own_frames_off(error: BaseException) -> Any:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith(_OWN):
        frames = frames.tb_next
    return frames
