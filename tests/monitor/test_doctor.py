"""`pgqueue doctor` and the view `health`: silent about a healthy database, and each finding provoked for real, on a
server of these tests' own: the others' do without fsync, which the doctor calls by its name."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from pgqueue import PgQueue, SchemaError, doctor, migrate
from pgqueue.cli import cli
from pgqueue.embedded import EmbeddedPostgres
from pgqueue.monitor import Finding
from pgqueue.testing import _new_database, _temp_dir, _url
from tests.cli.conftest import Run
from tests.crash.test_failover import Pair, pair
from tests.crash.test_pooler import PGBOUNCER, pooled
from tests.helpers import eventually, job_in, worker_row
from tests.monitor.test_views import granted_to_watch
from tests.roles import new_role

__all__ = ["pair", "pooled"]  # fixtures

Look = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    settings = {"max_prepared_transactions": "5", "autovacuum_naptime": "1h"}  # which leaves what is dead to be seen
    with EmbeddedPostgres(temp_dir=_temp_dir(), settings=settings) as made:
        yield made.url()


@pytest.fixture(scope="module")
def template(server: str) -> Iterator[str]:
    with _new_database(server) as name:
        migrate.upgrade(_url(server, name))
        yield name


@pytest.fixture
def url(server: str, template: str) -> Iterator[str]:
    with _new_database(server, template) as name:
        yield _url(server, name)


@pytest.fixture
def app(url: str) -> Iterator[PgQueue]:
    made = PgQueue(url)
    yield made
    made.close()


@pytest.fixture
def connection(url: str) -> Iterator[Look]:
    with psycopg.connect(url, autocommit=True) as made:
        yield made


def wrong(url: str, schema: str = "pgqueue", **options: Any) -> list[Finding]:
    """What needs somebody. options: of `examine`."""
    return [one for one in doctor.examine(url, schema, quick=True, **options) if one.level != "ok"]


def bounded(url: str, **bounds: str) -> str:
    """The URL for sessions with other bounds: as ALTER ROLE or ALTER DATABASE would set them."""
    return make_conninfo(url, options=" ".join(f"-c pgqueue.{name}={value}" for name, value in bounds.items()))


def only(url: str) -> Finding:
    """The one finding that there is."""
    (one,) = wrong(url)
    return one


# -- healthy -----------------------------------------------------------------------------------------------------------


def test_of_a_healthy_database_there_is_no_finding(run: Run, url: str, app: PgQueue, connection: Look) -> None:
    for state in ("queued", "running", "completed", "dead"):
        job_in(app, connection, state, "shop.send")
    result = run("doctor", "--database-url", url)
    assert result.stdout.startswith("healthy: ")
    assert result.stdout.count("\n") == 1
    found = json.loads(run("doctor", "--json", "--database-url", url).stdout)
    assert (found["healthy"], {one["level"] for one in found["findings"]}) == (True, {"ok"})
    measured = {one["finding"] for one in found["findings"]}
    assert measured >= {
        "autovacuum", "clock", "connections", "dead_rows", "index_bloat", "notify_queue", "oldest_transaction",
        "partition", "pooler", "round_trip", "schema", "workers", "xid_age",
    }  # fmt: skip
    assert all(one["fix"] is None for one in found["findings"])
    assert run("doctor", "--all", "--database-url", url).stdout.count("\n") > 2 * len(measured)


# -- who holds back vacuum ---------------------------------------------------------------------------------------------


def test_a_session_that_holds_a_snapshot_is_named_with_what_it_does_and_can_be_ended(
    url: str, app: PgQueue, connection: Look
) -> None:
    bound = bounded(url, longest_transaction="10ms")
    with closing(psycopg.connect(url, application_name="a report")) as holder:  # ended from outside: it cannot commit
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("select 7 as\n   something")
        eventually(lambda: wrong(bound))
        one = only(bound)
        assert (one.finding, one.unit, wrong(url)) == ("oldest_transaction", "seconds", [])
        assert one.value is not None
        assert one.value > 0.01
        pid = holder.info.backend_pid
        assert f"session {pid} (postgres, a report, idle in transaction)" in one.detail
        assert one.detail.endswith("; select 7 as something")
        assert one.fix == f"SELECT pg_terminate_backend({pid})"
        eventually(lambda: only(bound).level == "critical")  # after 12 times as long
        with new_role(url) as role:
            granted_to_watch(connection, role)
            (said,) = wrong(make_conninfo(bound, user=role))  # sees no query, and says that it sees nobody's session
            assert (said.finding, said.level) == ("sight", "note")
            assert said.fix == f"GRANT pg_read_all_stats TO {role}"
            connection.execute(said.fix.encode())
            assert only(make_conninfo(bound, user=role)).finding == "oldest_transaction"
        connection.execute(one.fix.encode())
        eventually(lambda: not wrong(bound))


def test_a_prepared_transaction_that_nobody_ends_is_named(url: str, connection: Look) -> None:
    with closing(psycopg.connect(url)) as holder:
        xid = holder.xid(1, "it's", "ours")
        holder.tpc_begin(xid)
        holder.execute("insert into pgqueue.queues (name) values ('x')")
        holder.tpc_prepare()
    bound = bounded(url, longest_transaction="1ms")
    eventually(lambda: wrong(bound))
    one = only(bound)
    assert (one.finding, one.level) == ("prepared_transaction", "warning")
    assert "it''s" in one.detail or "aXQncw" in one.detail  # psycopg encodes what it is given
    assert one.fix is not None
    connection.execute(one.fix.encode())
    assert wrong(bound) == []


def test_an_abandoned_replication_slot_is_named_with_what_it_holds(url: str, connection: Look) -> None:
    connection.execute("select pg_create_physical_replication_slot('left_over', true)")
    one = only(url)
    assert (one.finding, one.level, one.unit) == ("replication_slot", "warning", "bytes")
    assert one.detail.startswith("slot left_over is used by nobody and holds ")
    assert one.fix == "SELECT pg_drop_replication_slot('left_over')"
    connection.execute(one.fix.encode())
    assert wrong(url) == []


@pytest.mark.parametrize("finding", ["replication_slot", "standby"])
def test_a_standby_whose_reader_holds_back_vacuum_is_named_with_its_slot_or_without_one(
    pair: Pair, finding: str
) -> None:
    primary, second = (f"postgresql://postgres@127.0.0.1:{pair.ports[name]}/postgres" for name in "ab")
    with pair.connect("b") as standby:
        settings = ["hot_standby_feedback = on", "wal_receiver_status_interval = 1"]
        settings += ["primary_slot_name = ''"] if finding == "standby" else []
        mend(standby, [*(f"ALTER SYSTEM SET {one}" for one in settings), "SELECT pg_reload_conf()"])
    migrate.upgrade(primary)
    bound = bounded(primary, standby_xids="10")

    def found(url: str) -> list[Finding]:
        return [one for one in wrong(url) if one.finding == finding and "is used by nobody" not in one.detail]

    with closing(psycopg.connect(second)) as reader, pair.connect("a") as writer:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("select 1")
        for _ in range(20):
            writer.execute("insert into pgqueue.jobs (task) values ('t')")
        (one,) = eventually(lambda: found(bound), timeout=30)
        held = "slot b holds " if finding == "replication_slot" else "standby b (127.0.0.1) holds "
        assert one.detail.startswith(held)
        assert re.search(r"what died in the last \d\d transactions", one.detail)
        assert (one.level, one.fix) == ("warning", None)
        assert found(primary) == []  # by the bound as it is
    eventually(lambda: not found(bound), timeout=30)


# -- the hot tables ----------------------------------------------------------------------------------------------------


def churn(connection: Look, rows: int) -> None:
    connection.execute("insert into pgqueue.jobs (task) select 't' from generate_series(1, %s)", [rows])
    connection.execute("delete from pgqueue.jobs")


def test_dead_rows_that_vacuum_did_not_remove_are_counted(url: str, connection: Look) -> None:
    churn(connection, 2_000)
    bound = bounded(url, dead_rows="1000")
    eventually(lambda: connection.execute("select 1") and wrong(bound))  # what a session counted it may tell later
    one = only(bound)
    assert (one.finding, one.level, one.value, one.fix) == ("dead_rows", "warning", 2_000, "VACUUM pgqueue.jobs")
    assert one.detail.startswith("table jobs: 0 rows live, 2000 dead, ")
    assert only(bounded(url, dead_rows="100")).level == "critical"
    assert one.fix is not None
    connection.execute(one.fix.encode())
    eventually(lambda: not wrong(bound))


def test_an_index_that_is_much_larger_than_its_rows_is_named(url: str, connection: Look) -> None:
    churn(connection, 5_000)
    connection.execute("vacuum pgqueue.jobs")
    bound = bounded(url, index_bytes="100000")
    found = eventually(lambda: wrong(bound))
    assert {(one.finding, one.level) for one in found} == {("index_bloat", "warning")}
    assert {one.detail.partition(":")[0] for one in found} == {"index jobs_due", "index jobs_pkey"}
    for one in found:
        assert one.fix is not None
        assert one.fix.startswith("REINDEX INDEX CONCURRENTLY pgqueue.jobs_")
        connection.execute(one.fix.encode())
    assert wrong(bound) == []


@pytest.mark.parametrize("table", ["jobs", "workers"])
def test_a_table_without_autovacuum_is_named(url: str, connection: Look, table: str) -> None:
    connection.execute(f"alter table pgqueue.{table} set (autovacuum_enabled = off)")
    one = only(url)
    assert (one.finding, one.level, one.detail) == ("autovacuum", "critical", f"autovacuum is off for table {table}")
    assert one.fix == f"ALTER TABLE pgqueue.{table} RESET (autovacuum_enabled)"
    connection.execute(one.fix.encode())
    assert wrong(url) == []


def test_days_without_a_partition_are_told_before_they_come(url: str, connection: Look) -> None:
    later = connection.execute(
        "select relname from pg_class where relname ~ '^finished_jobs_[0-9]{8}$' and relkind = 'r' order by 1 offset 2"
    ).fetchall()
    for (name,) in later:
        connection.execute(f"drop table pgqueue.{name}")
    assert (only(url).finding, only(url).level) == ("partition", "warning")
    connection.execute(
        "do $$ begin execute 'drop table pgqueue.finished_jobs_' || to_char(now() at time zone 'utc' + interval '1 d',"
        " 'YYYYMMDD'); end $$"
    )
    one = only(url)
    assert (one.level, one.fix) == ("critical", "SELECT pgqueue.prune(7, 86400)")
    connection.execute(str(one.fix).encode())
    assert wrong(url) == []


def test_the_size_of_each_table_is_told_in_bytes(url: str, app: PgQueue, connection: Look) -> None:
    def sizes() -> dict[str, float | None]:
        found = [one for one in doctor.examine(url, quick=True) if one.finding == "table_size"]
        assert {(one.level, one.unit) for one in found} == {("ok", "bytes")}
        return {one.detail.split()[1].rstrip(":"): one.value for one in found}

    before = sizes()
    assert before.keys() == {"jobs", "finished_jobs", "dead_jobs", "job_errors"}
    connection.execute("insert into pgqueue.jobs (task) select 't' from generate_series(1, 1000)")
    connection.execute(
        "insert into pgqueue.finished_jobs (id, state, task, finished_at)"
        " select i, 'completed', 't', now() from generate_series(1, 1000) as i"
    )
    after = sizes()
    query = (
        "select pg_total_relation_size('pgqueue.jobs'), (select sum(pg_total_relation_size(inhrelid))"
        " from pg_inherits where inhparent = 'pgqueue.finished_jobs'::regclass)"
    )
    assert connection.execute(query).fetchone() == (after["jobs"], after["finished_jobs"])
    assert [after[name] > before[name] for name in ("jobs", "finished_jobs", "dead_jobs")] == [True, True, False]


# -- the server --------------------------------------------------------------------------------------------------------


def test_the_queue_of_notify_that_a_listener_keeps_from_emptying_is_told_with_who_it_is(
    url: str, connection: Look
) -> None:
    bound = bounded(url, notify_queue="0")
    with closing(psycopg.connect(url)) as listener, closing(psycopg.connect(url)) as younger:
        listener.execute("listen nothing")
        listener.commit()
        listener.execute("select 1")
        younger.execute("select 1")  # in a transaction, too, and not the one that is in the way
        for _ in range(8):
            connection.execute("select pg_notify('nothing', repeat('x', 7000))")
        one = only(bound)
        assert (one.finding, one.level, one.unit, wrong(url)) == ("notify_queue", "critical", "fraction", [])
        assert one.fix == f"SELECT pg_terminate_backend({listener.info.backend_pid})"
        connection.execute(one.fix.encode())
    connection.execute("notify nothing")
    eventually(lambda: not wrong(bound))


def test_old_transaction_ids_and_few_connections_left_are_told(url: str) -> None:
    assert (only(bounded(url, xid_age="1")).finding, only(bounded(url, xid_age="1")).level) == ("xid_age", "critical")
    one = only(bounded(url, connections="0.001"))
    assert (one.finding, one.level) == ("connections", "warning")
    assert str(one.fix).startswith("ALTER SYSTEM SET max_connections = ")


def test_a_role_that_sees_no_sessions_of_others_counts_their_connections_all_the_same(
    url: str, connection: Look
) -> None:
    def taken(url: str) -> int:
        (one,) = [one for one in doctor.examine(url, quick=True) if one.finding == "connections"]
        return int(one.detail.partition(" of ")[0])

    with ExitStack() as others, new_role(url) as role:
        granted_to_watch(connection, role)
        theirs = make_conninfo(url, user=role)
        alone = eventually(lambda: taken(theirs))
        for _ in range(5):
            others.enter_context(closing(psycopg.connect(url)))
        eventually(lambda: taken(theirs) == taken(url) >= alone + 5)


@pytest.mark.parametrize(
    ("where", "fix"),
    [
        ("alter database {name} set synchronous_commit = off", "ALTER DATABASE {name} RESET synchronous_commit"),
        (
            "alter role postgres in database {name} set synchronous_commit = off",
            "ALTER ROLE postgres IN DATABASE {name} RESET synchronous_commit",
        ),
        (
            "alter role postgres set synchronous_commit = off",
            "ALTER ROLE postgres RESET synchronous_commit",
        ),
    ],
)
def test_a_setting_that_hurts_is_told_with_what_takes_it_back(url: str, connection: Look, where: str, fix: str) -> None:
    name = connection.info.dbname
    connection.execute(where.format(name=name))
    one = only(url)
    assert (one.finding, one.level) == ("setting", "warning")
    assert one.detail.startswith("synchronous_commit is off: a crash may lose")
    assert one.fix == fix.format(name=name)
    connection.execute(one.fix.encode())
    assert wrong(url) == []


def test_the_settings_of_a_server_for_tests_are_called_dangerous(pgqueue_database: str) -> None:
    found = {one.detail.partition(" is off")[0]: one for one in wrong(pgqueue_database) if one.finding == "setting"}
    assert {"fsync", "full_page_writes"} <= found.keys() or "PGQUEUE_TEST_DATABASE_URL" in os.environ
    for name, one in found.items():  # no statement mends what counts before all of them
        assert (one.fix, one.detail.startswith(f"{name} is off on the command line of the server: ")) == (None, True)


def test_a_setting_of_the_server_is_mended_by_two_statements_each_by_itself(
    url: str, connection: Look, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: mend(connection, ["ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()"]))
    mend(connection, ["ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()"])
    setting, then = eventually(lambda: wrong(url))
    assert (setting.finding, setting.level, setting.fix) == (
        "setting", "critical", "ALTER SYSTEM SET full_page_writes = on"
    )  # fmt: skip
    assert (then.finding, then.level, then.fix) == ("setting_reload", "note", "SELECT pg_reload_conf()")
    assert then.detail == "what ALTER SYSTEM sets counts once the server has read it: after full_page_writes"
    mend(connection, [str(one.fix) for one in (setting, then)])
    eventually(lambda: not wrong(url))


def test_a_setting_of_the_connection_is_mended_in_it(url: str) -> None:
    with psycopg.connect(url, options="-c synchronous_commit=off", autocommit=True) as theirs:
        query = "select fix from pgqueue.health where finding = 'setting'"
        assert theirs.execute(query).fetchall() == [("SET synchronous_commit = on",)]
        theirs.execute("SET synchronous_commit = on")
        assert theirs.execute(query).fetchall() == []
        theirs.execute("SET synchronous_commit = off")
        assert theirs.execute(query).fetchall() == [("RESET synchronous_commit",)]


def mend(connection: Look, statements: list[str]) -> None:
    for one in statements:
        connection.execute(one.encode())


# -- workers, and what waits for them ----------------------------------------------------------------------------------


def test_jobs_that_no_worker_will_run_are_told_by_what_is_missing(url: str, app: PgQueue, connection: Look) -> None:
    worker = worker_row(app, connection, ["shop.send"])
    connection.execute("update pgqueue.workers set queues = '{email}'")
    connection.execute("insert into pgqueue.jobs (task, queue) values ('shop.sned', 'email'), ('shop.send', 'slow')")
    connection.execute("insert into pgqueue.jobs (task, run_at) values ('shop.later', now() + interval '1 h')")
    assert {(one.finding, one.level, one.detail.partition(":")[0]) for one in wrong(url)} == {
        ("unknown_task", "warning", "task shop.sned"),
        ("unserved_queue", "warning", "queue slow"),
    }
    connection.execute("delete from pgqueue.workers where id = %s", [worker])
    one = only(url)
    assert (one.finding, one.level, one.detail) == ("workers", "critical", "no worker is alive, and 2 jobs are due")


def test_a_worker_that_misses_heartbeats_is_named_before_and_after_its_lease_ends(
    url: str, app: PgQueue, connection: Look
) -> None:
    job_in(app, connection, "running", "shop.send")
    late = "update pgqueue.workers set heartbeat_at = now() - interval '{}', expires_at = now() + interval '{}'"
    connection.execute(late.format("9 s", "6 s"))
    assert wrong(url) == []
    connection.execute(late.format("11 s", "4 s"))
    assert (only(url).finding, only(url).level) == ("worker_silent", "warning")
    assert only(url).detail.startswith("worker test:1 has not renewed for 00:00:1")
    connection.execute(late.format("80 s", "-65 s"))
    assert {(one.finding, one.level) for one in wrong(url)} == {
        ("worker_silent", "critical"),
        ("lost_jobs", "critical"),
    }
    connection.execute("delete from pgqueue.workers")
    connection.execute("update pgqueue.jobs set started_at = now() - interval '2 min'")
    assert only(url).finding == "lost_jobs"


def test_workers_of_several_versions_are_told_of(url: str, app: PgQueue, connection: Look) -> None:
    worker_row(app, connection, ["t"])
    worker_row(app, connection, ["t"])
    connection.execute(
        "update pgqueue.workers set version = '9' where id = (select max(id::text)::uuid from pgqueue.workers)"
    )
    one = only(url)
    assert (one.finding, one.detail) == ("versions", "live workers run pgqueue 9, test")


def test_a_queue_that_was_paused_and_forgotten_is_told_with_what_resumes_it(
    url: str, app: PgQueue, connection: Look
) -> None:
    worker_row(app, connection, ["t"])
    connection.execute("insert into pgqueue.jobs (task, queue) values ('t', 'it''s')")
    pause = (
        "insert into pgqueue.queues (name, paused, paused_at, paused_by)"
        " values ('it''s', true, now() - interval '2 d', 'ada'), ('empty', true, null, null)"
    )
    connection.execute(pause)
    one = only(url)
    assert (one.finding, one.level) == ("paused_queue", "warning")
    assert one.detail.startswith("queue it's has been paused by ada for 2 days")
    assert one.fix == "SELECT pgqueue.resume('it''s')"
    assert wrong(bounded(url, longest_pause="7d")) == []
    connection.execute("update pgqueue.queues set paused_until = now() + interval '1 h'")
    assert only(url).finding == "paused_queue"
    connection.execute("update pgqueue.queues set paused_until = now()")  # it has resumed by itself
    assert wrong(url) == []
    connection.execute("update pgqueue.queues set paused_until = null")
    connection.execute(str(one.fix).encode())
    assert wrong(url) == []


def test_a_task_that_was_paused_and_forgotten_is_told_with_what_resumes_it(
    url: str, app: PgQueue, connection: Look
) -> None:
    worker_row(app, connection, ["t"])
    connection.execute("insert into pgqueue.jobs (task) values ('t'), ('t')")
    connection.execute(
        "insert into pgqueue.paused_tasks (task, paused_at, paused_by)"
        " values ('t', now() - interval '2 d', 'ada'), ('empty', now() - interval '2 d', null)"
    )
    one = only(url)
    assert (one.finding, one.level, one.fix) == ("paused_task", "warning", "SELECT pgqueue.resume_task('t')")
    assert one.detail.startswith("task t has been paused by ada for 2 days")
    assert one.detail.endswith(", and 2 jobs are due")
    assert wrong(bounded(url, longest_pause="7d")) == []
    connection.execute("update pgqueue.paused_tasks set paused_until = now()")
    assert wrong(url) == []
    connection.execute("update pgqueue.paused_tasks set paused_until = null")
    connection.execute(str(one.fix).encode())
    assert wrong(url) == []


def test_a_schedule_that_does_not_fire_is_told_with_the_reason(url: str, app: PgQueue, connection: Look) -> None:
    worker_row(app, connection, ["shop.clean_up"])
    connection.execute("select pgqueue.add_schedule('nightly', 'shop.clean_up', '0 2 * * *')")
    assert wrong(url) == []
    connection.execute("update pgqueue.schedules set next_tick = now() - interval '90 s'")
    assert (only(url).finding, only(url).level) == ("schedule", "warning")
    assert only(url).detail.startswith("schedule nightly is late: its tick of 20")
    assert " UTC has not been fired for 00:0" in only(url).detail
    connection.execute("update pgqueue.schedules set problem = 'no such zone'")
    assert only(url).detail == "schedule nightly cannot be fired: no such zone"
    connection.execute("update pgqueue.schedules set problem = null, orphaned_at = now()")
    one = only(url)
    assert (one.detail, one.fix) == (
        "schedule nightly was declared in code, and is no more: it fires no more",
        "SELECT pgqueue.remove_schedule('nightly')",
    )
    connection.execute("update pgqueue.schedules set orphaned_at = null, next_tick = now() + interval '1 h'")
    connection.execute("update pgqueue.workers set tasks = '{}'")
    assert only(url).detail.startswith("schedule nightly: no live worker knows its task shop.clean_up")
    connection.execute(str(one.fix).encode())
    assert wrong(url) == []


# -- what is seen from outside -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "says"), [(3.0, "3.0 s ahead of"), (-60.0, "60.0 s behind")])
def test_a_clock_that_is_wrong_is_told_by_how_much(url: str, by: float, says: str) -> None:
    (one,) = wrong(url, clock=lambda: time.time() + by)
    assert (one.finding, one.level) == ("clock", "warning")
    assert one.detail.startswith(f"this machine's clock is {says}")


@pytest.mark.skipif(not PGBOUNCER.exists(), reason="pgbouncer is not installed")
def test_a_pooler_is_noticed(pooled: str) -> None:
    (one,) = [one for one in wrong(pooled) if one.finding == "pooler"]
    assert (one.level, one.fix) == ("note", None)
    assert "--listen-url" in one.detail


def test_a_schema_that_somebody_changed_is_told_line_by_line(url: str, connection: Look) -> None:
    connection.execute("drop index pgqueue.jobs_expiring")
    assert wrong(url) == []  # quick
    (one,) = [one for one in doctor.examine(url) if one.level != "ok"]
    assert (one.finding, one.detail) == ("schema", "not as declared: index jobs_expiring of jobs: missing")


def test_the_view_is_right_in_a_schema_of_any_name(url: str, connection: Look) -> None:
    odd = 'it\'s "odd" 100%'
    migrate.upgrade(url, odd)
    assert doctor.examine(url, odd, quick=True)[0].level == "ok"
    connection.execute('alter table "it\'s ""odd"" 100%".jobs set (autovacuum_enabled = off)')
    (one,) = wrong(url, odd)
    connection.execute(str(one.fix).encode())
    assert wrong(url, odd) == []
    assert [one for one in doctor.examine(url, odd) if one.level != "ok"] == []


# -- the command -------------------------------------------------------------------------------------------------------


def exits(url: str, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["doctor", "--quick", "--database-url", url, *options], catch_exceptions=False)
    return result.exit_code, result.output


def test_findings_are_exit_1_and_fit_a_narrow_screen(
    monkeypatch: pytest.MonkeyPatch, url: str, app: PgQueue, connection: Look
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    task = "shop." + "very_" * 20 + "long\x1b[2J"
    connection.execute("insert into pgqueue.jobs (task, queue) values (%s, 'x')", [task])
    worker_row(app, connection, ["t"])
    connection.execute("select pg_create_physical_replication_slot('left_over', true)")
    try:
        code, text = exits(url)
        found = json.loads(exits(url, "--json")[1])
    finally:
        connection.execute("select pg_drop_replication_slot('left_over')")
    assert code == 1
    assert all(line.isprintable() for line in text.splitlines())
    assert all(len(line) <= 80 or "fix: " in line for line in text.splitlines()[:-1])
    assert "fix: SELECT pg_drop_replication_slot('left_over')\n" in text
    assert text.splitlines()[-1].startswith("2 findings: ")
    assert len(text.splitlines()) <= 24
    assert (found["healthy"], [one["finding"] for one in found["findings"][:2]]) == (
        False, ["replication_slot", "unknown_task"]
    )  # fmt: skip


def test_where_pgqueue_cannot_work_it_is_exit_3(url: str, server: str, connection: Look) -> None:
    assert exits("postgresql://127.0.0.1:1/nowhere")[0] == 3
    code, said = exits(url, "--schema", "elsewhere")
    assert (code, said) == (3, 'pgqueue: schema "elsewhere" holds no pgqueue tables: run `pgqueue migrate`\n')
    connection.execute("update pgqueue.alembic_version set version_num = '0001'")
    assert exits(url)[0] == 3
    with pytest.raises(SchemaError, match="stands at migration 0001"):
        doctor.examine(url)
    with new_role(url) as role:
        code, said = exits(make_conninfo(url, user=role))
        assert code == 3
        assert "GRANT USAGE ON SCHEMA" in said
        assert "dead_jobs" not in said or "GRANT" in said
