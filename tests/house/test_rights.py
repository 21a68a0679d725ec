"""What rights.py reads off a statement is what the server asks for: with it the statement is planned, else not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

import pgqueue
from pgqueue import db, migrate, rights
from pgqueue.app import OF_A_WORKER
from pgqueue.sql import source, statements
from pgqueue.testing import _new_database, _url
from tests.helpers import run
from tests.roles import new_role

ODD = 'a"; drop table x; -- 100%'
EVERYBODYS = {"server", "schema_parts", "missing_rights", "ownership", "server_clock", "horizon"}
VERBS = [verb for verb, _ in source("job", "schedule", "worker", "queue", "wait", "monitor") if verb not in EVERYBODYS]


@pytest.fixture(scope="module")
def odd(pgqueue_server: str) -> Iterator[tuple[psycopg.Connection[tuple[object, ...]], str]]:
    """A connection to a schema of an odd name, and a role that may do nothing there."""
    with _new_database(pgqueue_server) as name:
        url = _url(pgqueue_server, name)
        migrate.upgrade(url, ODD)
        with new_role(url) as role, psycopg.connect(url) as connection:
            yield connection, role


@pytest.mark.parametrize("verb", VERBS)
def test_a_statement_takes_the_rights_that_its_text_says_and_no_others(
    odd: tuple[psycopg.Connection[tuple[object, ...]], str], verb: str
) -> None:
    connection, role = odd
    sql = statements(ODD)
    wanted = rights.of(sql[verb])
    assert len(wanted) > 1

    def may(granted: tuple[rights.Right, ...]) -> bool:
        try:
            for statement in rights.grants(granted, role).split("; GRANT"):
                text = statement if statement.startswith("GRANT") else "GRANT" + statement
                connection.execute(text.encode())
            connection.execute(SQL("set local role {}").format(Identifier(role)))
            run(connection, db.could_run(sql, verb))
        except psycopg.errors.InsufficientPrivilege:
            return False
        finally:
            connection.rollback()
        return True

    assert may(wanted)
    for one in wanted:
        if one.kind == "table" and f".{one.name}" not in sql[verb]:
            continue  # of a view's tables a server looks only at those that it needs for what is asked, and 14 at none
        if one.kind != "sequence":  # of which a plan asks nothing; tests/migrate/test_rights.py enqueues without it
            assert not may(tuple(other for other in wanted if other != one)), one


@pytest.mark.parametrize("schema", ['a)) from "x".y ((', "for update", "100% (", "returning", "nextval"], ids=ascii)
def test_no_name_of_a_schema_changes_what_is_read_off_a_statement(schema: str) -> None:
    for verb in VERBS:
        plain = {
            (one.kind, one.privilege, "" if one.kind == "schema" else one.name)
            for one in rights.of(statements("s")[verb])
        }
        found = rights.of(statements(schema)[verb])
        assert {(one.kind, one.privilege, "" if one.kind == "schema" else one.name) for one in found} == plain
        assert {one.schema for one in found} == {schema}


PACKAGE = Path(pgqueue.__file__).parent
ROOMS_OF_A_WORKER = [*PACKAGE.glob("worker/*.py"), *PACKAGE.glob("maintenance/*.py")]


def test_a_worker_that_starts_asks_for_the_rights_of_what_workers_run_and_of_nothing_else() -> None:
    """A role that only works needs no right to enqueue, and is not refused for want of one."""
    bodies = re.findall(r"^def (\w+)\((.*?)(?=^def |^class |\Z)", (PACKAGE / "db.py").read_text(), re.M | re.S)
    verbs_of = {function: set(re.findall(r'sql\["(\w+)"\]', body)) for function, body in bodies}
    called = {name for file in ROOMS_OF_A_WORKER for name in re.findall(r"\bdb\.(\w+)", file.read_text())}
    run_by_workers = set().union(*(verbs_of.get(name, set()) for name in called))
    of_jobs_and_workers = {verb for verb, _ in source("job", "schedule", "worker")}
    assert set(OF_A_WORKER) == run_by_workers & of_jobs_and_workers
