"""The connections an application may hand over, as types and as kinds.

A kind is found by the names of the classes that a connection's own class stands on, so that nothing is imported which
is not installed; the types of what may not be installed are Protocols, so that the overloads of `enqueue` (sync: a Job,
async: an awaitable of one) hold without asyncpg, psycopg2 and Django.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection as SAAsyncConnection
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from pgqueue.errors import UnusableConnection


class DjangoConnection(Protocol):
    """`django.db.connections["default"]`: a DatabaseWrapper."""

    in_atomic_block: bool
    needs_rollback: bool

    def ensure_connection(self) -> Any: ...
    def validate_thread_sharing(self) -> Any: ...


class DjangoConnectionProxy(Protocol):
    """`django.db.connection`: stands for the thread's own DatabaseWrapper."""

    def __getattr__(self, item: str, /) -> Any: ...
    def __delattr__(self, name: str, /) -> None: ...
    def __contains__(self, key: Any, /) -> bool: ...


class Psycopg2Connection(Protocol):
    """psycopg2's connection."""

    def tpc_begin(self, xid: Any, /) -> Any: ...
    def get_native_connection(self) -> Any: ...
    def get_transaction_status(self) -> Any: ...
    def set_client_encoding(self, encoding: Any, /) -> Any: ...


class AsyncpgConnection(Protocol):
    """asyncpg's Connection."""

    def is_in_transaction(self) -> Any: ...
    def is_closed(self) -> Any: ...
    def get_server_pid(self) -> Any: ...
    def get_settings(self) -> Any: ...


class AsyncpgPoolConnection(Protocol):
    """What a pool of asyncpg's hands out; its methods are made at run time, where a type checker does not see them."""

    _con: Any
    _holder: Any

    def __getattr__(self, attr: str, /) -> Any: ...


# No text: pyright reads an alias written as two adjacent strings as "unknown", and every overload with it.
SyncConnection: TypeAlias = (
    psycopg.Connection[Any]
    | sa.Connection
    | Session
    | scoped_session[Any]
    | DjangoConnection
    | DjangoConnectionProxy
    | Psycopg2Connection
)
AsyncConnection: TypeAlias = (
    psycopg.AsyncConnection[Any]
    | SAAsyncConnection
    | AsyncSession
    | async_scoped_session[Any]
    | AsyncpgConnection
    | AsyncpgPoolConnection
)


class Kind(NamedTuple):
    """driver: the module of this room that runs statements on it; is_async: calls on it are awaited."""

    driver: str
    is_async: bool


_KINDS = {
    ("psycopg", "Connection"): Kind("psycopg", False),
    ("psycopg", "AsyncConnection"): Kind("psycopg", True),
    ("psycopg2", "connection"): Kind("psycopg2", False),
    ("sqlalchemy", "Connection"): Kind("sqlalchemy", False),
    ("sqlalchemy", "Session"): Kind("sqlalchemy", False),
    ("sqlalchemy", "scoped_session"): Kind("sqlalchemy", False),
    ("sqlalchemy", "AsyncConnection"): Kind("sqlalchemy", True),
    ("sqlalchemy", "AsyncSession"): Kind("sqlalchemy", True),
    ("sqlalchemy", "async_scoped_session"): Kind("sqlalchemy", True),
    ("asyncpg", "Connection"): Kind("asyncpg", True),
    ("asyncpg", "PoolConnectionProxy"): Kind("asyncpg", True),
    ("django", "BaseDatabaseWrapper"): Kind("django", False),
    ("django", "ConnectionProxy"): Kind("django", False),
}

_INSTEAD = {
    **dict.fromkeys(
        [
            ("sqlalchemy", "Engine"),
            ("sqlalchemy", "AsyncEngine"),
            ("sqlalchemy", "sessionmaker"),
            ("sqlalchemy", "async_sessionmaker"),
        ],
        "pass a Session or Connection, so that the job joins its transaction",
    ),
    **dict.fromkeys(
        [
            ("asyncpg", "Pool"),
            ("psycopg_pool", "ConnectionPool"),
            ("psycopg_pool", "AsyncConnectionPool"),
            ("psycopg2", "AbstractConnectionPool"),
        ],
        "pass a connection that it handed out, so that the job joins its transaction",
    ),
    ("django", "ConnectionHandler"): 'pass django.db.connection, or one of them: connections["default"]',
}


def kind_of(connection: object) -> Kind:
    """What kind of connection this is. Raises UnusableConnection, with what to pass, for what is none."""
    found = _kind_of_type(type(connection))
    if found is None:
        raise UnusableConnection(_not_a_connection(connection))
    return found


def _kind_of_type(kind: type) -> Kind | None:
    return next((_KINDS[name] for name in map(_name, kind.__mro__) if name in _KINDS), None)


def _name(kind: type) -> tuple[str, str]:
    """(package, class): a subclass of an application's own stands on a class of the library's."""
    return kind.__module__.partition(".")[0], kind.__name__


def _not_a_connection(given: object) -> str:
    name = f"{type(given).__module__}.{type(given).__qualname__}"
    instead = next((_INSTEAD[base] for base in map(_name, type(given).__mro__) if base in _INSTEAD), None)
    if instead is not None:
        return f"{name} is no connection: {instead}"
    return (
        f"{name} is not a connection pgqueue knows: pass an SQLAlchemy Session or Connection (sync or async), a "
        "psycopg, asyncpg or psycopg2 connection, or django.db.connection"
    )
