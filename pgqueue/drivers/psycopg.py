"""psycopg 3: the application's own Connection or AsyncConnection, and the worker's."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import tuple_row

from pgqueue.drivers.steps import (
    ABORTED,
    CLOSED,
    READ_ONLY,
    STANDBY,
    TWO_PHASE,
    Call,
    Rows,
    Run,
    RunAsync,
    Steps,
    check_process,
    explaining,
    play,
    play_async,
)
from pgqueue.errors import UnusableConnection

T = TypeVar("T")

_TIMESTAMPTZ = psycopg.adapters.types["timestamptz"].oid


def open_sync(raw: psycopg.Connection[Any]) -> Run:
    """What runs a statement on the connection. Raises UnusableConnection when it could take none."""
    check(raw)

    def run(call: Call) -> Rows:
        _refuse_two_phase(raw, call)
        return run_raw(raw, call)

    return run


def open_async(raw: psycopg.AsyncConnection[Any]) -> RunAsync:
    """`open_sync` for an async connection."""
    check(raw)

    async def run(call: Call) -> Rows:
        _refuse_two_phase(raw, call)
        return await run_raw_async(raw, call)

    return run


def perform_raw(raw: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """Runs the steps on a psycopg connection that is known to be usable; every error is psycopg's own."""
    return play(lambda call: run_raw(raw, call), steps)


def look(raw: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """`perform_raw` for steps that only read, wherever that can be done: on a standby, in a read-only session."""
    return play(lambda call: run_raw(raw, call), steps, explaining(lambda: role(raw)))


async def perform_raw_async(raw: psycopg.AsyncConnection[Any], steps: Steps[T]) -> T:
    """perform_raw for an async psycopg connection."""
    return await play_async(lambda call: run_raw_async(raw, call), steps)


def run_raw(raw: psycopg.Connection[Any], call: Call) -> Rows:
    # Not raw.cursor(): which class and row factory that has is the application's choice.
    with psycopg.Cursor(raw, row_factory=tuple_row) as cursor:
        _read_as_we_do(cursor)
        cursor.execute(call.text, call.params)
        return cursor.fetchall() if cursor.description else []


async def run_raw_async(raw: psycopg.AsyncConnection[Any], call: Call) -> Rows:
    async with psycopg.AsyncCursor(raw, row_factory=tuple_row) as cursor:
        _read_as_we_do(cursor)
        await cursor.execute(call.text, call.params)
        return await cursor.fetchall() if cursor.description else []


def check(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Raises UnusableConnection, without asking the server, when the connection can take no job."""
    if raw.closed:
        raise UnusableConnection(CLOSED)
    check_process(raw, raw.fileno)
    pgconn = raw.pgconn  # not raw.info, which is made anew each time
    status = pgconn.transaction_status
    if status == TransactionStatus.INERROR:
        raise UnusableConnection(ABORTED)
    if pgconn.parameter_status(b"in_hot_standby") == b"on":
        raise UnusableConnection(STANDBY)
    # What else a transaction that has begun may do, only the server knows; it says so, and play() explains it.
    read_only = None if raw.autocommit else raw.read_only
    if read_only is None and status == TransactionStatus.IDLE:
        read_only = pgconn.parameter_status(b"default_transaction_read_only") == b"on"
    if read_only:
        raise UnusableConnection(READ_ONLY)


def role(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> str | None:
    """Who has logged in; to ask who it is since SET ROLE takes a statement, which an aborted transaction refuses."""
    name = raw.pgconn.parameter_status(b"session_authorization")
    return name.decode() if name else raw.info.user


def _refuse_two_phase(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], call: Call) -> None:
    if call.notifies and getattr(raw, "_tpc", None):
        raise UnusableConnection(TWO_PHASE)


def _read_as_we_do(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> None:
    """An application may have told its connection to read dates otherwise (Django without USE_TZ: naive ones)."""
    loader = psycopg.adapters.get_loader(_TIMESTAMPTZ, Format.TEXT)
    adapters = cursor.adapters
    if adapters.get_loader(_TIMESTAMPTZ, Format.TEXT) is not loader and loader is not None:
        adapters.register_loader(_TIMESTAMPTZ, loader)
