"""S13: what each role of docs/sql.md may do with each table, view, sequence and function, all of it; and what it finds
when it tries. A new object has no line here, so whoever adds it has to say who may use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, db
from tests.docs.test_guide import blocks
from tests.docs.test_readme import ROOT
from tests.helpers import job_in, run
from tests.monitor.test_views import VIEWS

pytestmark = pytest.mark.skipif(not (ROOT / "docs" / "sql.md").exists(), reason="not run from a checkout")

Look = psycopg.Connection[Any]

ROLES = ("shop_web", "shop_worker", "shop_planner", "shop_operator", "shop_monitor", "shop_watch", "shop_waits")

# S, I, U, D: select, insert, update, delete; small: of some columns. Of a sequence U, S: usage, select. X: execute.
MATRIX = """
                       shop_web  shop_worker  shop_planner  shop_operator  shop_monitor  shop_watch  shop_waits
alembic_version        S         S            S             S              S             S           S
dead_jobs              -         SIUD         S             SUD            S             s           S
finished_jobs          -         SIUD         S             SI             S             s           S
job_errors             -         SIUD         -             SD             S             s           -
job_logs               -         SIUD         -             S              S             s           -
jobs                   si        SIUD         SI            SIuD           S             s           S
paused_tasks           -         SIUD         -             SIUD           S             S           -
progress               -         SIUD         -             S              S             s           -
queues                 -         SIUD         -             SIUD           S             S           -
retention              -         SIUD         -             S              S             -           -
schedules              -         SIUD         SIUD          SU             S             s           -
sleepers               S         SIUD         S             S              S             -           -
unique_periods         -         SIUD         -             S              S             -           -
waiters                -         SIUD         -             S              S             -           SIUD
workers                -         SIUD         S             S              S             S           S
all_jobs               -         SIUD         -             S              S             -           -
failed_attempts        -         SIUD         -             S              S             S           -
health                 -         SIUD         -             S              S             S           -
job_history            -         SIUD         -             S              S             -           -
queue_stats            -         SIUD         -             S              S             S           -
schedule_stats         -         SIUD         S             S              S             S           -
task_stats             -         SIUD         -             S              S             S           -
worker_stats           -         SIUD         -             S              S             S           -
jobs_id_seq            U         U            -             US             S             S           S
schedules_revision_seq -         -            -             -              -             -           -
enqueue()              X         -            -             -              -             -           -
redrive()              -         -            -             X              -             -           -
prune()                -         X            -             -              -             -           -
pause()                -         -            -             X              -             -           -
resume()               -         -            -             X              -             -           -
pause_task()           -         -            -             X              -             -           -
resume_task()          -         -            -             X              -             -           -
why()                  -         -            -             X              X             X           -
cancel()               -         -            -             X              -             -           -
change()               -         -            -             X              -             -           -
retry_now()            -         -            -             X              -             -           -
add_schedule()         -         -            X             -              -             -           -
pause_schedule()       -         -            X             X              -             -           -
resume_schedule()      -         -            X             X              -             -           -
remove_schedule()      -         -            X             -              -             -           -
run_schedule()         -         -            X             X              -             -           -
"""

# Columns that hold what a job was called with, what it returned, how it failed, and what an application keys it by.
PAYLOAD = ("args", "result", "error", "errors", "traceback", "unique_key", "queued_key", "key", "meta", "tags", "note")


@pytest.fixture
def roles(app: PgQueue, connection: Look, pgqueue_database: str) -> Iterator[Look]:
    """A connection in a transaction that has made the roles of the page; they are a whole server's, so it is undone."""
    (text,) = [text for text in blocks(ROOT / "docs" / "sql.md", "sql") if "CREATE ROLE" in text]
    with psycopg.connect(pgqueue_database) as made:
        made.execute(text.encode())
        yield made
        made.rollback()


def objects(connection: Look) -> dict[str, tuple[str, int]]:
    """Kind and oid of everything in the schema, by name; a partition is its table's."""
    query = """
        select relname::text, case relkind when 'S' then 'sequence' else 'table' end, oid::bigint from pg_class
        where relnamespace = 'pgqueue'::regnamespace and relkind in ('r', 'p', 'v', 'S') and not relispartition
        union all
        select proname || '()', 'function', oid::bigint from pg_proc where pronamespace = 'pgqueue'::regnamespace
    """
    return {name: (kind, oid) for name, kind, oid in connection.execute(query)}


LETTERS = {
    "table": ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"),
    "sequence": ("USAGE", "SELECT", "UPDATE"),
    "function": ("EXECUTE",),
}


def held(connection: Look, role: str, kind: str, oid: int) -> str:
    found = ""
    for privilege in LETTERS[kind]:
        letter = "X" if kind == "function" else "T" if privilege in ("TRUNCATE", "TRIGGER") else privilege[0]
        query = f"select has_{kind}_privilege(%s, %s::oid, %s)"
        if connection.execute(query.encode(), [role, oid, privilege]).fetchone() == (True,):
            found += letter
        elif kind == "table" and privilege in ("SELECT", "INSERT", "UPDATE", "REFERENCES"):
            some = "select has_any_column_privilege(%s, %s::oid, %s)"
            if connection.execute(some, [role, oid, privilege]).fetchone() == (True,):
                found += letter.lower()
    return found or "-"


def expected() -> dict[str, dict[str, str]]:
    head, *lines = [line.split() for line in MATRIX.strip().splitlines()]
    assert tuple(head) == ROLES
    return {name: dict(zip(ROLES, rest, strict=True)) for name, *rest in lines}


def test_each_role_has_the_rights_of_the_matrix_on_each_object_and_no_others(roles: Look) -> None:
    found = {
        name: {role: held(roles, role, kind, oid) for role in ROLES} for name, (kind, oid) in objects(roles).items()
    }
    assert found == expected()


def refused(roles: Look, role: str, statement: str) -> bool:
    """Whether the role is refused it, for want of a right and nothing else; what it did is undone."""
    roles.execute("savepoint before")
    try:
        roles.execute(f"set local role {role}".encode())
        roles.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        return True
    finally:
        roles.execute("rollback to savepoint before")
    return False


CALLS = {
    "enqueue()": "enqueue('t', unique_key => 'k', \"unique\" => null)", "redrive()": "redrive({dead})",
    "prune()": "prune(7, 86400)", "why()": "why({queued})",
    "pause()": "pause('q')", "resume()": "resume('idle')", "pause_task()": "pause_task('t')",
    "resume_task()": "resume_task('idle')", "cancel()": "cancel({queued})", "change()": "change({queued}, 5)",
    "retry_now()": "retry_now({queued})", "add_schedule()": "add_schedule('weekly', 't', '0 2 * * 1')",
    "pause_schedule()": "pause_schedule('nightly')", "resume_schedule()": "resume_schedule('nightly')",
    "remove_schedule()": "remove_schedule('nightly')", "run_schedule()": "run_schedule('nightly')",
}  # fmt: skip


@pytest.fixture
def ids(app: PgQueue, connection: Look) -> dict[str, int]:
    """Of a job in each state that a function wants, in a schema where something is paused and scheduled."""
    connection.execute("select pgqueue.add_schedule('nightly', 't', '0 2 * * *'), pgqueue.pause('idle')")
    connection.execute("select pgqueue.pause_task('idle')")
    return {state: job_in(app, connection, state) for state in ("dead", "running", "queued")}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_call_the_functions_of_the_matrix_to_their_end_and_no_others(
    ids: dict[str, int], roles: Look, role: str
) -> None:
    may = expected()
    assert CALLS.keys() == {name for name in may if name.endswith("()")}
    for name, call in CALLS.items():
        statement = f"select * from pgqueue.{call.format(**ids)}"
        assert refused(roles, role, statement) is (may[name][role] == "-"), name


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_read_the_tables_and_views_of_the_matrix_and_no_others(
    ids: dict[str, int], roles: Look, role: str
) -> None:
    for name, has in expected().items():
        if name.endswith(("()", "_seq")):
            continue
        assert refused(roles, role, f"select * from pgqueue.{name}") is ("S" not in has[role]), name
        for write, letter in (
            (("insert into {} default values", "i"), ("delete from {}", "d")) if name not in VIEWS else ()
        ):
            statement = (
                f"explain {write.format(f'pgqueue.{name}')}"  # which asks for the same rights, and writes nothing
            )
            assert refused(roles, role, statement) is (letter not in has[role].lower()), (name, write)


def test_who_watches_and_who_enqueues_read_no_payload_anywhere(roles: Look) -> None:
    query = """
        select relname, attname from pg_attribute join pg_class on pg_class.oid = attrelid
        where relnamespace = 'pgqueue'::regnamespace and attnum > 0 and not attisdropped and relkind in ('r', 'p', 'v')
            and attname = any(%s) and has_column_privilege(%s, attrelid, attnum, 'SELECT')
    """
    seen = {role: set(roles.execute(query, [list(PAYLOAD), role])) for role in ("shop_watch", "shop_web")}
    assert seen == {"shop_watch": set(), "shop_web": {("jobs", "unique_key"), ("jobs", "queued_key")}}


@pytest.mark.parametrize(
    "statement",
    [
        "select args from pgqueue.jobs", "select meta from pgqueue.jobs", "select result from pgqueue.finished_jobs",
        "select worker_id from pgqueue.jobs", "select * from pgqueue.jobs", "select * from pgqueue.all_jobs",
        "insert into pgqueue.jobs (task, state) values ('t', 'running')",
        "insert into pgqueue.jobs (task, worker_id) values ('t', gen_random_uuid())",
        "insert into pgqueue.jobs (task, fence) values ('t', 7)",
        "insert into pgqueue.jobs (task, attempt) values ('t', 7)",
        "insert into pgqueue.jobs (task, started_at) values ('t', now())",
        "insert into pgqueue.jobs (task) values ('t') returning args",
        "update pgqueue.jobs set state = 'running'", "update pgqueue.jobs set worker_id = null",
        "update pgqueue.jobs set args = '{}'", "delete from pgqueue.jobs", "select * from pgqueue.jobs for update",
        "insert into pgqueue.workers (id, host, pid) values (gen_random_uuid(), 'h', 1)",
        "update pgqueue.workers set expires_at = 'infinity'", "select * from pgqueue.schedules",
        "insert into pgqueue.schedules (name, task) values ('mine', 't')", "update pgqueue.schedules set paused = true",
        "select pgqueue.add_schedule('mine', 't', '* * * * *')", "select pgqueue.cancel(1)",
        "update pgqueue.alembic_version set version_num = '0001'",
    ],
)  # fmt: skip
def test_who_enqueues_can_neither_read_what_others_enqueued_nor_take_a_job_nor_touch_a_schedule(
    ids: dict[str, int], roles: Look, statement: str
) -> None:
    assert refused(roles, "shop_web", statement)


def test_who_enqueues_does_so_in_every_way(app: PgQueue, roles: Look) -> None:
    @app.task(name="t")
    def t(n: int) -> None: ...

    @app.task(name="once", unique=True)
    def once(n: int) -> None: ...

    @app.task(name="until", unique=True, unique_until="claimed")
    def until(n: int) -> None: ...

    roles.execute("set local role shop_web")
    first = t.options(
        unique_key="k", delay=60, priority=3, queue="q", tags=["a"], meta={"b": 1}, expires_in=90
    ).enqueue(roles, 1)
    assert t.options(unique_key="k").enqueue(roles, 1).id == first.id
    assert len(set(t.enqueue_many(roles, [(1,), (2,)]))) == 2
    for task in (once, until):
        job = task.enqueue(roles, 1)
        assert (task.enqueue(roles, 1).id, job.existing) == (job.id, False)
        assert task.enqueue_many(roles, [(1,), (2,)])[0] == job.id
    assert roles.execute("select pgqueue.enqueue('t', '[1]', unique_key => 'k')").fetchone() == (first.id,)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "statement",
    [
        "create table pgqueue.mine (n int)", "create function pgqueue.mine() returns int language sql as 'select 1'",
        "alter table pgqueue.jobs add column mine int", "alter table pgqueue.jobs set (fillfactor = 10)",
        "create index on pgqueue.jobs (task)", "drop table pgqueue.jobs", "truncate pgqueue.finished_jobs",
        "drop function pgqueue.why", "create or replace view pgqueue.health as select 1", "drop schema pgqueue cascade",
        "create trigger mine before update on pgqueue.jobs for each row"
        " execute function suppress_redundant_updates_trigger()",
        "alter table pgqueue.jobs owner to current_user",
        "create policy mine on pgqueue.jobs", "update pgqueue.alembic_version set version_num = '0001'",
    ],
)  # fmt: skip
def test_no_role_but_the_owner_changes_the_schema(roles: Look, role: str, statement: str) -> None:
    assert refused(roles, role, statement)


def test_an_operator_does_all_that_app_and_commands_do_and_takes_no_job(
    app: PgQueue, ids: dict[str, int], roles: Look
) -> None:
    sql = app.statements
    verbs = [
        "cancel", "hold", "change", "retry_now", "redrive", "purge", "pause_queue", "resume_queue", "pause_task",
        "resume_task", "queues", "paused_tasks", "find_jobs", "find_dead", "find_live", "find_queues", "find_tasks",
        "find_workers", "find_schedules", "health", "why", "picture", "progress_of",
    ]  # fmt: skip
    roles.execute("set local role shop_operator")
    for verb in verbs:
        run(roles, db.could_run(sql, verb))
    assert app.jobs.cancel(ids["queued"], connection=roles)
    assert app.jobs.cancel(ids["running"], connection=roles)
    assert roles.execute("select pgqueue.redrive(%s)", [ids["dead"]]).fetchone() == (True,)
    assert app.jobs.change(ids["dead"], delay=60, connection=roles)
    assert app.jobs.retry_now(ids["dead"], connection=roles)
    assert refused(roles, "shop_operator", "update pgqueue.jobs set worker_id = null, state = 'queued'")
    assert refused(roles, "shop_operator", "update pgqueue.jobs set args = '{}'")
    assert refused(roles, "shop_operator", "update pgqueue.workers set expires_at = now()")
