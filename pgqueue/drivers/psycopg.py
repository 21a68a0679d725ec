"""psycopg 3: the application's own Connection or AsyncConnection, and the worker's.

Threads and tasks that share a connection take turns on its lock, as with each statement of their own. In a pipeline an
enqueue asks for its answer at once, without a Sync: in an autocommitting one it is part of what the next Sync commits.
"""

from __future__ import annotations

import asyncio
import gc
from types import AsyncGeneratorType, GeneratorType
from typing import Any, TypeVar

import psycopg
from psycopg.pq import Format, PipelineStatus, TransactionStatus
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
    check_first_loop,
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
    if raw.lock.locked():
        if raw.lock.acquire(timeout=_TURN):
            raw.lock.release()
        elif _is_being_read(raw):
            raise UnusableConnection(_BEING_READ)
    if _in_pipeline(raw):
        with psycopg.Cursor(raw) as cursor:
            try:
                cursor.execute(_NOTHING, prepare=False)
                cursor.fetchall()
            except psycopg.Error as error:
                raise _of_the_pipeline(error) from error

    def run(call: Call) -> Rows:
        _refuse(raw, call)
        return run_raw(raw, call)

    return run


def open_async(raw: psycopg.AsyncConnection[Any]) -> RunAsync:
    """`open_sync` for an async connection."""
    check(raw)
    check_first_loop(raw)
    opened = False

    async def run(call: Call) -> Rows:
        nonlocal opened
        if not opened:
            await _wait_for_turn(raw)
            opened = True
        _refuse(raw, call)
        return await run_raw_async(raw, call)

    return run


async def _wait_for_turn(raw: psycopg.AsyncConnection[Any]) -> None:
    if raw.lock.locked():
        try:
            async with asyncio.timeout(_TURN), raw.lock:
                pass
        except TimeoutError:
            if _is_being_read(raw):
                raise UnusableConnection(_BEING_READ) from None
    if _in_pipeline(raw):
        async with psycopg.AsyncCursor(raw) as cursor:
            try:
                await cursor.execute(_NOTHING, prepare=False)
                await cursor.fetchall()
            except psycopg.Error as error:
                raise _of_the_pipeline(error) from error


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
        cursor.execute(call.text, call.params, binary=call.binary)
        if _in_pipeline(raw):
            try:
                return cursor.fetchall()
            except psycopg.ProgrammingError as error:
                return _no_rows(error)
        return cursor.fetchall() if cursor.description else []


async def run_raw_async(raw: psycopg.AsyncConnection[Any], call: Call) -> Rows:
    async with psycopg.AsyncCursor(raw, row_factory=tuple_row) as cursor:
        _read_as_we_do(cursor)
        await cursor.execute(call.text, call.params, binary=call.binary)
        if _in_pipeline(raw):
            try:
                return await cursor.fetchall()
            except psycopg.ProgrammingError as error:
                return _no_rows(error)
        return await cursor.fetchall() if cursor.description else []


def check(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Raises UnusableConnection, without asking the server, when the connection can take no job."""
    if raw.closed:
        raise UnusableConnection(CLOSED)
    check_process(raw, raw.fileno)
    pgconn = raw.pgconn  # not raw.info, which is made anew each time
    status = pgconn.transaction_status
    if status == TransactionStatus.INERROR or pgconn.pipeline_status == PipelineStatus.ABORTED:
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


def _refuse(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], call: Call) -> None:
    if call.notifies and getattr(raw, "_tpc", None):
        raise UnusableConnection(TWO_PHASE)
    # The server would refuse the savepoint, and take back with it what stands in the pipeline before.
    if (
        call.text.startswith("savepoint ")
        and _in_pipeline(raw)
        and raw.autocommit
        and not getattr(raw, "_num_transactions", 0)
    ):
        raise UnusableConnection(
            "this takes several statements, all or none, and the pipeline of an autocommitting connection has no "
            "transaction to put them in: enqueue inside `with connection.transaction():`"
        )


# -- a pipeline -------------------------------------------------------------------------------------------------------

_NOTHING = "select 1"  # its answer comes after those of all that was sent before it


def _in_pipeline(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return bool(raw.pgconn.pipeline_status != PipelineStatus.OFF)


def _no_rows(error: psycopg.ProgrammingError) -> Rows:
    """In a pipeline only the fetch tells that a statement gives no rows: with an error that is no server's."""
    if error.sqlstate is not None:
        raise error
    return []


def _of_the_pipeline(error: psycopg.Error) -> Exception:
    """An earlier statement's failure is not to be taken for one of ours."""
    if error.sqlstate is None and not isinstance(error, psycopg.errors.PipelineAborted):
        return error
    return UnusableConnection(
        f"an earlier statement of the pipeline has failed ({type(error).__name__}): leave the pipeline and roll back"
    )


# -- whose turn it is -------------------------------------------------------------------------------------------------

_TURN = 0.2  # seconds to wait for the lock before asking who has it: to ask takes long where many objects live
_READERS = {
    reader.__code__
    for kind in (psycopg.Cursor, psycopg.AsyncCursor)
    for reader in (kind.stream, getattr(kind.copy, "__wrapped__", kind.copy))
} | {kind.notifies.__code__ for kind in (psycopg.Connection, psycopg.AsyncConnection)}
_BEING_READ = (
    "a stream(), copy() or notifies() is open on this connection, which takes no other statement before it ends: "
    "enqueue before or after it, or on another connection"
)


def _is_being_read(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether the lock's holder is a generator that waits for its consumer, who may well be the one that asks: to wait
    for that one would be for ever. A thread or task that has a statement under way ends by itself."""
    for one in gc.get_objects():
        if isinstance(one, GeneratorType):
            code, frame, running = one.gi_code, one.gi_frame, one.gi_running
        elif isinstance(one, AsyncGeneratorType):
            code, frame, running = one.ag_code, one.ag_frame, one.ag_running
        else:
            continue
        if code in _READERS and frame is not None and not running:
            reader = frame.f_locals.get("self")
            if raw in (reader, getattr(reader, "_conn", None)):
                return True
    return False


def _read_as_we_do(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> None:
    """An application may have told its connection to read dates otherwise (Django without USE_TZ: naive ones)."""
    loader = psycopg.adapters.get_loader(_TIMESTAMPTZ, Format.TEXT)
    adapters = cursor.adapters
    if adapters.get_loader(_TIMESTAMPTZ, Format.TEXT) is not loader and loader is not None:
        adapters.register_loader(_TIMESTAMPTZ, loader)
