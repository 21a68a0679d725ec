"""The connection an application hands over, turned into something that runs a statement and nothing else.

connections.py   which kinds there are, as types and by name
steps.py         the statements' side: Call, the generators that yield it, and who plays them
psycopg.py       psycopg 3, also the worker's own connections
sqlalchemy.py    Session and Connection, scoped and async too, on psycopg, psycopg2 or asyncpg
asyncpg.py, psycopg2.py, django.py   the others; imported when such a connection is handed over

A driver runs on the caller's own connection: it never commits, never rolls back, never opens another, and reads with a
cursor and row type of its own, whatever the application has set on the connection.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from pgqueue.drivers import sqlalchemy
from pgqueue.drivers.connections import AsyncConnection, Kind, SyncConnection, kind_of
from pgqueue.drivers.psycopg import look, perform_raw, perform_raw_async
from pgqueue.drivers.steps import (
    NO_RIGHT,
    NO_TRANSACTION,
    STANDBY,
    UNIQUE_VIOLATION,
    Call,
    Rows,
    Steps,
    explaining,
    play,
    play_async,
    sqlstate,
)
from pgqueue.errors import UnusableConnection

__all__ = [
    "NO_RIGHT",
    "NO_TRANSACTION",
    "STANDBY",
    "UNIQUE_VIOLATION",
    "AsyncConnection",
    "Call",
    "Rows",
    "Steps",
    "SyncConnection",
    "is_async",
    "look",
    "perform",
    "perform_async",
    "perform_either",
    "perform_raw",
    "perform_raw_async",
    "sqlstate",
]

T = TypeVar("T")


def is_async(connection: object) -> bool:
    """Whether calls on this connection are awaited. Raises UnusableConnection for what is no connection at all."""
    return kind_of(connection).is_async


def perform(connection: SyncConnection, steps: Steps[T]) -> T:
    """Runs the steps on a sync connection, in whatever transaction it is in."""
    kind = kind_of(connection)
    if kind.is_async:
        raise UnusableConnection(f"{type(connection).__name__} is async: await the async call instead")
    if kind.driver == "sqlalchemy":
        return sqlalchemy.perform(connection, steps)  # type: ignore[arg-type]
    driver = _driver(kind)
    return play(driver.open_sync(connection), steps, explaining(partial(driver.role, connection)))


async def perform_async(connection: AsyncConnection, steps: Steps[T]) -> T:
    """Runs the steps on an async connection, in whatever transaction it is in."""
    kind = kind_of(connection)
    if not kind.is_async:
        raise UnusableConnection(f"{type(connection).__name__} is sync: call without await instead")
    if kind.driver == "sqlalchemy":
        return await sqlalchemy.perform_async(connection, steps)  # type: ignore[arg-type]
    driver = _driver(kind)
    return await play_async(driver.open_async(connection), steps, explaining(partial(driver.role, connection)))


def perform_either(connection: SyncConnection | AsyncConnection, steps: Steps[T]) -> T | Awaitable[T]:
    """The result on a sync connection, an awaitable of it on an async one."""
    if is_async(connection):
        return perform_async(connection, steps)  # type: ignore[arg-type]
    return perform(connection, steps)  # type: ignore[arg-type]


def _driver(kind: Kind) -> Any:
    """The module for a kind; its library is installed, or there would be no such connection."""
    return import_module(f"pgqueue.drivers.{kind.driver}")
