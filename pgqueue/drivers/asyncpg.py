"""asyncpg: the application's own Connection, also one that a pool has handed out.

Parameters are $1, $2, … and typed by the server: the statements cast each of them, JSON by way of text, so that an
application's own codec for jsonb does not encode it twice.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from pgqueue.drivers.steps import (
    CLOSED,
    READ_ONLY,
    STANDBY,
    Call,
    Rows,
    RunAsync,
    check_loop,
    check_process,
    positional,
)
from pgqueue.errors import UnusableConnection


def open_async(raw: Any) -> RunAsync:
    """What runs a statement on the connection. Raises UnusableConnection when it could take none."""
    try:
        check(raw)
    except asyncpg.InterfaceError as error:
        raise _refused(error) from error

    async def run(call: Call) -> Rows:
        text, values = positional(call)
        try:
            return [tuple(record) for record in await raw.fetch(text, *values)]
        except asyncpg.InterfaceError as error:
            if type(error) is not asyncpg.InterfaceError:  # of a value, say
                raise
            raise _refused(error) from error

    return run


def check(raw: Any) -> None:
    """Raises UnusableConnection, without asking the server, when the connection can take no job."""
    if raw.is_closed():
        raise UnusableConnection(CLOSED)
    raw = getattr(raw, "_con", raw)  # inside a pool's proxy, which is another one at each acquire
    check_loop(getattr(raw, "_loop", None))
    check_process(raw, lambda: raw._transport.get_extra_info("socket").fileno())
    settings = raw.get_settings()
    if getattr(settings, "in_hot_standby", None) == "on":
        raise UnusableConnection(STANDBY)
    if raw.is_in_transaction():
        read_only = getattr(getattr(raw, "_top_xact", None), "_readonly", False)
    else:
        read_only = getattr(settings, "default_transaction_read_only", None) == "on"
    if read_only:
        raise UnusableConnection(READ_ONLY)


def role(raw: Any) -> str | None:
    """Who has logged in."""
    name: str | None = getattr(raw.get_settings(), "session_authorization", None)
    return name


def _refused(error: Exception) -> UnusableConnection:
    """asyncpg's own words, which hold no values: closed, released to its pool, or busy with another statement."""
    return UnusableConnection(f"asyncpg takes no statement on this connection now: {error}")
