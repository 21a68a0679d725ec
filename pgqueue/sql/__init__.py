"""Every statement pgqueue runs, one file each; here they are found by their verb, whatever their number.

    sql/job/        a job's life, in its order: 1_enqueue … 8_prune
    sql/schedule/   what is enqueued at its time: declared, due, fired
    sql/worker/     a worker's own row, its sleep and its wake-up
    sql/queue/      queues and tasks that are paused
    sql/wait/       whoever waits for a job's end, and what has become of it
    sql/monitor/    what operators ask
    sql/function/   the SQL functions of the public surface; made by migrations, called by people
    sql/view/       the views of the public surface

`{schema}` becomes the quoted schema name, once, at load, and in functions `{regclass:jobs}` a constant that stands for
that table; nothing else is ever built from pieces. Parameters are written %(name)s. Comment lines are for the reader
and are not sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import count

from psycopg import sql as psycopg_sql


class Statements(Mapping[str, str]):
    """The statements for one schema, by verb: `statements["claim"]`."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        quoted = quote(schema)
        # A % in a schema name would read as the start of a parameter.
        self._texts = {
            verb: render(text, quoted.replace("%", "%%"))
            for verb, text in source("job", "schedule", "worker", "queue", "wait", "monitor")
        }

    def __getitem__(self, verb: str) -> str:
        return self._texts[verb]

    def plan(self, verb: str) -> str:
        """The statement under EXPLAIN, which plans it and runs nothing."""
        return psycopg_sql.SQL("explain {}").format(psycopg_sql.SQL(self[verb])).as_string(None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


@cache
def statements(schema: str) -> Statements:
    """The statements for `schema`; read and rendered once a process."""
    return Statements(schema)


def definitions(schema: str) -> list[tuple[str, str]]:
    """(name, CREATE statement) of each function and view, in an order in which they can be made."""
    quoted = quote(schema)
    return [(name, render(text, quoted)) for name, text in source("view", "function")]


def source(*rooms: str) -> Iterator[tuple[str, str]]:
    """(verb, text as it stands in the file) of every .sql file in the rooms, in the order of their numbers."""
    for room in rooms:
        found = sorted(files(__name__).joinpath(room).iterdir(), key=lambda file: file.name)
        for file in found:
            if file.name.endswith(".sql"):
                yield verb(file.name), file.read_text(encoding="utf-8")


def verb(filename: str) -> str:
    """'4c_dead_letter.sql' -> 'dead_letter'."""
    return re.sub(r"^\d+[a-z]?_", "", filename.removesuffix(".sql"))


def quote(schema: str) -> str:
    """The schema's name as an identifier, whatever characters it has."""
    return psycopg_sql.Identifier(schema).as_string(None)


def render(text: str, quoted_schema: str) -> str:
    """The statement as it is sent: no comment lines, the schema in its place."""
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("--"))
    # In one pass, so that nothing in a schema's name is read as one of these; and no name may end a function's body.
    tag = next(tag for length in count() if (tag := f"${'q' * length}$") not in quoted_schema)
    parts = {
        "{schema}": quoted_schema,
        "{schema_literal}": psycopg_sql.Literal(_unquoted(quoted_schema)).as_string(None),
        "$$": tag,
    }

    def put(found: re.Match[str]) -> str:
        if found[1] is None:
            return parts[found[0]]
        return psycopg_sql.Literal(f"{quoted_schema}.{found[1]}").as_string(None).strip() + "::regclass"

    return re.sub(r"\{schema\}|\{schema_literal\}|\{regclass:(\w+)\}|\$\$", put, "\n".join(lines))


def _unquoted(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"')
