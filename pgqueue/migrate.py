"""How a database gets from one schema to the next: Alembic, driven from code, so that `pgqueue migrate` needs no files.

Safe to run twice and from several machines at once: one transaction, one of them at a time.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic.config import Config
from alembic.util.exc import CommandError

from alembic import command
from pgqueue import db, monitor
from pgqueue.compare import Comparison, compare
from pgqueue.drivers import perform_raw
from pgqueue.errors import ConfigurationError, SchemaError
from pgqueue.settings import DEFAULT_SCHEMA, conninfo_from_url, schema_name
from pgqueue.sql import statements
from pgqueue.versions import head, location, revisions

__all__ = ["check", "config", "current", "downgrade", "head", "location", "revisions", "script", "to", "upgrade"]

LOCK_WAIT = 60_000  # ms that a migration waits for another one to end
_ALEMBIC = threading.Lock()  # its context and op are globals of the process


def upgrade(url: str, schema: str = DEFAULT_SCHEMA, revision: str = "head") -> None:
    """Brings `schema` up to `revision`, creating it if need be. Raises SchemaError, or psycopg.OperationalError."""
    with _connected(url) as connection:
        _run(lambda: command.upgrade(config(schema, connection), revision))


def downgrade(url: str, schema: str = DEFAULT_SCHEMA, revision: str = "base") -> None:
    """Takes `schema` back to `revision`; "base" removes every table of pgqueue and the jobs in them."""
    with _connected(url) as connection:
        _run(lambda: command.downgrade(config(schema, connection), revision))


def to(url: str, schema: str, revision: str) -> None:
    """`upgrade` or `downgrade`, whichever way `revision` lies from where the schema stands."""
    if revision in ("head", "heads"):
        upgrade(url, schema)
        return
    here = current(url, schema)
    order = ["base", *revisions()]
    if revision not in order:
        raise ConfigurationError(f"there is no migration {revision!r}; there are {', '.join(order)}")
    if here is not None and here in order and order.index(revision) < order.index(here):
        downgrade(url, schema, revision)
    elif revision != "base":
        upgrade(url, schema, revision)


def script(schema: str = DEFAULT_SCHEMA, revision: str = "head") -> str:
    """The SQL that `upgrade` would run on an empty database, for a DBA to read."""
    out = io.StringIO()
    made = config(schema, None)
    made.output_buffer = out
    _run(lambda: command.upgrade(made, revision, sql=True))
    return out.getvalue()


def current(url: str, schema: str = DEFAULT_SCHEMA) -> str | None:
    """The migration at which `schema` stands; None without one."""
    with psycopg.connect(conninfo_from_url(url), autocommit=True, connect_timeout=10) as raw:
        try:
            return perform_raw(raw, db.schema_version(statements(schema)))
        except psycopg.errors.UndefinedTable:
            return None


def check(url: str, schema: str = DEFAULT_SCHEMA) -> Comparison:
    """How `schema` differs from what this version declares. Changes nothing, and takes no lock of anybody's.

    Raises SchemaError without tables, or where temporary ones cannot be made; OperationalError of the driver.
    """
    try:
        with _engine(url) as engine, engine.connect() as connection:
            return compare(connection, schema_name(schema), head())
    except sa.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable):
            raise SchemaError(f'schema "{schema}" holds no pgqueue tables: run `pgqueue migrate`') from None
        if isinstance(error.orig, psycopg.OperationalError) and not error.orig.sqlstate:
            raise
        raise SchemaError(f"the schema cannot be compared: {_reason(error)}") from None


def config(schema: str, connection: sa.Connection | None) -> Config:
    """An Alembic configuration without an ini file: a % in a password has nothing to be interpolated by."""
    made = Config()
    made.set_main_option("script_location", str(location()).replace("%", "%%"))
    made.attributes["schema"] = schema_name(schema)
    made.attributes["connection"] = connection
    return made


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    with _engine(url) as engine, engine.begin() as connection:
        yield connection


@contextmanager
def _engine(url: str) -> Iterator[sa.Engine]:
    conninfo = conninfo_from_url(url)

    def connect() -> psycopg.Connection[Any]:
        raw = psycopg.connect(conninfo, application_name="pgqueue migrate", connect_timeout=10)
        try:  # before SQLAlchemy asks it anything: on some of what we refuse its own questions fail
            perform_raw(raw, monitor.check_server(statements(DEFAULT_SCHEMA)))
            raw.rollback()
        except BaseException:
            raw.close()
            raise
        return raw

    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=connect,
        poolclass=sa.NullPool,
        isolation_level="READ COMMITTED",  # what another migration did while we waited must be seen
    )
    try:
        yield engine
    finally:
        engine.dispose()


def _run(action: object) -> None:
    assert callable(action)
    try:
        with _ALEMBIC:
            action()
    except CommandError as error:
        known = f"this version of pgqueue knows migrations up to {head()}"
        raise SchemaError(f"the migration cannot be run: {error}; {known}") from None
    except sa.exc.DBAPIError as error:
        reason = _reason(error)
        if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            reason += ". The role that migrates must own the schema, or have CREATE on the database"
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            reason = "another migration of this schema is under way, and did not end within a minute"
        raise SchemaError(f"the migration failed and changed nothing: {reason}") from None


def _reason(error: sa.exc.DBAPIError) -> str:
    return getattr(getattr(error.orig, "diag", None), "message_primary", None) or type(error.orig).__name__
