"""Step 1, from SQL: pgqueue.enqueue(…) for psql, triggers and other languages; in the caller's transaction as well."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue import PgQueue
from pgqueue.embedded import EmbeddedPostgresError, find_binaries
from tests.roles import new_role

Look = psycopg.Connection[Any]
Query = Callable[[str], list[str]]


def _psql() -> str | None:
    try:
        beside = find_binaries() / "psql"
    except EmbeddedPostgresError:
        beside = Path("psql")
    return str(beside) if beside.exists() else shutil.which("psql")


PSQL = _psql()


@pytest.fixture
def query(pgqueue_database: str) -> Query:
    """Runs a script as a person would and gives what it prints, one line a value; with psql if there is one."""

    def psql(script: str) -> list[str]:
        command = [str(PSQL), "-X", "-q", "-A", "-t", "-v", "VERBOSITY=verbose", "-v", "ON_ERROR_STOP=1"]
        ended = subprocess.run([*command, pgqueue_database], input=script, capture_output=True, text=True, timeout=60)
        if ended.returncode:
            raise Refused(ended.stderr)
        return ended.stdout.split()

    def driver(script: str) -> list[str]:
        found: list[str] = []
        with psycopg.connect(pgqueue_database, autocommit=True) as connection:
            try:
                cursor = connection.execute(script)
            except psycopg.Error as error:
                diag = error.diag
                raise Refused(f"{diag.sqlstate}: {diag.message_primary}\nHINT:  {diag.message_hint}") from None
            more: bool | None = True
            while more:
                found += [str(row[0]) for row in cursor.fetchall()] if cursor.description else []
                more = cursor.nextset()
        return found

    return psql if PSQL else driver


class Refused(Exception):
    """What psql printed: SQLSTATE, message and hint."""


def test_every_argument_may_be_named_and_all_but_the_task_may_be_left_out(
    query: Query, app: PgQueue, connection: Look
) -> None:
    ids = query(
        """
        select pgqueue.enqueue('shop.send');
        select pgqueue.enqueue('shop.send', '{"order": 7}', 'vip', 10);
        select pgqueue.enqueue(
            task => 'shop.send', args => '[7, "a"]', queue => 'low', priority => -100, run_at => now() + interval '1 h',
            max_attempts => 1, unique_key => 'k', expires_at => now() + interval '2 h', timeout => 1.5,
            tags => array['a', 'b'], meta => '{"trace": 1}', wake => true
        );
        select pgqueue.enqueue(task => 'shop.send', queue => null, priority => null, run_at => null,
            max_attempts => null, unique_key => null, expires_at => null, timeout => null, tags => null,
            meta => null, wake => null);
        """
    )
    sql = (
        "select id::text, queue, state, args, priority, max_attempts, attempt, fence, unique_key, timeout, tags, meta,"
        " extract(epoch from run_at - created_at)::int, extract(epoch from expires_at - run_at)::int, retry"
        " from pgqueue.jobs order by id"
    )
    plain = ("default", "queued", {}, 0, 4, 0, 0, None, None, None, None, 0, None, None)
    assert connection.execute(sql).fetchall() == [
        (ids[0], *plain),
        (ids[1], "vip", "queued", {"order": 7}, 10, *plain[4:]),
        (
            *(ids[2], "low", "queued", [7, "a"], -100, 1, 0, 0),
            *("k", 1.5, ["a", "b"], {"trace": 1}, 3600, 3600, None),
        ),
        (ids[3], *plain),
    ]


def test_a_job_from_sql_runs_with_named_and_with_positional_arguments(
    query: Query, app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    @app.task(name="add")
    def add(left: int, right: int = 10) -> int:
        return left + right

    query("""select pgqueue.enqueue('add', '{"left": 1, "right": 2}');
             select pgqueue.enqueue('add', '[5, 6]');
             select pgqueue.enqueue('add', '[7]')""")
    drain()
    assert connection.execute("select result from pgqueue.finished_jobs order by id").fetchall() == [(3,), (11,), (17,)]


def test_it_is_part_of_the_callers_transaction(query: Query, connection: Look) -> None:
    query(
        """
        begin; select pgqueue.enqueue('undone'); rollback;
        begin;
        select pgqueue.enqueue('done');
        savepoint inner_one; select pgqueue.enqueue('undone'); rollback to inner_one;
        commit;
        """
    )
    assert connection.execute("select task from pgqueue.jobs").fetchall() == [("done",)]


def test_a_key_given_twice_gives_the_same_id(query: Query, connection: Look) -> None:
    call = "select pgqueue.enqueue('send', unique_key => 'k');"
    first, again, third = query(f"begin; {call} {call} commit; {call}")
    assert first == again == third
    assert connection.execute("select count(*) from pgqueue.jobs").fetchone() == (1,)


def test_a_refusal_says_what_is_wrong_and_what_to_do(query: Query, connection: Look) -> None:
    with pytest.raises(Refused) as refused:
        query("select pgqueue.enqueue('send receipt')")
    assert "PQ001: task must be 1 to 128 letters, digits" in str(refused.value)
    assert "HINT:  Pass the name of a registered task" in str(refused.value)


REFUSED: list[tuple[str, str, str]] = [
    ("null", "task must be", "name of a registered task"),
    ("''", "task must be", "name of a registered task"),
    ("'a b'", "task must be", "name of a registered task"),
    ("E'a\\n'", "task must be", "name of a registered task"),
    ("repeat('x', 129)", "task must be", "name of a registered task"),
    ("'t', queue => 'a/b'", "queue must be", "Leave it NULL"),
    ("'t', queue => ''", "queue must be", "Leave it NULL"),
    ("'t', null", "args must be a JSON object", "leave args out"),
    ("'t', '7'", "args must be a JSON object", "leave args out"),
    ("'t', '\"text\"'", "args must be a JSON object", "leave args out"),
    ("'t', 'null'", "args must be a JSON object", "leave args out"),
    ("'t', jsonb_build_array(repeat('x', 262145))", "args: 262149 bytes as text", "pass a reference"),
    ("'t', jsonb_build_array(1e131071, 1e131071)", "args: 262148 bytes as text", "pass a reference"),
    ("'t', ('[' || repeat('1e131071,', 9000) || '1]')::jsonb", "args: over 1000000000 bytes", "pass a reference"),
    ("'t', jsonb_build_object('n', repeat('x', 10 * 1024 * 1024))", "args: 10485769 bytes as text", "pass a reference"),
    ("'t', (repeat('[', 101) || 1 || repeat(']', 101))::jsonb", "args: nested more than 100 deep", "pass a reference"),
    ("'t', (repeat('[', 5000) || repeat(']', 5000))::jsonb", "args: nested more than 100 deep", "pass a reference"),
    ("'t', '{\"n\": [1e4000]}'", "args: a number of more than 4,000 digits", "as text"),
    ("'t', '{\"n\": -1e4000}'", "args: a number of more than 4,000 digits", "as text"),
    ("'t', meta => '[1]'", "meta must be a JSON object, not array", "Leave it NULL"),
    ("'t', meta => 'null'", "meta must be a JSON object, not null", "Leave it NULL"),
    ("'t', meta => jsonb_build_object('n', repeat('x', 262144))", "meta: 262153 bytes as text", "pass a reference"),
    ("'t', tags => array[null]::text[]", "tags must be up to 32", "Leave them NULL"),
    ("'t', tags => array['a', ' ']", "tags must be up to 32", "Leave them NULL"),
    ("'t', tags => array[repeat('x', 513)]", "tags must be up to 32", "Leave them NULL"),
    ("'t', tags => array[['a'], ['b']]", "tags must be up to 32", "Leave them NULL"),
    ("'t', tags => array_fill('a'::text, array[33])", "tags must be up to 32", "Leave them NULL"),
    ("'t', priority => 101", "priority must be between -100 and 100, not 101", "higher ones go first"),
    ("'t', max_attempts => 0", "max_attempts must be at least 1, not 0", "Leave it NULL"),
    ("'t', run_at => 'infinity'", "run_at must lie", "Leave it NULL"),
    ("'t', run_at => '-infinity'", "run_at must lie", "Leave it NULL"),
    ("'t', run_at => now() + interval '11 years'", "run_at must lie", "Leave it NULL"),
    ("'t', run_at => '0044-03-15 BC'", "run_at must lie", "Leave it NULL"),
    ("'t', expires_at => now() - interval '1 s'", "expires_at must be later", "Leave it NULL"),
    (
        "'t', expires_at => now() + interval '1 s', run_at => now() + interval '2 s'",
        "expires_at must be",
        "Leave it NULL",
    ),
    ("'t', timeout => 0", "timeout must be a positive", "Leave it NULL"),
    ("'t', timeout => 'NaN'", "timeout must be a positive", "Leave it NULL"),
    ("'t', timeout => 'Infinity'", "timeout must be a positive", "Leave it NULL"),
    ("'t', unique_key => ''", "unique_key must be", "Leave it NULL"),
    ("'t', unique_key => E' \\t'", "unique_key must be", "Leave it NULL"),
    ("'t', unique_key => repeat('x', 513)", "unique_key must be", "Leave it NULL"),
]


def test_what_cannot_be_a_job_is_refused_by_name_and_a_savepoint_before_it_saves_the_transaction(
    connection: Look, pgqueue_database: str
) -> None:
    with psycopg.connect(pgqueue_database) as mine:
        mine.execute("create table own_work (id int)")
        for call, message, hint in REFUSED:
            with pytest.raises(psycopg.DatabaseError) as refused, mine.transaction():
                mine.execute(f"select pgqueue.enqueue({call})")
            diag = refused.value.diag
            assert (diag.sqlstate, str(diag.message_primary)[: len(message)]) == ("PQ001", message), call
            assert hint in str(diag.message_hint), call
        mine.execute("select pgqueue.enqueue('good')")
    assert connection.execute("select task from pgqueue.jobs").fetchall() == [("good",)]
    assert connection.execute("select to_regclass('own_work') is not null").fetchone() == (True,)


def test_what_is_as_large_and_as_deep_as_may_be_is_taken(connection: Look) -> None:
    for call in (
        "'t', jsonb_build_array(repeat('x', 262140))",
        "'t', (repeat('[', 100) || 1 || repeat(']', 100))::jsonb",
        "'t', ('[' || repeat('9', 4000) || ', -1e3999]')::jsonb",
        "'t', tags => array_fill('a'::text, array[32]), meta => '{}', unique_key => repeat('x', 512)",
        "'t', priority => -100, max_attempts => 2147483647, timeout => 1e-3, expires_at => 'infinity'",
    ):
        connection.execute(f"select pgqueue.enqueue({call})")


@pytest.mark.parametrize("begin", ["begin read only", "set default_transaction_read_only = on; begin"])
def test_a_transaction_that_may_only_read_is_told_so_by_the_function(query: Query, begin: str) -> None:
    with pytest.raises(Refused) as refused:
        query(f"{begin}; select pgqueue.enqueue('t');")
    assert "PQ003: the transaction is read-only" in str(refused.value)
    assert "HINT:  Enqueue in a transaction that may write: BEGIN READ WRITE." in str(refused.value)


def test_a_role_that_lacks_a_right_is_told_which_and_the_grant_that_gives_it(
    connection: Look, pgqueue_database: str
) -> None:
    with new_role(pgqueue_database, "usage on schema pgqueue") as role:

        def enqueue() -> tuple[str | None, str | None]:
            with psycopg.connect(make_conninfo(pgqueue_database, user=role)) as theirs:
                try:
                    theirs.execute("select pgqueue.enqueue('t')")
                except psycopg.Error as error:
                    return error.diag.sqlstate, error.diag.message_hint
            return None, None

        assert enqueue() == ("42501", None)  # PostgreSQL's own: EXECUTE on the function
        connection.execute(f"grant execute on all functions in schema pgqueue to {role}")
        connection.execute(f"grant insert on pgqueue.jobs to {role}")
        for _ in ("jobs", "sleepers"):
            state, hint = enqueue()
            assert state == "42501"
            assert hint is not None
            connection.execute(hint)
        assert enqueue() == (None, None)
    assert connection.execute("select task from pgqueue.jobs").fetchall() == [("t",)]


def test_a_hostile_search_path_changes_nothing(query: Query, connection: Look) -> None:
    query(
        """
        create schema evil;
        create function evil.trap() returns boolean language plpgsql as
            $$ begin raise exception 'hijacked'; end $$;
        create function evil.statement_timestamp() returns timestamptz language sql as
            'select evil.trap()::text::timestamptz';
        create function evil.jsonb_typeof(jsonb) returns text language sql return evil.trap()::text;
        create function evil.octet_length(text) returns int language sql return evil.trap()::int;
        create function evil.pg_notify(text, text) returns void language sql as 'select evil.trap()';
        create function evil.matches(text, text) returns boolean language sql return evil.trap();
        create operator evil.!~ (leftarg = text, rightarg = text, function = evil.matches);
        create temp table jobs (like pgqueue.jobs including all);
        create temp table sleepers (like pgqueue.sleepers);
        insert into sleepers select gen_random_uuid(), '*', 'infinity';
        set search_path = pg_temp, evil, pg_catalog;
        begin;
        select pgqueue.enqueue('good', unique_key => 'k');
        select pgqueue.enqueue('good', unique_key => 'k');
        commit;
        do $$ begin assert (select count(*) from jobs) = 0, 'it went into the temporary table'; end $$;
        """
    )
    assert connection.execute("select task, unique_key from pgqueue.jobs").fetchall() == [("good", "k")]
