"""How a database gets from one schema to the next: Alembic, driven from code, so that `pgqueue migrate` needs no files.

Safe to run twice and from several machines at once: one transaction, one of them at a time. Under load nobody waits for
it: where a lock is not to be had within LOCK_BOUND, everything is given back and tried again.

An application that has migrations of its own may keep ours in its history: op_upgrade, op_downgrade, leave_out.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic.config import Config
from alembic.util.exc import CommandError

from alembic import command, context, op
from pgqueue import db, monitor, rights
from pgqueue.compare import Comparison, compare
from pgqueue.drivers import NO_RIGHT, perform, perform_raw, sqlstate
from pgqueue.errors import ConfigurationError, MissingRight, SchemaError
from pgqueue.logs import one_line
from pgqueue.rights import Right
from pgqueue.schema import VERSION_TABLE
from pgqueue.settings import DEFAULT_SCHEMA, conninfo_from_url, schema_name
from pgqueue.sql import statements
from pgqueue.versions import head, location, revisions

__all__ = [
    "check",
    "config",
    "current",
    "downgrade",
    "drop",
    "head",
    "leave_out",
    "location",
    "op_downgrade",
    "op_upgrade",
    "revisions",
    "script",
    "to",
    "upgrade",
]

LOCK_WAIT = 60_000  # ms that a migration waits for another one to end
LOCK_BOUND = 0.5  # seconds in which a migration waits for the locks of its tables, all its statements together
LONGEST = 1.0  # seconds that one of its statements may take, waiting included
PATIENCE = 60.0  # seconds for which it begins anew when others hold them
_ALEMBIC = threading.Lock()  # its context and op are globals of the process


class _TablesInUse(SchemaError):
    """Others hold a table for longer than LOCK_BOUND; nothing was changed, and no lock is held any more."""


class _TooLong(SchemaError):
    """A statement took longer than LONGEST; nothing was changed, and no lock is held any more."""


class _NotAllowed(SchemaError):
    """The role may not do what the migration does."""


Told = Callable[[int, int], None]  # how many revisions are done, of how many; anew when it begins anew


def upgrade(
    url: str, schema: str = DEFAULT_SCHEMA, revision: str = "head", *, told: Told | None = None, steps: int = 0
) -> None:
    """Brings `schema` up to `revision`, creating it if need be. Raises SchemaError, or psycopg.OperationalError. told:
    called after each of the `steps` revisions; nothing is committed before the last."""
    _insist(url, schema, lambda made: command.upgrade(made, revision), told, steps)


def downgrade(
    url: str, schema: str = DEFAULT_SCHEMA, revision: str = "base", *, told: Told | None = None, steps: int = 0
) -> None:
    """Takes `schema` back to `revision`; "base" removes every table of pgqueue and the jobs in them."""
    _insist(url, schema, lambda made: command.downgrade(made, revision), told, steps)


def drop(url: str, schema: str) -> None:
    """Takes away `schema` with everything in it, whatever that is; one that is not there is no error."""
    with _connected(url) as connection:
        connection.execute(sa.schema.DropSchema(schema_name(schema), cascade=True, if_exists=True))


def _insist(url: str, schema: str, act: Callable[[Config], None], told: Told | None = None, steps: int = 0) -> None:
    until = time.monotonic() + PATIENCE
    for tries in count(1):
        try:
            with _connected(url) as connection:
                made = config(schema, connection)
                if told is not None:
                    told(0, steps)
                    made.attributes["told"] = _counting(told, steps)
                _run(made, act)
            return
        except _NotAllowed as error:
            raise _told(_ownership(url, schema), schema, str(error)) from None
        except _TablesInUse:
            if time.monotonic() > until:
                raise
            _pause(tries)
        except _TooLong:  # a busy machine may do better the next time, a very large table will not
            if tries >= 3:
                raise
            _pause(tries)


def _counting(told: Told, steps: int) -> Callable[..., None]:
    done = count(1)
    return lambda **_: told(next(done), steps)


def _pause(tries: int) -> None:
    """Between two tries those who waited behind us get on: 0.1 s doubled up to 2."""
    time.sleep(min(2.0, 0.1 * 2 ** min(tries - 1, 5)))


def _ownership(url: str, schema: str) -> db.Ownership:
    with psycopg.connect(conninfo_from_url(url), autocommit=True, connect_timeout=10) as raw:
        return perform_raw(raw, db.ownership(statements(schema)))


def _told(has: db.Ownership, schema: str, said: str) -> MissingRight:
    """What a role that was refused lacks to migrate this schema."""
    what = ""
    if has.owner is not None:  # ALTER and DROP are no rights that can be granted
        what = f"; run it as their owner {has.owner}"
        if not has.owner_is_superuser:
            what += f", or what it lacks: {rights.membership(has.owner, has.role)}"
    elif not has.there and not has.may_make:
        what = f"; what it lacks: {rights.grants([Right('database', '', has.database, 'CREATE')], has.role)}"
    elif has.there and not has.may_use:
        needed = [Right("schema", schema, schema, word) for word in ("USAGE", "CREATE")]
        what = f"; what it lacks: {rights.grants(needed, has.role)}"
    return MissingRight(one_line(f"the role may not migrate, and nothing was changed: {said}{what}"), said)


def to(url: str, schema: str, revision: str, *, told: Told | None = None) -> None:
    """`upgrade` or `downgrade`, whichever way `revision` lies from where the schema stands. told: called with (how many
    revisions are done, of how many)."""
    order = ["base", *revisions()]
    here = current(url, schema) or "base"
    if revision in ("head", "heads"):
        upgrade(url, schema, told=told, steps=len(order) - 1 - (order.index(here) if here in order else 0))
        return
    _known(revision)
    steps = order.index(revision) - order.index(here) if here in order else 0
    if steps < 0:
        downgrade(url, schema, revision, told=told, steps=-steps)
    elif revision != "base":
        upgrade(url, schema, revision, told=told, steps=steps)


def script(schema: str = DEFAULT_SCHEMA, revision: str = "head") -> str:
    """The SQL for a DBA to read and to run: up to `revision` on an empty database, or `FROM:TO`, up or down."""
    start, colon, end = revision.rpartition(":")
    start, end = (head() if one in ("head", "heads") else one for one in (start if colon else "base", end))
    for one in (start, end):
        _known(one)
    order = ["base", *revisions()]
    if start == end:
        raise ConfigurationError(
            f"from {start} to {end} there is nothing to print: give FROM:TO, such as base:{head()}"
        )
    out = io.StringIO()
    made = config(schema, None)
    made.output_buffer = out
    act = command.upgrade if order.index(start) < order.index(end) else command.downgrade
    _run(made, lambda made: act(made, f"{start}:{end}", sql=True))
    return out.getvalue()


def _known(revision: str) -> None:
    order = ["base", *revisions()]
    if revision not in order:
        raise ConfigurationError(f"there is no migration {revision!r}; there are {', '.join(order)}")


def current(url: str, schema: str = DEFAULT_SCHEMA) -> str | None:
    """The migration at which `schema` stands; None without one."""
    with psycopg.connect(conninfo_from_url(url), autocommit=True, connect_timeout=10) as raw:
        try:
            return perform_raw(raw, db.schema_version(statements(schema)))
        except psycopg.errors.UndefinedTable:
            return None
        except psycopg.errors.InsufficientPrivilege as error:
            said = error.diag.message_primary or ""
    raise _told(_ownership(url, schema), schema, said)


def op_upgrade(revision: str, *, since: str = "base", schema: str = DEFAULT_SCHEMA) -> None:
    """For `upgrade` in a revision of the application's own: brings pgqueue's tables to `revision`, on the connection
    and in the transaction of that migration; under --sql its statements come with the others.

    since: where they stand before, which only --sql has to be told. Does nothing where `pgqueue migrate` was first.
    Raises ConfigurationError for "head", which means something else next year; SchemaError.
    """
    _inside(revision, since, schema, up=True)


def op_downgrade(revision: str, *, since: str, schema: str = DEFAULT_SCHEMA) -> None:
    """For `downgrade` in a revision of the application's own; "base" removes every table of pgqueue."""
    _inside(revision, since, schema, up=False)


def leave_out(
    schema: str = DEFAULT_SCHEMA,
    *,
    include_name: Callable[..., bool] | None = None,
    include_object: Callable[..., bool] | None = None,
) -> dict[str, Callable[..., bool]]:
    """For `context.configure(…, **leave_out())` in the application's env.py: autogenerate overlooks `schema`, in the
    database and in the application's metadata, and asks its own filters about everything else."""

    def name(name: str | None, kind: str, parents: Any) -> bool:
        if (kind == "schema" and name == schema) or (parents or {}).get("schema_name") == schema:
            return False
        return include_name is None or include_name(name, kind, parents)

    def object(item: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
        table = item if kind == "table" else getattr(item, "table", None)
        if getattr(table, "schema", None) == schema:
            return False
        return include_object is None or include_object(item, name, kind, reflected, other)

    return {"include_name": name, "include_object": object}


def _inside(revision: str, since: str, schema: str, *, up: bool) -> None:
    order = ["base", *revisions()]
    for name, value in (("revision", revision), ("since", since)):
        if value not in order:
            raise ConfigurationError(f"{name} must be one of pgqueue's migrations {', '.join(order)}, not {value!r}")
    migration = op.get_context()
    theirs = migration.version_table_schema or migration.dialect.default_schema_name
    if theirs == schema and migration.version_table == VERSION_TABLE:
        raise ConfigurationError(
            f'schema "{schema}" holds the table {VERSION_TABLE} of the application: give pgqueue a schema of its own, '
            "or name another version_table in env.py"
        )
    outer = context._proxy, op._proxy  # type: ignore[attr-defined]
    made = config(schema, None if context.is_offline_mode() else op.get_bind(), inside=True)
    try:
        if context.is_offline_mode():
            made.output_buffer = migration.output_buffer or sys.stdout
            if since != revision:
                act = command.upgrade if up else command.downgrade
                _run(made, lambda made: act(made, f"{since}:{revision}", sql=True))
            return
        # Asked beforehand: once a statement has failed, the application's transaction answers no more.
        has = perform(op.get_bind(), db.ownership(statements(schema)))
        here = _standing(op.get_bind(), schema)
        if here not in order:
            raise SchemaError(f'schema "{schema}" stands at migration {here}, this version knows them up to {head()}')
        if up and order.index(here) < order.index(revision):
            _run(made, lambda made: command.upgrade(made, revision))
        elif not up and order.index(here) > order.index(revision):
            _run(made, lambda made: command.downgrade(made, revision))
    except (_NotAllowed, MissingRight) as error:
        raise _told(has, schema, error.said if isinstance(error, MissingRight) else str(error)) from None
    finally:
        # Ours ran in a context of its own, and took the names of the module `alembic.context` and `alembic.op` with it.
        for proxy in outer:
            proxy._install_proxy()


def _standing(connection: sa.Connection, schema: str) -> str:
    """Where the schema stands, without an error that would abort the application's transaction."""
    if not sa.inspect(connection).has_table(VERSION_TABLE, schema=schema):
        return "base"
    return perform(connection, db.schema_version(statements(schema))) or "base"


def check(url: str, schema: str = DEFAULT_SCHEMA) -> Comparison:
    """How `schema` differs from what this version declares. Changes nothing, and takes no lock of anybody's.

    Raises SchemaError without tables, or where temporary ones cannot be made; OperationalError of the driver.
    """
    refused: Exception
    try:
        with _engine(url) as engine, engine.connect() as connection:
            return compare(connection, schema_name(schema), head())
    except MissingRight as error:
        refused = error
    except sa.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable):
            raise SchemaError(f'schema "{schema}" holds no pgqueue tables: run `pgqueue migrate`') from None
        if isinstance(error.orig, psycopg.OperationalError) and not error.orig.sqlstate:
            raise
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise SchemaError(f"the schema cannot be compared: {_reason(error)}") from None
        refused = error.orig
    with psycopg.connect(conninfo_from_url(url), autocommit=True, connect_timeout=10) as raw:
        database = Right("database", "", raw.info.dbname, "TEMPORARY")
        steps = monitor.refusal(statements(schema), ["schema_version"], refused, [database])
        raise perform_raw(raw, steps) from None


def config(schema: str, connection: sa.Connection | None, *, inside: bool = False) -> Config:
    """An Alembic configuration without an ini file: a % in a password has nothing to be interpolated by."""
    made = Config()
    made.set_main_option("script_location", str(location()).replace("%", "%%"))
    made.attributes["schema"] = schema_name(schema)
    made.attributes["connection"] = connection
    made.attributes["inside"] = inside
    made.attributes["alone"] = False
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


def _run(made: Config, act: Callable[[Config], None]) -> None:
    try:
        # Inside an application's migration the globals are Alembic's already, and whoever else needs them waits.
        with nullcontext() if made.attributes["inside"] else _ALEMBIC:
            act(made)
    except CommandError as error:
        known = f"this version of pgqueue knows migrations up to {head()}"
        raise SchemaError(f"the migration cannot be run: {error}; {known}") from None
    except sa.exc.DBAPIError as error:
        reason = _reason(error)
        if sqlstate(error) == NO_RIGHT:
            raise _NotAllowed(reason) from None
        if sqlstate(error) == "57014" and made.attributes["alone"]:
            raise _TooLong(
                f"the migration changed nothing: a statement took longer than the {LONGEST:g} s for which others may "
                "be kept waiting; try again when fewer jobs wait, or take that time and run what `pgqueue migrate "
                "FROM:TO --sql` prints"
            ) from None
        if sqlstate(error) == "55P03":
            if made.attributes["alone"]:
                raise _TablesInUse(
                    "the migration changed nothing: somebody's transaction has been holding pgqueue's tables; end it, "
                    "or try again"
                ) from None
            reason = "another migration of this schema is under way, and did not end within a minute"
        raise SchemaError(f"the migration failed and changed nothing: {reason}") from None


def _reason(error: sa.exc.DBAPIError) -> str:
    """The server's first line, as psycopg and psycopg2 or asyncpg bring it."""
    primary = getattr(getattr(error.orig, "diag", None), "message_primary", None)
    return primary or getattr(getattr(error.orig, "__cause__", None), "message", None) or type(error.orig).__name__
