"""The connections applications hand over, every kind behind one face, so that one test can speak of all of them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import IsolationLevel
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

SYNC = ("Session", "scoped_session", "Connection", "psycopg.Connection")
ASYNC = ("AsyncSession", "async_scoped_session", "AsyncConnection", "psycopg.AsyncConnection")
KINDS = SYNC + ASYNC
AUTOCOMMIT = "AUTOCOMMIT"


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

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Inside a transaction, as each library spells it; Undo rolls it back and ends there."""
        begin = getattr(self.connection, "begin_nested", None) or self.connection.transaction
        block = begin()
        try:
            if hasattr(block, "__aenter__"):
                async with block:
                    yield
            else:
                with block:
                    yield
        except Undo:
            pass


@asynccontextmanager
async def caller(kind: str, url: str, isolation: str | None = None) -> AsyncIterator[Caller]:
    """A connection of that kind; isolation as SQLAlchemy writes it, AUTOCOMMIT among them. Closed at the end."""
    if kind.startswith("psycopg"):
        autocommit = isolation == AUTOCOMMIT
        level = None if isolation is None or autocommit else IsolationLevel[isolation.replace(" ", "_")]
        # Not `with connection`, which would commit at its end what a test left open.
        if kind == "psycopg.Connection":
            raw = psycopg.connect(url, autocommit=autocommit)
            raw.isolation_level = level
        else:
            raw = await psycopg.AsyncConnection.connect(url, autocommit=autocommit)
            await raw.set_isolation_level(level)
        try:
            yield Caller(raw)
        finally:
            await done(raw.close())
        return
    options = {} if isolation is None else {"isolation_level": isolation}
    if kind in SYNC:
        engine = create_engine(sqlalchemy_url(url), **options)
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
        return
    async_engine = create_async_engine(sqlalchemy_url(url), **options)
    if kind == "AsyncConnection":
        made = await async_engine.connect()
    elif kind == "AsyncSession":
        made = AsyncSession(async_engine)
    else:
        made = async_scoped_session(async_sessionmaker(async_engine), scopefunc=lambda: None)
    try:
        yield Caller(made)
    finally:
        await made.close()
        await async_engine.dispose()


def sqlalchemy_url(url: str) -> str:
    """postgresql:// as SQLAlchemy wants it for psycopg 3."""
    return url.replace("postgresql://", "postgresql+psycopg://", 1)
