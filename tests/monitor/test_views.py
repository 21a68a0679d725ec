"""What the views say is what the tables hold, by whatever way a job went; they lock nothing that a claim wants, and a
role that looks through them sees no argument, result or error."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier

from pgqueue import Cancel, PgQueue, RetryPolicy, db
from pgqueue.sql import source
from tests.docs.test_guide import blocks
from tests.docs.test_readme import ROOT
from tests.helpers import job_in, run, worker_row
from tests.life.test_1c_enqueue_from_sql import PSQL
from tests.roles import new_role

Look = psycopg.Connection[Any]
VIEWS = [name for name, _ in source("view")]


def rows(connection: Look, view: str, key: str) -> dict[Any, dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        query = SQL("select * from pgqueue.{}").format(Identifier(view))
        return {row[key]: row for row in cursor.execute(query).fetchall()}


@pytest.fixture
def busy(app: PgQueue, connection: Look, drain: Callable[..., None]) -> dict[str, int]:
    """A schema in which every state and end occurs, three attempts of `shop.charge` have failed in each of the places
    where that can be, and one, an hour and a minute ago, elsewhere."""

    @app.task(name="shop.send")
    def send() -> None: ...

    @app.task(name="shop.charge", queue="payments", max_attempts=2, retry=RetryPolicy(delay=0.001, jitter=0))
    def charge(how: str) -> None:
        if how == "first" and charge_runs.append(1) is None and len(charge_runs) > 1:
            return
        if how == "cancel":
            raise Cancel("no")
        raise ValueError("card 4111111111111111")

    charge_runs: list[int] = []
    ids = {"completed": send.delay().id, "dead": charge.delay("always").id, "later": charge.delay("first").id}
    ids["cancelled"] = charge.delay("cancel").id
    drain()
    ids |= {state: job_in(app, connection, state, "shop.send") for state in ("blocked", "running", "queued")}
    ids["scheduled"] = send.options(delay=3600).delay().id
    ids["retrying"] = job_in(app, connection, "queued", "shop.charge")
    worker = worker_row(app, connection, ["shop.charge"])
    (claim,) = run(connection, db.claim(app.statements, worker, ["shop.charge"], None, 1))
    run(connection, db.retry(app.statements, worker, [claim.id], [claim.fence], [60.0], ["Boom: x"], [None]))
    run(connection, db.leave(app.statements, [worker]))
    return ids


def test_queue_stats_counts_what_is_in_the_tables(connection: Look, busy: dict[str, int]) -> None:
    connection.execute("insert into pgqueue.queues (name, paused) values ('idle', true)")
    found = rows(connection, "queue_stats", "queue")
    ages = {name: row.pop("oldest_age") for name, row in found.items()}
    counts = {name: tuple(row.values())[1:] for name, row in found.items()}
    columns = ("queued", "scheduled", "running", "blocked", "dead", "paused", "completed_1m", "failed_1m")
    assert tuple(found["idle"])[1:] == columns
    assert counts == {
        # The job of the retry by hand is in the queue `default`; what a cancel ended is neither completed nor failed.
        "default": (1, 2, 1, 1, 0, False, 1, 1),
        "payments": (0, 0, 0, 0, 1, False, 1, 3),
        "idle": (0, 0, 0, 0, 0, True, 0, 0),
    }
    ((due,),) = connection.execute("select now() - run_at from pgqueue.jobs where id = %s", [busy["queued"]])
    assert timedelta(0) <= due - ages["default"] < timedelta(seconds=30)
    assert (ages["payments"], ages["idle"]) == (None, None)


def test_what_was_enqueued_is_live_or_completed_or_dead_or_ended_in_one_snapshot(
    connection: Look, busy: dict[str, int]
) -> None:
    found = rows(connection, "queue_stats", "queue").values()
    live = sum(row[state] for row in found for state in ("queued", "scheduled", "running", "blocked"))
    ((jobs, dead, finished),) = connection.execute(
        "select (select count(*) from pgqueue.jobs), (select count(*) from pgqueue.dead_jobs),"
        " (select count(*) from pgqueue.finished_jobs)"
    )
    assert (live, sum(row["dead"] for row in found)) == (jobs, dead)
    assert live + dead + finished == len(busy)


def test_task_stats_has_attempts_failures_and_percentiles_of_the_last_hour(
    connection: Look, busy: dict[str, int]
) -> None:
    found = rows(connection, "task_stats", "task")
    assert {task: (row["count"], row["failures"]) for task, row in found.items()} == {
        "shop.send": (1, 0),
        "shop.charge": (5, 4),  # dead: 2 of 2; later: 1 of 2; retrying: 1 of 1
    }
    # A hundred jobs that waited 1 … 100 s and ran for 10 … 1,000 ms.
    connection.execute(
        "insert into pgqueue.finished_jobs (id, state, task, run_at, started_at, finished_at)"
        " select 1000 + i, 'completed', 'even', now(), now() + i * interval '1 s', now() + i * interval '1.01 s'"
        " from generate_series(1, 100) as i"
        " union all select 2000, 'completed', 'even', now() - interval '3 h', now() - interval '2 h',"
        " greatest(now() - interval '61 min', date_trunc('day', now() at time zone 'utc') at time zone 'utc')"
        " where now() - date_trunc('day', now() at time zone 'utc') at time zone 'utc' > interval '61 min'"
    )
    even = rows(connection, "task_stats", "task")["even"]
    assert (even.pop("task"), even.pop("count"), even.pop("failures")) == ("even", 100, 0)
    assert {name: value / timedelta(seconds=1) for name, value in even.items()} == pytest.approx(
        {
            "wait_p50": 50.5, "wait_p95": 95.05, "wait_p99": 99.01,
            "run_p50": 0.505, "run_p95": 0.9505, "run_p99": 0.9901,
        }
    )  # fmt: skip


def test_a_failed_attempt_counts_for_as_long_as_it_is_young_wherever_its_job_is(
    app: PgQueue, connection: Look, busy: dict[str, int]
) -> None:
    def failed() -> tuple[int, int]:
        stats = sum(row["failed_1m"] for row in rows(connection, "queue_stats", "queue").values())
        return stats, rows(connection, "task_stats", "task").get("shop.charge", {"failures": 0})["failures"]

    assert failed() == (4, 4)
    older = "jsonb_set(errors, '{0,at}', to_jsonb(now() - interval '2 min'))"
    connection.execute(f"update pgqueue.dead_jobs set errors = {older}")
    connection.execute(f"update pgqueue.finished_jobs set errors = {older} where errors is not null")
    connection.execute("update pgqueue.job_errors set at = now() - interval '2 min'")
    assert failed() == (1, 4)  # the dead job's second
    connection.execute("update pgqueue.dead_jobs set errors = '\"no array\"'")
    connection.execute('update pgqueue.finished_jobs set errors = \'[{"at": "2026-02-31T25:00:00+00:00"}, 7, null]\'')
    connection.execute("update pgqueue.job_errors set at = now() - interval '2 h'")
    assert failed() == (0, 0)


def test_worker_stats_says_who_is_alive_and_what_each_holds(app: PgQueue, connection: Look) -> None:
    running = job_in(app, connection, "running", "shop.send")
    ((holder,),) = connection.execute("select worker_id from pgqueue.jobs where id = %s", [running])
    gone = worker_row(app, connection, ["shop.charge"])
    connection.execute("update pgqueue.workers set expires_at = now() - interval '1 s' where id = %s", [gone])
    found = rows(connection, "worker_stats", "id")
    assert found.keys() == {holder, gone}
    mine = found[holder]
    assert (mine["alive"], mine["running"], mine["free"], mine["concurrency"]) == (True, 1, 0, 1)
    assert (found[gone]["alive"], found[gone]["running"], found[gone]["free"]) == (False, 0, 1)
    assert (mine["tasks"], mine["queues"], mine["stopping"], mine["host"]) == (["shop.send"], None, False, "test")
    assert timedelta(0) < mine["oldest_run"] <= mine["heartbeat_age"] < timedelta(minutes=1)
    assert found[gone]["oldest_run"] is None
    ((fence,),) = connection.execute("select fence from pgqueue.jobs where id = %s", [running])
    run(connection, db.complete(app.statements, holder, [running], [fence], ["null"]))
    mine = rows(connection, "worker_stats", "id")[holder]
    assert (mine["running"], mine["free"], mine["completed_1m"]) == (0, 1, 1)


# -- who looks -------------------------------------------------------------------------------------------------------


def test_nothing_that_looks_waits_for_a_worker_or_keeps_one_waiting(
    app: PgQueue, connection: Look, pgqueue_database: str, busy: dict[str, int]
) -> None:
    worker = worker_row(app, connection, ["shop.send"])
    with psycopg.connect(pgqueue_database) as monitor, psycopg.connect(pgqueue_database) as working:
        working.execute("set lock_timeout = '10s'")  # far less than this transaction of the monitor's lasts
        working.execute("select * from pgqueue.jobs for update")
        for view in VIEWS:  # does not wait for the rows that are locked
            monitor.execute(SQL("select * from pgqueue.{}").format(Identifier(view))).fetchall()
        held = monitor.execute(
            "select distinct mode from pg_locks where pid = pg_backend_pid() and locktype <> 'virtualxid'"
        ).fetchall()
        assert held == [("AccessShareLock",)]
        ((rows_locked,),) = monitor.execute(
            "select count(*) from pgqueue.jobs where xmax <> 0 and xmax::text::bigint = txid_current_if_assigned()"
        ).fetchall()
        assert rows_locked == 0
        working.rollback()
        # … and while what it has read is still locked by it, a job goes its way.
        (claim,) = run(working, db.claim(app.statements, worker, ["shop.send"], None, 1))
        assert claim.id == busy["queued"]
        assert run(working, db.complete(app.statements, worker, [claim.id], [claim.fence], ["null"])) == {claim.id}
        working.commit()


def granted_to_watch(connection: Look, role: str) -> None:
    """Grants what the page says that such a role needs."""
    (text,) = [text for text in blocks(ROOT / "docs" / "sql.md", "sql") if "CREATE ROLE shop_watch" in text]
    for one in re.sub(r"--.*", "", text).split(";"):
        if "shop_watch" in one and "CREATE ROLE" not in one:
            connection.execute(one.replace("shop_watch", role))


SECRETS = ("card 4111", '"how"', "Boom")


def test_a_role_that_watches_sees_every_figure_and_no_argument_result_or_error(
    app: PgQueue, connection: Look, pgqueue_database: str, busy: dict[str, int]
) -> None:
    with new_role(pgqueue_database) as role:
        granted_to_watch(connection, role)
        with psycopg.connect(pgqueue_database, user=role, autocommit=True) as theirs:
            seen = [row for view in ("queue_stats", "task_stats", "worker_stats") for row in theirs.execute(
                SQL("select * from pgqueue.{}").format(Identifier(view))).fetchall()]  # fmt: skip
            mine_now = [row for view in ("queue_stats", "task_stats", "worker_stats") for row in connection.execute(
                SQL("select * from pgqueue.{}").format(Identifier(view))).fetchall()]  # fmt: skip
            assert len(seen) == len(mine_now) > 4
            seen += theirs.execute("select * from pgqueue.failed_attempts").fetchall()
            assert not [word for word in SECRETS if word in repr(seen)]
            for query in (
                "select args from pgqueue.jobs", "select meta from pgqueue.finished_jobs", "select * from pgqueue.jobs",
                "select result from pgqueue.finished_jobs", "select error from pgqueue.dead_jobs",
                "select errors from pgqueue.dead_jobs", "select error from pgqueue.job_errors",
                "select unique_key from pgqueue.jobs", "select traceback from pgqueue.job_errors",
                "select * from pgqueue.all_jobs", "select * from pgqueue.job_history",
                "update pgqueue.jobs set priority = 1", "delete from pgqueue.workers",
                "select pgqueue.enqueue('t')", "select pgqueue.redrive(1)", "select * from pgqueue.prune(1, 1)",
            ):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    theirs.execute(query)


def test_a_row_security_policy_holds_through_the_views(
    app: PgQueue, connection: Look, pgqueue_database: str, busy: dict[str, int]
) -> None:
    if connection.info.server_version < 150000:
        pytest.skip("an older server's views are their owner's, as docs/sql.md says")
    with new_role(pgqueue_database, "usage on schema pgqueue", "select on all tables in schema pgqueue") as role:
        for table in ("jobs", "finished_jobs", "dead_jobs"):
            connection.execute(f"alter table pgqueue.{table} enable row level security")
            connection.execute(f"create policy mine on pgqueue.{table} for select using (queue = 'payments')")
        with psycopg.connect(pgqueue_database, user=role, autocommit=True) as theirs:
            queues = rows(theirs, "queue_stats", "queue")
            assert queues.keys() == {"payments"}
            assert queues["payments"]["failed_1m"] == 3
            assert rows(theirs, "task_stats", "task")["shop.charge"]["failures"] == 3
            assert {row["queue"] for row in rows(theirs, "all_jobs", "id").values()} == {"payments"}
        assert rows(connection, "queue_stats", "queue").keys() == {"default", "payments"}


# -- as a person at psql sees it -------------------------------------------------------------------------------------


# What each of the ready queries must find in the busy schema, as psql prints it.
ANSWERS = {
    "schedules that need somebody": r"nightly \| unattended \|",
    "schedule lag": r"nightly +\| unattended \| 00:05:0\S+ +\| +1 \| 00:00:03 \| 00:00:03",
    "what a schedule did of late, and how late": r"^ +7 \| 2\S+ +\| completed \| 00:00:03 \| 00:00:01",
    "depth and age": r"default +\| +1 +\|",
    "stuck": r"^ +{running} \| shop.send +\| 02:00:0",
    "slowest tasks of the last hour": r"shop.charge +\| +5 \|",
    "failure rate of the last hour": r"shop.charge +\| +5 \| +4 \| +80\.0",
    "late": r"default +\| +1 \| 00:10:0",
    "retries about to die": r"^ +{retrying} \| shop.charge +\| default +\| +1 \| +2 \|",
    "what fails most, and how": r"shop.charge +\| ValueError +\| +1$",
    "queued tasks that no live worker knows": r"shop.charge",
    "workers that have missed two heartbeats": r"test +\| +1 \| 00:00:5",
}


@pytest.mark.skipif(PSQL is None, reason="no psql here")
def test_the_ready_queries_run_in_psql_as_they_are_printed(
    connection: Look, pgqueue_database: str, busy: dict[str, int]
) -> None:
    connection.execute("update pgqueue.jobs set started_at = now() - interval '2 h' where state = 'running'")
    connection.execute("update pgqueue.jobs set max_attempts = 2 where id = %s", [busy["retrying"]])
    connection.execute(
        "update pgqueue.jobs set created_at = now() - interval '1 h', run_at = now() - interval '10 min' where id = %s",
        [busy["queued"]],
    )
    connection.execute(
        "update pgqueue.workers set heartbeat_at = now() - interval '50 s', expires_at = now() + interval '10 s'"
    )
    connection.execute("select pgqueue.add_schedule('nightly', 'shop.clean_up', '0 2 * * *')")
    connection.execute("update pgqueue.schedules set next_tick = now() - interval '5 min'")
    connection.execute(
        "insert into pgqueue.finished_jobs (id, state, task, attempt, run_at, started_at, finished_at, meta)"
        " select n, 'completed', 'shop.clean_up', 1, t, t + interval '3 s', t + interval '4 s',"
        " jsonb_build_object('schedule', schedule, 'tick', t)"
        " from (values (7000, 'nightly'), (7, 'shop.clean_up')) as one (n, schedule),"
        " (select now() - interval '1 min') as at (t)"
    )
    script = blocks(ROOT / "docs" / "sql.md", "sql")[-1]
    titles = [title.partition(":")[0].lower() for title in re.findall(r"^-- (.*)$", script, re.MULTILINE)]
    echoed = re.sub(r"^-- (.*)$", r"\\echo -- \1", script, flags=re.MULTILINE)
    command = [str(PSQL), "-X", "-v", "ON_ERROR_STOP=1", pgqueue_database]
    done = subprocess.run(command, input=echoed, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    said = dict(zip(titles, re.split(r"^-- .*$", done.stdout, flags=re.MULTILINE)[1:], strict=True))
    assert said.keys() == ANSWERS.keys()
    for title, answer in ANSWERS.items():
        assert re.search(answer.format(**busy), said[title], re.MULTILINE), said[title]


@pytest.mark.skipif(PSQL is None, reason="no psql here")
@pytest.mark.parametrize("view", VIEWS)
def test_the_columns_of_a_view_are_those_of_the_page_in_their_order_with_type(pgqueue_database: str, view: str) -> None:
    """Who reads `SELECT *` by position would notice; who adds a column adds it at the end, and here."""
    page = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^### `{view}`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    table = block.partition("| column | type |")[2].partition("\n\n")[0]
    documented = re.findall(r"^\| `(\w+)` \| ([\w\[\] ]+) \| \S", table, re.MULTILINE)
    query = (
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        f" where attrelid = 'pgqueue.{view}'::regclass and attnum > 0 order by attnum"
    )
    command = [str(PSQL), "-X", "-A", "-t", pgqueue_database, "-c", query]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    short = {"timestamp with time zone": "timestamptz", "integer": "int"}
    found = [line.split("|") for line in done.stdout.splitlines()]
    assert [(name, short.get(kind, kind)) for name, kind in found] == documented
