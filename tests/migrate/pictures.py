"""A schema as a list of lines, to be compared: what pg_dump would say, without running it.

Columns are counted as they stand: one that was dropped leaves a number that nobody sees."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.sql import Identifier

_QUERIES = (
    """
    select concat_ws(' ', 'relation', relname, relkind, relpersistence, reloptions::text,
        pg_get_expr(relpartbound, oid), pg_get_partkeydef(oid))
    from pg_class
    where relnamespace = %(schema)s::regnamespace and relkind <> 't'
    """,
    """
    select concat_ws(' ', 'column', relname, row_number() over (partition by attrelid order by attnum), attname,
        format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
        pg_get_expr(adbin, adrelid), col_description(attrelid, attnum))
    from pg_attribute
    join pg_class on pg_class.oid = attrelid
    left join pg_attrdef on adrelid = attrelid and adnum = attnum
    where relnamespace = %(schema)s::regnamespace and attnum > 0 and not attisdropped and relkind in ('r', 'p', 'v')
    """,
    """
    select concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid))
    from pg_constraint
    where connamespace = %(schema)s::regnamespace
    """,
    "select 'index ' || indexdef from pg_indexes where schemaname = %(name)s",
    "select 'view ' || viewname || ' ' || definition from pg_views where schemaname = %(name)s",
    """
    select concat_ws(' ', 'function', pg_get_functiondef(oid), proacl::text)
    from pg_proc
    where pronamespace = %(schema)s::regnamespace
    """,
)


def picture(connection: psycopg.Connection[Any], schema: str = "pgqueue") -> list[str]:
    """Everything in the schema, a text each, in order."""
    params = {"schema": Identifier(schema).as_string(connection), "name": schema}
    return sorted(line for query in _QUERIES for (line,) in connection.execute(query, params).fetchall())
