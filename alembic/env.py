"""Runs pgqueue's migrations in the schema and on the connection that pgqueue/migrate.py hands over: in a transaction of
its own, or inside the application's (attribute "inside"), which is neither begun nor ended here.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from sqlalchemy import event, func, select, text

from alembic import context
from pgqueue.errors import ConfigurationError
from pgqueue.migrate import LOCK_BOUND, LOCK_WAIT, LONGEST
from pgqueue.schema import VERSION_TABLE, metadata
from pgqueue.sql import quote

config = context.config
schema = config.attributes["schema"]
quoted = quote(schema)
options = {
    "target_metadata": metadata(schema),
    "version_table": VERSION_TABLE,
    "version_table_schema": schema,
    "transactional_ddl": True,
    "on_version_apply": config.attributes.get("told"),
}


# What is changed for the length of a migration, and given back to an application's transaction afterwards. The
# search_path above all: what a view or a default says is looked up when it is made, and stays what was found.
SETTINGS = ("search_path", "lock_timeout", "statement_timeout")
PATH = "pg_catalog, pg_temp"


def offline() -> None:
    # paramstyle: otherwise a % in the schema's name would be doubled, as for a driver.
    named = {"paramstyle": "named"}
    context.configure(dialect_name="postgresql", dialect_opts=named, literal_binds=True, as_sql=True, **options)
    write = context.get_context().impl.static_output
    begun = context.get_starting_revision_argument()
    inside = config.attributes["inside"]
    with nullcontext() if inside else context.begin_transaction():
        if inside:
            for name in SETTINGS:
                write(f"SELECT pg_catalog.set_config('pgqueue.{name}', pg_catalog.current_setting('{name}'), true);\n")
        write(f"SET LOCAL search_path = {PATH};\n")
        write(f"SET LOCAL lock_timeout = '{LOCK_BOUND}s';\n")
        if begun in (None, "base"):
            write(f"CREATE SCHEMA IF NOT EXISTS {quoted};\n")
        context.run_migrations()
        if inside:
            for name in SETTINGS:
                write(f"SELECT set_config('{name}', current_setting('pgqueue.{name}'), true);\n")


def online() -> None:
    connection = config.attributes["connection"]
    before = {name: connection.execute(current(name)).scalar() for name in SETTINGS}
    # One migration of a schema at a time. A transaction's lock, so that it cannot outlive this run behind a pooler.
    connection.execute(setting(search_path=PATH, lock_timeout=LOCK_WAIT, statement_timeout=0))
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('pgqueue migrate ' || CAST(:schema AS text), 0))"),
        {"schema": schema},
    )
    if connection.execute(current("search_path")).scalar() != PATH:
        raise ConfigurationError(
            "pgqueue's migrations need a transaction, and this connection commits each statement by itself: "
            "take the AUTOCOMMIT from it"
        )
    config.attributes["alone"] = True  # from here on, who keeps us waiting is no migration
    # Looked up first: a role without CREATE on the database may still migrate a schema that was made for it.
    if not connection.execute(text("SELECT 1 FROM pg_namespace WHERE nspname = :schema"), {"schema": schema}).scalar():
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}".replace("%", "%%"))
    context.configure(connection=connection, **options)
    prepare = brief()
    event.listen(connection, "before_cursor_execute", prepare, retval=True)
    try:
        with nullcontext() if config.attributes["inside"] else context.begin_transaction():
            context.run_migrations()
    finally:
        event.remove(connection, "before_cursor_execute", prepare)
    if config.attributes["inside"]:
        connection.execute(setting(**before))


def current(name: str) -> Any:
    return select(func.pg_catalog.current_setting(name))


def setting(**values: object) -> Any:
    """Sets these for the length of the transaction, in one round trip."""
    return select(*(func.pg_catalog.set_config(name, str(value), True) for name, value in values.items()))


def brief() -> Any:
    """Bounds the time for which a migration can make others wait. Whoever comes after a statement that waits for a lock
    waits behind it, and what the statements before it have locked stays locked: so they share one LOCK_BOUND, and once
    it is used up a statement gets only the locks that are free. None may take longer than LONGEST, waiting included:
    that is for the index of a very large table (measured: 0.2 s over a million jobs)."""
    first: float | None = None

    def prepare(conn: Any, cursor: Any, statement: str, parameters: Any, execution: Any, many: bool) -> Any:
        nonlocal first
        now = time.monotonic()
        first = now if first is None else first
        left = max(1, round((LOCK_BOUND - (now - first)) * 1000))
        cursor.execute(
            f"SELECT set_config('lock_timeout', '{left}', true), "
            f"set_config('statement_timeout', '{round(LONGEST * 1000)}', true)"
        )
        if conn.dialect.paramstyle not in ("format", "pyformat") and getattr(execution, "compiled", None) is None:
            statement = statement.replace("%%", "%")  # asyncpg takes a text as it stands
        return statement, parameters

    return prepare


if context.is_offline_mode():
    offline()
else:
    online()
