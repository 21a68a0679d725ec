"""The connections applications hand over, every kind behind one face, so that one test can speak of all of them."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import django
import psycopg
import psycopg2
import pytest
from django.conf import settings as django_settings
from django.db import connections as django_connections
from django.db import transaction as django_transaction
from django.db.backends.postgresql.features import DatabaseFeatures
from django.utils.connection import ConnectionProxy
from psycopg import IsolationLevel
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

SYNC = (
    *("Session", "scoped_session", "Connection", "psycopg.Connection"),
    *("Session on psycopg2", "Connection on psycopg2", "psycopg2.connection", "django.db.connection"),
)
ASYNC = (
    *("AsyncSession", "async_scoped_session", "AsyncConnection", "psycopg.AsyncConnection"),
    *("AsyncSession on asyncpg", "AsyncConnection on asyncpg", "asyncpg.Connection", "asyncpg.Pool"),
)
KINDS = SYNC + ASYNC
AUTOCOMMIT = "AUTOCOMMIT"

if not django_settings.configured:
    django_settings.configure(USE_TZ=True, DATABASES={})
    django.setup()


class Undo(Exception):
    """Raised inside a savepoint, to have it rolled back."""


async def done(value: Any) -> Any:
    """What enqueue and a connection's methods give, sync or async: the value, awaited if need be."""
    return await value if inspect.isawaitable(value) else value


class Caller:
    """An application's code around one connection: it executes, commits and rolls back as such code does."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        driver = isinstance(self.connection, psycopg.Connection | psycopg.AsyncConnection)
        result = await done(self.connection.execute(statement if driver else text(statement)))
        has_rows = result.description if driver else result.returns_rows
        return [tuple(row) for row in await done(result.fetchall())] if has_rows else []

    async def commit(self) -> None:
        await done(self.connection.commit())

    async def rollback(self) -> None:
        await done(self.connection.rollback())

    async def close(self) -> None:
        await done(self.connection.close())

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Inside a transaction, as each library spells it; Undo rolls it back and ends there."""
        block = self.block()
        try:
            if hasattr(block, "__aenter__"):
                async with block:
                    yield
            else:
                with block:
                    yield
        except Undo:
            pass

    def block(self) -> Any:
        """The savepoint's own context manager."""
        begin = getattr(self.connection, "begin_nested", None) or self.connection.transaction
        return begin()


class Psycopg2(Caller):
    """Cursors for everything; savepoints by hand."""

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement)
            return [tuple(row) for row in cursor.fetchall()] if cursor.description else []

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        name = f"own_{uuid4().hex}"
        await self.execute(f"savepoint {name}")
        try:
            yield
        except Undo:
            await self.execute(f"rollback to savepoint {name}")
        await self.execute(f"release savepoint {name}")


class Asyncpg(Caller):
    """Commits each statement by itself, but for what stands inside `connection.transaction()`."""

    def __init__(self, connection: Any, isolation: str | None) -> None:
        super().__init__(connection)
        self._isolation = isolation
        self._open: Any = None

    async def begin(self) -> Asyncpg:
        if self._isolation != AUTOCOMMIT:
            level = None if self._isolation is None else self._isolation.lower().replace(" ", "_")
            self._open = self.connection.transaction(isolation=level)
            await self._open.start()
        return self

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.connection.fetch(statement)]

    async def commit(self) -> None:
        if self._open:
            await self._open.commit()
            await self.begin()

    async def rollback(self) -> None:
        if self._open:
            await self._open.rollback()
            await self.begin()


class Django(Caller):
    """Commits each statement by itself, but for what stands inside `atomic`; savepoints are inner ones."""

    def __init__(self, connection: Any, alias: str, isolation: str | None) -> None:
        super().__init__(connection)
        self._alias = alias
        self._open: Any = None
        self._atomic = isolation != AUTOCOMMIT
        self.begin()

    def begin(self) -> None:
        if self._atomic:
            self._open = self.block()
            self._open.__enter__()

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement)
            return [tuple(row) for row in cursor.fetchall()] if cursor.description else []

    async def commit(self) -> None:
        if self._open:
            self._open.__exit__(None, None, None)
            self.begin()

    async def rollback(self) -> None:
        if self._open:
            self._open.__exit__(Undo, Undo(), None)
            self.begin()

    def block(self) -> Any:
        return django_transaction.atomic(using=self._alias)


@asynccontextmanager
async def caller(kind: str, url: str, isolation: str | None = None) -> AsyncIterator[Caller]:
    """A connection of that kind; isolation as SQLAlchemy writes it, AUTOCOMMIT among them. Closed at the end, and what
    a test left open is not committed by that."""
    library, _, driver = kind.partition(" on ")
    opened = {
        "psycopg.Connection": _psycopg,
        "psycopg.AsyncConnection": _psycopg,
        "psycopg2.connection": _psycopg2,
        "asyncpg.Connection": _asyncpg,
        "asyncpg.Pool": _asyncpg,
        "django.db.connection": _django,
    }.get(kind)
    if opened is None:
        opened = _sqlalchemy if library in SYNC else _sqlalchemy_async
        async with opened(library, sqlalchemy_url(url, driver or "psycopg"), isolation) as made:
            yield made
    else:
        async with opened(kind, url, isolation) as made:
            yield made


@asynccontextmanager
async def _psycopg(kind: str, url: str, isolation: str | None) -> AsyncIterator[Caller]:
    autocommit = isolation == AUTOCOMMIT
    level = None if isolation is None or autocommit else IsolationLevel[isolation.replace(" ", "_")]
    # Not `with connection`, which would commit at its end what a test left open.
    if kind == "psycopg.Connection":
        raw: Any = psycopg.connect(url, autocommit=autocommit)
        raw.isolation_level = level
    else:
        raw = await psycopg.AsyncConnection.connect(url, autocommit=autocommit)
        await raw.set_isolation_level(level)
    try:
        yield Caller(raw)
    finally:
        await done(raw.close())


@asynccontextmanager
async def _psycopg2(kind: str, url: str, isolation: str | None) -> AsyncIterator[Caller]:
    raw = psycopg2.connect(url)
    if isolation == AUTOCOMMIT:
        raw.autocommit = True
    elif isolation is not None:
        raw.set_session(isolation_level=isolation)
    try:
        yield Psycopg2(raw)
    finally:
        raw.close()


@asynccontextmanager
async def _asyncpg(kind: str, url: str, isolation: str | None) -> AsyncIterator[Caller]:
    if kind == "asyncpg.Connection":
        raw = await asyncpg.connect(url)
        try:
            yield await Asyncpg(raw, isolation).begin()
        finally:
            await raw.close()
        return
    pool = await asyncpg.create_pool(url, min_size=1, max_size=1)
    raw = await pool.acquire()
    try:
        yield await Asyncpg(raw, isolation).begin()
    finally:
        pool.terminate()  # without waiting for what a test left open


@asynccontextmanager
async def _django(kind: str, url: str, isolation: str | None) -> AsyncIterator[Caller]:
    # These tests run sync applications on an event loop, too, which Django forbids for good reasons.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    try:
        with django_database(url, isolation) as (made, alias):
            yield Django(made, alias, isolation)
    finally:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@contextmanager
def django_database(url: str, isolation: str | None = None, **settings: Any) -> Iterator[tuple[Any, str]]:
    """(connection, alias) of a database that Django knows for the time being; the connection as django.db has it.

    Skips the test where this Django takes no server as old as this one: 6.1 takes none before 15."""
    with psycopg.connect(url) as raw:
        if raw.info.server_version // 10_000 < DatabaseFeatures.minimum_database_version[0]:
            pytest.skip(f"Django {django.__version__} does not work on this PostgreSQL")
    parts = conninfo_to_dict(url)
    options: dict[str, Any] = {}
    if isolation not in (None, AUTOCOMMIT):
        options["isolation_level"] = IsolationLevel[isolation.replace(" ", "_")]
    alias = f"test_{uuid4().hex}"
    django_connections.settings[alias] = django_connections.configure_settings(
        {
            alias: {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts["dbname"],
                "USER": parts.get("user", ""),
                "PASSWORD": parts.get("password", ""),
                "HOST": parts.get("host", ""),
                "PORT": parts.get("port", ""),
                "OPTIONS": options,
                **settings,
            },
            "default": {},
        }
    )[alias]
    made = ConnectionProxy(django_connections, alias)
    try:
        yield made, alias
    finally:
        raw = made.connection
        if raw is not None:
            raw.close()  # Django itself would refuse inside atomic
        del django_connections[alias]
        del django_connections.settings[alias]


@asynccontextmanager
async def _sqlalchemy(kind: str, url: str, isolation: str | None) -> AsyncIterator[Caller]:
    engine = create_engine(url, **({} if isolation is None else {"isolation_level": isolation}))
    made = {
        "Session": lambda: Session(engine),
        "scoped_session": lambda: scoped_session(sessionmaker(engine)),
        "Connection": engine.connect,
    }[kind]()
    try:
        yield Caller(made)
    finally:
        made.close()
        engine.dispose()


@asynccontextmanager
async def _sqlalchemy_async(kind: str, url: str, isolation: str | None) -> AsyncIterator[Caller]:
    engine = create_async_engine(url, **({} if isolation is None else {"isolation_level": isolation}))
    made: Any
    if kind == "AsyncConnection":
        made = await engine.connect()
    elif kind == "AsyncSession":
        made = AsyncSession(engine)
    else:
        made = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: None)
    try:
        yield Caller(made)
    finally:
        await made.close()
        await engine.dispose()


def sqlalchemy_url(url: str, driver: str = "psycopg") -> str:
    """postgresql:// as SQLAlchemy wants it for a driver. asyncpg's finds a socket's directory only in the query."""
    return url.replace("postgresql://", f"postgresql+{driver}://", 1)
