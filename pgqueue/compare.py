"""`pgqueue migrate --check`: does a database hold what this version declares in schema.py and sql/?

What is declared is made once more, as temporary tables in a transaction that is rolled back, and both are read from the
catalogue in one way: so the server's own spelling of an expression is compared with itself, on every PostgreSQL. That
takes no right but TEMPORARY on the database (PUBLIC has it unless somebody took it away), locks nothing of anybody's,
and cannot collide with a name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import sqlalchemy as sa
from psycopg.sql import SQL, Identifier, Literal

from pgqueue import db, monitor
from pgqueue.drivers import perform
from pgqueue.schema import INVOKERS, INVOKERS_SINCE, STORAGE, metadata
from pgqueue.sql import Statements, definitions, quote, statements

_TEMPORARY = "pg_temp"
Key = tuple[str, str, str]  # kind, parent, name
Parts = dict[Key, dict[str, str | None]]

# What somebody else added to our tables changes what our statements do, or whom they fail for.
_FORBIDDEN = ("column", "constraint", "trigger")
_TEXTS = ("text", "arguments")  # too long to be shown


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, a line each. notes: what others put into the schema and does no harm."""

    version: str
    differences: list[str]
    notes: list[str]


def compare(connection: sa.Connection, schema: str, head: str) -> Comparison:
    """Compares `schema` with what is declared. The connection (psycopg, no transaction begun) is rolled back.

    Raises SchemaError when there are no tables of pgqueue.
    """
    sql = statements(schema)
    connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=False)
    try:
        version = perform(connection, monitor.version(sql))
        _search(connection, quote(schema))  # it comes first, so that no text names it
        found, day = _parts(connection, sql, schema)
        _search(connection, "pg_catalog")  # and so do temporary tables, by themselves
        _make(connection)
        declared, _ = _parts(connection, sql, _TEMPORARY)
    finally:
        connection.rollback()
    declared[("partition", "finished_jobs", f"finished_jobs_{day}")] = {"bounds": "one day"}
    for table in metadata(schema).tables.values():
        unlogged = "UNLOGGED" in table._prefixes
        declared[("table", "", table.name)]["persistence"] = "unlogged" if unlogged else "logged"
    for (kind, _, _), aspects in declared.items():
        if kind == "function":
            aspects["callers"] = "whom the owner names"
    differences, notes = _differences(found, declared)
    if version != head:
        differences.insert(0, f"migration: stands at {version}, this version declares {head}")
    return Comparison(version, differences, notes)


def _search(connection: sa.Connection, path: str) -> None:
    connection.execute(sa.select(sa.func.pg_catalog.set_config("search_path", path, True)))


def _make(connection: sa.Connection) -> None:
    """Everything that is declared, in the session's own temporary schema."""
    made = metadata(_TEMPORARY)
    # A temporary table is never logged, and cannot be asked not to be.
    for one_table in made.tables.values():
        one_table._prefixes = [one for one in one_table._prefixes if one != "UNLOGGED"]
    made.create_all(connection, checkfirst=False)
    for name, parameters in STORAGE.items():
        table = Identifier(_TEMPORARY, name)
        settings = SQL(", ").join(SQL("{} = {}").format(Identifier(key), value) for key, value in parameters.items())
        connection.exec_driver_sql(SQL("alter table {} set ({})").format(table, settings).as_string(None))
    for _, text in definitions(_TEMPORARY):
        connection.exec_driver_sql(text.replace("%", "%%"))
    if (connection.dialect.server_version_info or ()) >= INVOKERS_SINCE:
        for view in INVOKERS:
            altered = SQL("alter view {} set (security_invoker = true)").format(Identifier(_TEMPORARY, view))
            connection.exec_driver_sql(altered.as_string(None))


def _parts(connection: sa.Connection, sql: Statements, home: str) -> tuple[Parts, str]:
    """What is in `home`, as if it were in the schema of `sql`; and today's date at the server, in UTC."""
    parts: Parts = defaultdict(dict)
    day = ""
    for kind, parent, name, aspect, value in perform(connection, db.schema_parts(sql, home)):
        if kind == "today":
            day = name
            continue
        if home == _TEMPORARY and value is not None:
            value = re.sub(
                rf"'{quote(home)}\.(\w+)'",
                lambda found: Literal(f"{quote(sql.schema)}.{found[1]}").as_string(None).strip(),
                value,
            )
            value = value.replace(quote(home), quote(sql.schema))
            # A function keeps its text; of a view the server writes one anew, and never an E before a quote.
            plain = "'{}'".format(sql.schema.replace("'", "''"))
            value = value.replace(f"'{home}'", plain if kind == "view" else Literal(sql.schema).as_string(None))
        parts[(kind, parent, name)][aspect] = value
    return parts, day


def _differences(found: Parts, declared: Parts) -> tuple[list[str], list[str]]:
    """(differences, notes), a line each; nothing is said of what a missing or a foreign table is made of."""
    differences, notes = [], []
    tables = {name for kind, _, name in declared if kind == "table"}
    functions = {name.partition("(")[0] for kind, _, name in declared if kind == "function"}
    there = {name for kind, _, name in found if kind == "table"}
    for key in sorted(declared.keys() | found.keys()):
        kind, parent, name = key
        what = f"{kind} {name}" + (f" of {parent}" if parent else "")
        if key not in found:
            if not parent or parent in there:
                differences.append(f"{what}: missing" + (_PARTITION if kind == "partition" else ""))
        elif key not in declared:
            if parent and parent not in tables:
                continue
            overloads = kind == "function" and name.partition("(")[0] in functions
            if kind in _FORBIDDEN or overloads or found[key].get("unique") == "yes":
                differences.append(f"{what}: not declared")
            else:
                notes.append(f"{what}: not pgqueue's")
        else:
            for aspect, wanted in declared[key].items():
                actual = found[key].get(aspect)
                if actual == wanted:
                    continue
                if aspect in _TEXTS:
                    differences.append(f"{what}: its {aspect} is not the declared one")
                else:
                    differences.append(f"{what}: {aspect} is {actual or 'none'}, declared is {wanted or 'none'}")
    return differences, notes


_PARTITION = ", nothing can finish today; a worker makes it, and so does pgqueue's function prune(7, 86400)"
