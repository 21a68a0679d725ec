"""Runs pgqueue's migrations in the schema and on the connection that pgqueue/migrate.py hands over: in a transaction of
its own, or inside the application's (attribute "inside"), which is neither begun nor ended here.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import event, text

from alembic import context
from pgqueue.migrate import LOCK_BOUND, LOCK_WAIT
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
}


def offline() -> None:
    # paramstyle: otherwise a % in the schema's name would be doubled, as for a driver.
    named = {"paramstyle": "named"}
    context.configure(dialect_name="postgresql", dialect_opts=named, literal_binds=True, as_sql=True, **options)
    write = context.get_context().impl.static_output
    if config.attributes["inside"]:
        write(f"SET LOCAL lock_timeout = '{LOCK_BOUND}s';\n")
        write(f"CREATE SCHEMA IF NOT EXISTS {quoted};\n")
        context.run_migrations()
        write("SET LOCAL lock_timeout = DEFAULT;\n")
        return
    with context.begin_transaction():
        write(f"SET LOCAL lock_timeout = '{LOCK_BOUND}s';\n")
        write(f"CREATE SCHEMA IF NOT EXISTS {quoted};\n")
        context.run_migrations()


def online() -> None:
    connection = config.attributes["connection"]
    before = connection.execute(text("SELECT current_setting('lock_timeout')")).scalar()
    # One migration of a schema at a time. A transaction's lock, so that it cannot outlive this run behind a pooler.
    connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_WAIT}"))
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('pgqueue migrate ' || CAST(:schema AS text), 0))"),
        {"schema": schema},
    )
    config.attributes["alone"] = True  # from here on, who keeps us waiting is no migration
    # Looked up first: a role without CREATE on the database may still migrate a schema that was made for it.
    if not connection.execute(text("SELECT 1 FROM pg_namespace WHERE nspname = :schema"), {"schema": schema}).scalar():
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}".replace("%", "%%"))
    context.configure(connection=connection, **options)
    prepare = brief()
    event.listen(connection, "before_cursor_execute", prepare, retval=True)
    try:
        if config.attributes["inside"]:
            context.run_migrations()
        else:
            with context.begin_transaction():
                context.run_migrations()
    finally:
        event.remove(connection, "before_cursor_execute", prepare)
    if config.attributes["inside"]:
        connection.execute(text("SELECT set_config('lock_timeout', :before, true)"), {"before": before})


def brief() -> Any:
    """Bounds the time for which a migration can make others wait. Whoever comes after a statement that waits for a lock
    waits behind it, and what the statements before it have locked stays locked: so they share one LOCK_BOUND, and once
    it is used up a statement gets only the locks that are free."""
    first: float | None = None

    def prepare(conn: Any, cursor: Any, statement: str, parameters: Any, execution: Any, many: bool) -> Any:
        nonlocal first
        now = time.monotonic()
        first = now if first is None else first
        left = max(1, round((LOCK_BOUND - (now - first)) * 1000))
        cursor.execute(f"SET LOCAL lock_timeout = {left}")
        if conn.dialect.paramstyle not in ("format", "pyformat") and getattr(execution, "compiled", None) is None:
            statement = statement.replace("%%", "%")  # asyncpg takes a text as it stands
        return statement, parameters

    return prepare


if context.is_offline_mode():
    offline()
else:
    online()
