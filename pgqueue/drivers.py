"""The connection an application hands over, turned into something that runs a statement and nothing else.

Each step of db.py is a generator that yields `Call`s and is sent their rows, so it is written once for sync and async.
A driver here runs those calls on the caller's own connection: it never commits, never rolls back, never opens another,
and reads with a cursor and row type of its own, whatever the application has set on the connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection as SAAsyncConnection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pgqueue.errors import UnusableConnection

T = TypeVar("T")
Rows: TypeAlias = list[tuple[Any, ...]]


class Call(NamedTuple):
    """One statement and its parameters; never None, with which psycopg would take %% for two signs."""

    text: str
    params: Mapping[str, Any] = MappingProxyType({})


Steps: TypeAlias = Generator[Call, Rows, T]

SyncConnection: TypeAlias = "psycopg.Connection[Any] | sa.Connection | Session | scoped_session[Any]"
AsyncConnection: TypeAlias = (
    "psycopg.AsyncConnection[Any] | SAAsyncConnection | AsyncSession | async_scoped_session[Any]"
)


def is_async(connection: object) -> bool:
    """Whether calls on this connection are awaited. Raises UnusableConnection for what is no connection at all."""
    if isinstance(connection, psycopg.Connection | sa.Connection | Session | scoped_session):
        return False
    if isinstance(connection, psycopg.AsyncConnection | SAAsyncConnection | AsyncSession | async_scoped_session):
        return True
    raise UnusableConnection(_not_a_connection(connection))


def perform(connection: SyncConnection, steps: Steps[T]) -> T:
    """Runs the steps on a sync connection, in whatever transaction it is in."""
    try:
        raw = _driver(connection)
    except InvalidRequestError as error:
        raise _refused(error) from error
    _check(raw)
    return perform_raw(raw, steps)


async def perform_async(connection: AsyncConnection, steps: Steps[T]) -> T:
    """Runs the steps on an async connection, in whatever transaction it is in."""
    try:
        raw = await _driver_async(connection)
    except InvalidRequestError as error:
        raise _refused(error) from error
    _check(raw)
    return await perform_raw_async(raw, steps)


def perform_either(connection: SyncConnection | AsyncConnection, steps: Steps[T]) -> T | Awaitable[T]:
    """The result on a sync connection, an awaitable of it on an async one."""
    if is_async(connection):
        return perform_async(connection, steps)  # type: ignore[arg-type]
    return perform(connection, steps)  # type: ignore[arg-type]


def perform_raw(raw: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """Runs the steps on a psycopg connection that is known to be usable."""
    try:
        call = next(steps)
        while True:
            try:
                # Not raw.cursor(): which class and row factory that has is the application's choice.
                with psycopg.Cursor(raw, row_factory=tuple_row) as cursor:
                    cursor.execute(call.text, call.params)
                    rows = cursor.fetchall() if cursor.description else []
            except Exception as error:
                call = steps.throw(error)  # a step may know better than its driver what an error means
            else:
                call = steps.send(rows)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def perform_raw_async(raw: psycopg.AsyncConnection[Any], steps: Steps[T]) -> T:
    """perform_raw for an async psycopg connection."""
    try:
        call = next(steps)
        while True:
            try:
                async with psycopg.AsyncCursor(raw, row_factory=tuple_row) as cursor:
                    await cursor.execute(call.text, call.params)
                    rows = await cursor.fetchall() if cursor.description else []
            except Exception as error:
                call = steps.throw(error)
            else:
                call = steps.send(rows)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def _driver(connection: SyncConnection) -> psycopg.Connection[Any]:
    if isinstance(connection, psycopg.Connection):
        return connection
    if isinstance(connection, Session | scoped_session):
        connection = connection.connection()
    if isinstance(connection, sa.Connection):
        if connection.closed:
            raise UnusableConnection("the connection is closed")
        # SQLAlchemy commits only what it knows to have begun, and a statement behind its back begins nothing: the job
        # would be rolled back when the connection returns to its pool.
        if not connection.in_transaction():
            connection.begin()
        return _psycopg(connection.connection.driver_connection, psycopg.Connection)
    raise UnusableConnection(_not_a_connection(connection))


async def _driver_async(connection: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    if isinstance(connection, psycopg.AsyncConnection):
        return connection
    if isinstance(connection, AsyncSession | async_scoped_session):
        connection = await connection.connection()
    if isinstance(connection, SAAsyncConnection):
        if connection.closed:
            raise UnusableConnection("the connection is closed")
        if not connection.in_transaction():
            await connection.begin()
        fairy = await connection.get_raw_connection()
        return _psycopg(fairy.driver_connection, psycopg.AsyncConnection)
    raise UnusableConnection(_not_a_connection(connection))


Raw = TypeVar("Raw", "psycopg.Connection[Any]", "psycopg.AsyncConnection[Any]")


def _psycopg(driver: object, kind: type[Raw]) -> Raw:
    if isinstance(driver, kind):
        return driver
    raise UnusableConnection(
        f"the SQLAlchemy connection runs on {type(driver).__module__}; pgqueue needs postgresql+psycopg:// here"
    )


def _check(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    if raw.closed:
        raise UnusableConnection("the connection is closed")
    if raw.info.transaction_status == TransactionStatus.INERROR:
        raise UnusableConnection("the transaction is aborted by an earlier error: roll it back first")


def _refused(error: InvalidRequestError) -> UnusableConnection:
    """Its own message may quote the statement and parameters that failed before: it stays in the cause."""
    return UnusableConnection(
        f"SQLAlchemy takes no statement on this connection now ({type(error).__name__}): "
        "begin or roll back its transaction first, or open another"
    )


def _not_a_connection(given: object) -> str:
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    if isinstance(given, sa.Engine | AsyncEngine | sessionmaker | async_sessionmaker):
        return f"{kind} is no connection: pass a Session or Connection, so that the job joins its transaction"
    return (
        f"{kind} is not a connection pgqueue knows: pass an SQLAlchemy Session, AsyncSession, Connection or "
        "AsyncConnection on psycopg, or a psycopg 3 Connection or AsyncConnection"
    )
