"""SQLAlchemy: Session, Connection and their scoped and async kinds, on psycopg, psycopg2 or asyncpg.

One path for all: what is async runs in the greenlet that SQLAlchemy gives to `run_sync`, so a sync side of an async
session works there as well. On psycopg and psycopg2 the statement runs on the driver's connection beneath, with a
cursor of our own. On asyncpg it goes through SQLAlchemy's adapter, which begins its transaction at the first statement
it sees: an INSERT behind its back would be committed by itself, whatever becomes of the session.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from threading import get_ident
from typing import Any, TypeAlias, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import TwoPhaseTransaction
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet, PendingRollbackError, UnboundExecutionError
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
    own: sa.Connection | Session = connection() if isinstance(connection, scoped_session) else connection
    with _by_one_thread(own):
        try:
            run = _open(own)
        except MissingGreenlet as error:
            raise UnusableConnection(_SYNC_SIDE) from error
        except InvalidRequestError as error:
            # Its own message may quote the statement and parameters that failed before: it stays in the cause.
            raise UnusableConnection(
                f"SQLAlchemy takes no statement on this connection now ({type(error).__name__}): {_remedy(own, error)}"
            ) from error
        return play(run, steps, explaining(lambda: _role(own)))


_used_by: dict[int, int] = {}  # id of a session or connection -> the thread that enqueues on it now


@contextmanager
def _by_one_thread(connection: sa.Connection | Session) -> Iterator[None]:
    """SQLAlchemy's sessions and connections may go from thread to thread, but serve one at a time: two at once mix up
    their transactions. It is seen where both of them enqueue."""
    me, key = get_ident(), id(connection)
    if (user := _used_by.setdefault(key, me)) != me:
        raise UnusableConnection(
            f"another thread ({user}) is enqueueing on this {type(connection).__name__} now: "
            "give each thread its own, or let them take turns"
        )
    try:
        yield
    finally:
        _used_by.pop(key, None)


def _remedy(connection: sa.Connection | Session, error: InvalidRequestError) -> str:
    if isinstance(error, UnboundExecutionError):
        return "the session is bound to no engine: make it with Session(engine), also beside binds= for single tables"
    if isinstance(error, PendingRollbackError):
        return "an earlier statement has failed: roll back its transaction first"
    if "permanently closed" in str(error):
        return "the session was closed for good (close_resets_only=False): make another"
    if isinstance(connection, Session) and not connection.autobegin and not connection.in_transaction():
        return "with autobegin=False a session begins nothing by itself: call its begin() first"
    return "its transaction has to be begun or rolled back first; or open another"


async def perform_async(connection: Async, steps: Steps[T]) -> T:
    """`perform` for the async kinds."""
    if isinstance(connection, AsyncConnection):
        if connection.sync_connection is None:
            raise UnusableConnection("the AsyncConnection was never started: `async with engine.connect() as ...`")
        return await connection.run_sync(perform, steps)
    session: AsyncSession = connection() if isinstance(connection, async_scoped_session) else connection
    return await session.run_sync(perform, steps)


def _open(connection: sa.Connection | Session) -> Run:
    if isinstance(connection, Session):
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


def _role(connection: sa.Connection | Session) -> str | None:
    if isinstance(connection, Session):
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
            if raw.is_closed():
                # The adapter forgets its transaction then: no rollback would notice, and the pool would have it back.
                connection.invalidate(error)
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
