"""Which rights a statement of ours takes, and what to grant to a role that lacks one.

They are read off the statement's own text, in which every table is named in full, so that no list of them has to be
kept (a test has the server plan each statement with these, and without any one of them). The server's error names one
object and no right; what a DBA needs is a GRANT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

from psycopg.sql import SQL, Identifier

from pgqueue.errors import MissingRight


class Right(NamedTuple):
    """One privilege on one object: `Right("table", "pgqueue", "jobs", "INSERT")`. kind: schema, table (also a view),
    sequence, function or database. schema: its name; "" of a database."""

    kind: str
    schema: str
    name: str
    privilege: str


# Views that read with the rights of their owner; the others read with those of whoever asks (on PostgreSQL 14 they all
# do as these).
BY_OWNER = frozenset({"failed_attempts"})

_ORDER = ("CONNECT", "TEMPORARY", "USAGE", "CREATE", "SELECT", "INSERT", "UPDATE", "DELETE", "EXECUTE")
_PLACE = re.compile(
    r"\b(?P<verb>insert|update|delete|from|join)(?: into| from)?\s+"
    r'"(?P<schema>(?:[^"]|"")+)"\.(?P<name>\w+)(?P<call>(?=\())?'
    r"|\b(?P<lock>for update|do update)\b|\b(?P<back>returning|on conflict)\b|(?P<open>\()|(?P<close>\))"
)
_SEQUENCE = "jobs_id_seq"
_WRITES = {"insert": "INSERT", "update": "UPDATE", "delete": "DELETE"}


@lru_cache(maxsize=512)
def of(statement: str) -> tuple[Right, ...]:
    """The rights that a statement takes, as it is sent. FOR UPDATE takes the one to update what its own SELECT reads;
    who updates or deletes by a condition, or wants rows back, reads. An id that a column's default makes takes none."""
    rights: dict[Right, None] = {}
    schema = written = ""
    reads = [""]  # by the SELECT at each depth of brackets
    for found in _PLACE.finditer(statement):
        if found["open"]:
            reads.append("")
        elif found["close"]:
            reads = reads[:-1] or [""]  # a schema's name may hold brackets, too
        elif found["lock"]:
            locked = written if found["lock"] == "do update" else reads[-1]
            rights[Right("table", schema, locked, "UPDATE")] = None
        elif found["back"]:
            if written:
                rights[Right("table", schema, written, "SELECT")] = None
        else:
            schema, name, verb = found["schema"].replace('""', '"').replace("%%", "%"), found["name"], found["verb"]
            rights[Right("schema", schema, schema, "USAGE")] = None
            if found["call"] is not None:
                rights[Right("function", schema, name, "EXECUTE")] = None
            elif verb in _WRITES:
                written = name
                rights[Right("table", schema, name, _WRITES[verb])] = None
                if verb != "insert":
                    rights[Right("table", schema, name, "SELECT")] = None
            else:
                reads[-1] = name
                rights[Right("table", schema, name, "SELECT")] = None
    if "nextval(" in statement:
        rights[Right("sequence", schema, _SEQUENCE, "USAGE")] = None
    for view in [one for one in rights if one.kind == "table" and one.name in _views()]:
        for name in _read_by(view.name):
            rights[Right("table", view.schema, name, "SELECT")] = None
    return tuple(rights)


@cache
def _views() -> dict[str, str]:
    """The texts of the views that read with the rights of whoever asks, by name."""
    found = {
        re.sub(r"^\d+[a-z]?_|\.sql$", "", file.name): file for file in files("pgqueue.sql").joinpath("view").iterdir()
    }
    return {name: file.read_text(encoding="utf-8") for name, file in found.items() if name not in BY_OWNER}


@cache
def _read_by(view: str) -> tuple[str, ...]:
    """The tables, and views, that a view reads."""
    text = "\n".join(line for line in _views()[view].splitlines() if not line.startswith("--"))
    return tuple(dict.fromkeys(one.name for one in of(text.replace("{schema}", '"x"')) if one.kind == "table"))


def named(rights: Iterable[Right], said: str) -> list[Right]:
    """Those on the one object that the server's message names, in whatever language; all, if that cannot be told."""
    rights = list(rights)
    names = {(one.kind, one.name) for one in rights}
    hits = {(kind, name) for kind, name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)}
    return [one for one in rights if len(hits) != 1 or (one.kind, one.name) in hits]


def grants(rights: Iterable[Right], role: str) -> str:
    """The statements that grant them: one for the schema, then one for each set of privileges."""
    each: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for kind, schema, name, privilege in rights:
        target: tuple[str, ...] = (name,) if kind in ("schema", "database") else (schema, name)
        each.setdefault((kind, target), set()).add(privilege)
    alike: dict[tuple[str, str], list[Identifier]] = {}
    for (kind, target), privileges in each.items():
        alike.setdefault((", ".join(sorted(privileges, key=_ORDER.index)), kind), []).append(Identifier(*target))
    made = (
        _GRANT.format(SQL(words), SQL(_ON[kind]), SQL(", ").join(targets), Identifier(role))
        for (words, kind), targets in alike.items()
    )
    return SQL("; ").join(made).as_string(None)


def membership(owner: str, role: str) -> str:
    """The statement that lets a role do what only the owner of a table may: no right of ALTER can be granted."""
    return SQL("GRANT {} TO {}").format(Identifier(owner), Identifier(role)).as_string(None)


_GRANT = SQL("GRANT {} ON {}{} TO {}")
_ON = {"table": "", "sequence": "SEQUENCE ", "function": "FUNCTION ", "schema": "SCHEMA ", "database": "DATABASE "}


def refused(said: str, rights: Iterable[Right], role: str) -> MissingRight:
    """The error: what the server said, and what to grant."""
    return MissingRight(f"the role may not do this: {said}; what it lacks: {grants(rights, role)}", said)
