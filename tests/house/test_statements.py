"""One place for SQL: every statement is a file with a header that tells the truth, used by one function of db.py."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgqueue
from pgqueue import db, schema
from pgqueue.enqueue import NewJob, Options
from pgqueue.sql import render, source, statements, verb

PACKAGE = Path(pgqueue.__file__).parent
ROOMS = ("job", "schedule", "worker", "queue", "wait", "monitor")
FILES = sorted(path for room in ROOMS for path in (PACKAGE / "sql" / room).glob("*.sql"))
EVERY_FILE = sorted((PACKAGE / "sql").rglob("*.sql"))
MODULES = sorted(PACKAGE.rglob("*.py"))
TABLES = {table.name for table in schema.metadata("x").tables.values()} | {name for name, _ in source("view")}


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def header(path: Path) -> str:
    """The comment lines before the first line of SQL, as one text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    length = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return " ".join(line.removeprefix("--").strip() for line in lines[:length])


def parameters(path: Path) -> set[str]:
    return set(re.findall(r"%\((\w+)\)s", path.read_text(encoding="utf-8")))


KNOWN = {name for path in FILES for name in parameters(path)}
COLUMNS = set(NewJob("t", "{}", Options()).columns())


@pytest.mark.parametrize("path", EVERY_FILE, ids=relative)
def test_every_statement_begins_by_saying_what_it_is(path: Path) -> None:
    assert re.match(rf"{verb(path.name)}(\([a-z_., ]*\))?: \S", header(path))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_header_names_the_parameters_of_its_statement_and_no_others(path: Path) -> None:
    said = re.search(r"\bIn: (.*?)(?=\b(?:Out|Index|Caller): |$)", header(path))
    items = re.split(r"[,;]", re.sub(r"\([^)]*\)", "", said[1])) if said else []
    named = {
        name for item in items for name in re.findall(r"\w+", re.match(r"\s*(\w+(?: and \w+)*)?", item)[0])
    } & KNOWN
    if said and "a job's columns" in said[1]:
        named |= COLUMNS
    assert named == parameters(path)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_header_says_what_comes_out(path: Path) -> None:
    assert re.search(r"\bOut: \w", header(path)) or verb(path.name) == "next_due"


def test_every_statement_is_used_by_one_function_of_db_and_its_header_says_by_which() -> None:
    users: dict[str, list[str]] = defaultdict(list)
    for function in ast.parse(Path(db.__file__).read_text(encoding="utf-8")).body:
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "sql":
                    assert isinstance(node.slice, ast.Constant)
                    users[node.slice.value].append(function.name)
    callers = {verb(path.name): re.findall(r"\bCaller: db\.(\w+)", header(path)) for path in FILES}
    assert users == callers


def test_a_verb_names_one_statement_and_the_numbers_of_a_room_are_in_order() -> None:
    assert max(Counter(verb(path.name) for path in FILES).values()) == 1
    for room in ("job", "schedule", "worker", "queue", "wait", "function", "view"):
        numbers = [re.match(r"(\d+)([a-z]?)_", path.name) for path in EVERY_FILE if path.parent.name == room]
        assert all(numbers)
        assert len({match[0] for match in numbers if match}) == len(numbers)


@pytest.mark.parametrize("path", EVERY_FILE, ids=relative)
def test_a_statement_names_every_table_in_full_and_depends_on_no_search_path(path: Path) -> None:
    text = render(path.read_text(encoding="utf-8"), "{schema}")
    local = set(re.findall(r"\b(\w+)(?: \([\w, ]+\))? as (?:materialized )?\(", text))
    bare = {
        name
        for name in re.findall(r"\b(?:from|join|into|update|using|exists \(select from) (?!\(|\{)(\w+)", text, re.I)
        if name in TABLES and name not in local
    }
    assert not bare
    assert not re.findall(r"(?<![\w$])\{(?!schema\}|schema_literal\}|\d)\w+\}", path.read_text(encoding="utf-8"))


# What runs on other people's connections, whose search_path may put anything before the server's own functions. A
# worker's connections have a path of their own, and so does the one that compares.
ELSEWHERE = [name for name, _ in source("monitor") if name not in {"schema_parts", "left_to_run"}]
ELSEWHERE += [
    "enqueue",
    "enqueue_many",
    "enqueue_alike",
    "enqueue_queued",
    "enqueue_periods",
    "holder",
    "holders",
    "holders_queued",
    "holders_periods",
    "replace",
    "cancel",
    "retry_now",
    "redrive",
    "purge",
    "taken",
    "wake",
    "answer",
    "declare",
    "plan",
    "pause",
    "run_now",
    "remove",
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_statement_on_other_peoples_connections_names_the_servers_functions_in_full(name: str) -> None:
    syntax = {"any", "array", "coalesce", "extract", "greatest", "in", "least", "values"}
    if name in ("enqueue_many", "enqueue_queued", "enqueue_periods", "replace", "missing_rights"):
        syntax |= {"unnest"}  # of several arrays, for which the parser takes the server's own
    assert set(re.findall(r"(?<![\w.%}])([a-z_0-9]+)\(", statements("s")[name])) <= syntax


def test_what_is_sent_is_the_text_of_the_file_with_the_schema_in_its_place() -> None:
    for name, text in source(*ROOMS):
        sent = statements("odd%name")[name]
        # What server this is, and what the catalogue says: they ask no table of ours.
        others = {"server", "server_clock", "schema_parts", "missing_rights", "ownership", "horizon"}
        assert ('"odd%%name".' in sent) is (name not in others)
        assert sent.replace('"odd%%name"', "{schema}") == "\n".join(
            line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("--")
        )


# -- and nowhere else --------------------------------------------------------------------------------------------------

SQL = re.compile(
    r"\s*(select\s+\S|insert\s+into\b|update\s+[\w.{\"]+\s+set\b|delete\s+from\b|with\s+(recursive\s+)?\w+\s+as\b|"
    r"(create|alter|drop|truncate)\s+(table|database|schema|index|view|function|role)\b|lock\s+table\b|"
    r"savepoint\b|release\s+savepoint\b|rollback\b|commit\b|begin\b|(un)?listen\s+\S+$|notify\s+\w+(,|$)|set\s+(local|session)\b|"
    r"grant\s|revoke\s|copy\s+\S+\s+(from|to)\b|explain\s|analyze\b|vacuum\b)",
    re.IGNORECASE,
)

# What is no statement on pgqueue's tables: transactions, the session, notifications, databases.
ALLOWED = {
    "enqueue.py": {
        "savepoint pgqueue_enqueue_many",
        "rollback to savepoint pgqueue_enqueue_many",
        "release savepoint pgqueue_enqueue_many",
        "begin",
        "commit",
        "rollback",
    },
    "keyed.py": {
        "savepoint pgqueue_enqueue_chunk",
        "rollback to savepoint pgqueue_enqueue_chunk",
        "release savepoint pgqueue_enqueue_chunk",
        "savepoint pgqueue_replace",
        "rollback to savepoint pgqueue_replace",
        "release savepoint pgqueue_replace",
    },
    "drivers/psycopg.py": {"select 1", "savepoint "},  # to be answered; to be known
    "sql/__init__.py": {"explain {}"},
    "compare.py": {"alter table {} set ({})", "alter view {} set (security_invoker = true)"},  # temporary ones
    "link.py": {
        "select pg_catalog.pg_backend_pid()",
        "select pg_catalog.concat({})",
        "begin isolation level read committed; {}",
        "commit",
        "rollback",
    },
    "rights.py": {"GRANT {} ON {}{} TO {}", "GRANT {} TO {}"},  # for a DBA to run
    "worker/wake.py": {"listen {}"},
    "waiting.py": {"listen {}"},
    "worker/probe.py": {"begin read only", "select set_config("},
    "embedded.py": {"CREATE DATABASE {} TEMPLATE {}"},
    "testing.py": {"CREATE DATABASE {} TEMPLATE {}", "DROP DATABASE {} WITH (FORCE)"},
}


def texts(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """(node, text) of every string in a module that is no docstring; of an f-string the constant parts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node, "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            yield node, node.value


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_module_holds_sql_of_its_own(path: Path) -> None:
    found = {text for _, text in texts(path) if SQL.match(text)}
    allowed = ALLOWED.get(relative(path), set())
    strange = {
        text for text in found if not any(text == one or (one[-1] == "(" and text.startswith(one)) for one in allowed)
    }
    assert not strange
    assert len(found) == len(allowed)  # what is allowed is there


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_sql_is_built_from_pieces(path: Path) -> None:
    """Not by an f-string, not by + or %, not by str.format: psycopg.sql composes, the server binds."""
    known = {ast.dump(node): text for node, text in texts(path)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts: list[ast.AST] = []
        if isinstance(node, ast.JoinedStr):
            parts = [node] if any(isinstance(part, ast.FormattedValue) for part in node.values) else []
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            parts = [node.left]
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "join")
        ):
            parts = [node.func.value]
        for part in parts:
            assert not SQL.match(known.get(ast.dump(part), "")), ast.unparse(node)


def test_the_net_above_catches_what_it_should(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        '"""select nothing"""\n'
        'a = "select id from jobs"\n'
        'b = f"delete from {table}"\n'
        'c = " UPDATE x SET y = 1"\n'
        'd = "with picked as (select 1)"\n'
        'e = "with care, select one of them"\n'
        'f = "update the schema, set it up"\n'
    )
    assert [text for _, text in texts(bad) if SQL.match(text)] == [
        "select id from jobs",
        "delete from {}",
        " UPDATE x SET y = 1",
        "with picked as (select 1)",
    ]
    with pytest.raises(AssertionError):
        test_no_sql_is_built_from_pieces(bad)
