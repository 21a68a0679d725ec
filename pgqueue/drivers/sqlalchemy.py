"""SQLAlchemy: Session, Connection and their scoped and async kinds, on psycopg, psycopg2 or asyncpg.

One path for all: what is async runs in the greenlet that SQLAlchemy gives to `run_sync`, so a sync side of an async
session works there as well. On psycopg and psycopg2 the statement runs on the driver's connection beneath, with a
cursor of our own. On asyncpg it goes through SQLAlchemy's adapter, which begins its transaction at the first statement
it sees: an INSERT behind its back would be committed by itself, whatever becomes of the session.
"""

from __future__ import annotations

from contextlib import closing
from importlib import import_module
from typing import Any, TypeAlias, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import TwoPhaseTransaction
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util import await_only

from pgqueue.drivers import psycopg as psycopg3
from pgqueue.drivers.steps import CLOSED, READ_ONLY, TWO_PHASE, Call, Rows, Run, Steps, explaining, play, positional
from pgqueue.errors import UnusableConnection

T = TypeVar("T")
Sync: TypeAlias = "sa.Connection | Session | scoped_session[Any]"
Async: TypeAlias = "AsyncConnection | AsyncSession | async_scoped_session[Any]"


def perform(connection: Sync, steps: Steps[T]) -> T:
    """Runs the steps in the transaction of the session or connection, which begins with them if there is none."""
    try:
        run = _open(connection)
    except MissingGreenlet as error:
        raise UnusableConnection(_SYNC_SIDE) from error
    except InvalidRequestError as error:
        # Its own message may quote the statement and parameters that failed before: it stays in the cause.
        raise UnusableConnection(
            f"SQLAlchemy takes no statement on this connection now ({type(error).__name__}): "
            "begin or roll back its transaction first, or open another"
        ) from error
    return play(run, steps, explaining(lambda: _role(connection)))


async def perform_async(connection: Async, steps: Steps[T]) -> T:
    """`perform` for the async kinds."""
    if isinstance(connection, AsyncConnection):
        if connection.sync_connection is None:
            raise UnusableConnection("the AsyncConnection was never started: `async with engine.connect() as ...`")
        return await connection.run_sync(perform, steps)
    session: AsyncSession = connection() if isinstance(connection, async_scoped_session) else connection
    return await session.run_sync(perform, steps)


def _open(connection: Sync) -> Run:
    if isinstance(connection, Session | scoped_session):
        if connection.get_bind().dialect.is_async:
            # Outside run_sync this says so, before a connection is begun that nobody would ever close.
            await_only(_nothing())
        connection = connection.connection()
    if connection.closed:
        raise UnusableConnection(CLOSED)
    dialect = connection.dialect
    if dialect.name != "postgresql":
        raise UnusableConnection(f"the SQLAlchemy connection is to {dialect.name} ({dialect.driver}); {_NEEDS}")
    # SQLAlchemy commits only what it knows to have begun, and a statement behind its back begins nothing: the job
    # would be rolled back when the connection returns to its pool.
    if not connection.in_transaction():
        connection.begin()
    run = _runner(connection)

    def checked(call: Call) -> Rows:
        if call.notifies and isinstance(connection.get_transaction(), TwoPhaseTransaction):
            raise UnusableConnection(TWO_PHASE)
        try:
            return run(call)
        except MissingGreenlet as error:
            raise UnusableConnection(_SYNC_SIDE) from error

    return checked


async def _nothing() -> None:
    """Awaited, where that can be done."""


def _runner(connection: sa.Connection) -> Run:
    """A sync function also for the async drivers: inside run_sync, SQLAlchemy awaits for it."""
    driver = connection.dialect.driver
    raw: Any = connection.connection.driver_connection
    if isinstance(raw, psycopg.Connection):
        return psycopg3.open_sync(raw)
    if isinstance(raw, psycopg.AsyncConnection):
        run_async = psycopg3.open_async(raw)
        return lambda call: await_only(run_async(call))
    if driver == "psycopg2":
        from pgqueue.drivers import psycopg2

        return psycopg2.open_sync(raw)
    if driver == "asyncpg":
        return _adapted(connection, raw)
    raise UnusableConnection(f"the SQLAlchemy connection runs on {driver}; {_NEEDS}")


def _role(connection: Sync) -> str | None:
    if isinstance(connection, Session | scoped_session):
        connection = connection.connection()
    raw: Any = connection.connection.driver_connection
    if isinstance(raw, psycopg.Connection | psycopg.AsyncConnection):
        return psycopg3.role(raw)
    module = import_module(f"pgqueue.drivers.{connection.dialect.driver}")
    found: str | None = module.role(raw)
    return found


def _adapted(connection: sa.Connection, raw: Any) -> Run:
    from pgqueue.drivers import asyncpg

    asyncpg.check(raw)
    fairy = connection.connection
    if getattr(fairy.dbapi_connection, "readonly", False):
        raise UnusableConnection(READ_ONLY)

    def run(call: Call) -> Rows:
        text, values = positional(call)
        try:
            with closing(fairy.cursor()) as cursor:
                cursor.execute(text, values)
                return [tuple(row) for row in cursor.fetchall()] if cursor.description else []
        except Exception as error:
            # As on the other drivers, an error is the driver's own; the adapter's only stands before it.
            if error.__cause__ is not None and isinstance(error, connection.dialect.loaded_dbapi.Error):
                raise error.__cause__ from None
            raise

    return run


_NEEDS = "pgqueue needs postgresql+psycopg://, postgresql+psycopg2:// or postgresql+asyncpg:// here"
_SYNC_SIDE = (
    "this is the sync side of an async session or connection: pass the async one and await the call, "
    "or call it inside its run_sync()"
)
