"""Runs pgqueue's migrations in the schema and on the connection that pgqueue/migrate.py hands over."""

from __future__ import annotations

from sqlalchemy import text

from alembic import context
from pgqueue.migrate import LOCK_WAIT
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
    with context.begin_transaction():
        context.get_context().impl.static_output(f"CREATE SCHEMA IF NOT EXISTS {quoted};\n")
        context.run_migrations()


def online() -> None:
    connection = config.attributes["connection"]
    # One migration of a schema at a time. A transaction's lock, so that it cannot outlive this run behind a pooler.
    connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_WAIT}"))
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('pgqueue migrate ' || :schema, 0))"), {"schema": schema}
    )
    # Looked up first: a role without CREATE on the database may still migrate a schema that was made for it.
    if not connection.execute(text("SELECT 1 FROM pg_namespace WHERE nspname = :schema"), {"schema": schema}).scalar():
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}".replace("%", "%%"))
    context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    offline()
else:
    online()
