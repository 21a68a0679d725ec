"""Step 8, prune, by the row: a task says how many of its ended jobs stay and how long; any worker sees to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue import PgQueue, RetryPolicy, SchemaError, db
from pgqueue.maintenance import prune as pruning
from pgqueue.retention import Retention
from pgqueue.sql import statements
from tests.helpers import eventually, job_in, run
from tests.life.workbench import ended, working
from tests.roles import new_role

Look = psycopg.Connection[Any]
SQL = statements("pgqueue")
HOUR, DAY = 3_600.0, 86_400.0

ENDED = {"finished_jobs": "finished_at", "dead_jobs": "died_at"}


def job(connection: Look, hours: float, task: str = "shop.pay", table: str = "finished_jobs") -> int:
    """A job that ended so many hours ago; of a finished one the day is made if need be."""
    when = datetime.now(UTC) - timedelta(hours=hours)
    if table == "finished_jobs":
        day = when.replace(hour=0, minute=0, second=0, microsecond=0)
        connection.execute(
            f"create table if not exists pgqueue.finished_jobs_{day:%Y%m%d} partition of pgqueue.finished_jobs"
            f" for values from ('{day.isoformat()}') to ('{(day + timedelta(days=1)).isoformat()}')"
        )
    more, value = (", reason", ", 'attempts'") if table == "dead_jobs" else ("", "")
    row = connection.execute(
        f"insert into pgqueue.{table} (id, state, task, {ENDED[table]}{more}) values"
        f" (nextval('pgqueue.jobs_id_seq'), '{'dead' if more else 'completed'}', %s, %s{value}) returning id",
        [task, when],
    ).fetchone()
    assert row is not None
    return int(row[0])


def left(connection: Look, table: str = "finished_jobs") -> list[int]:
    return [row[0] for row in connection.execute(f"select id from pgqueue.{table} order by id")]


def written(connection: Look) -> dict[str, tuple[Any, ...]]:
    rows = connection.execute("select task, keep, keep_for, keep_dead, keep_dead_for from pgqueue.retention")
    return {task: tuple(rest) for task, *rest in rows}


def prune(connection: Look, retention: float = DAY) -> bool:
    """Whatever is due, one part; whether there is more."""
    connection.execute("update pgqueue.retention set prune_at = '-infinity'")
    return run(connection, pruning.prune_jobs(SQL, run(connection, db.to_prune(SQL, 60.0)), retention))


# -- what stays ----------------------------------------------------------------------------------------------------

# Jobs that ended 1, 2, 3, 4 and 5 hours ago: how many of the newest stay.
KEPT = {
    "all, without a policy": (None, None, 5),
    "none": (0, None, 0),
    "none of any age": (None, 0, 0),
    "the newest three": (3, None, 3),
    "all, when there are fewer": (9, None, 5),
    "those younger than two and a half hours": (None, 2.5 * HOUR, 2),
    "both, where the count is less": (1, 2.5 * HOUR, 1),
    "both, where the age is less": (4, 2.5 * HOUR, 2),
}


@pytest.mark.parametrize("case", KEPT)
@pytest.mark.parametrize("table", ENDED)
def test_of_a_tasks_jobs_stay_the_newest_within_the_count_and_the_age_and_nobody_elses_go(
    table: str, case: str, app: PgQueue, connection: Look
) -> None:
    count, age, most = KEPT[case]
    mine = [job(connection, hours, "shop.pay", table) for hours in (3, 1, 5, 2, 4)]
    theirs = [job(connection, hours, "shop.paid", table) for hours in (1, 5)]
    live = {state: job_in(app, connection, state, task="shop.pay") for state in ("queued", "blocked", "running")}
    names = ("keep", "keep_for") if table == "finished_jobs" else ("keep_dead", "keep_dead_for")
    other = next(name for name in ENDED if name != table)
    unconcerned = job(connection, 5, "shop.pay", other)
    run(connection, db.retain(SQL, {"shop.pay": Retention(**dict(zip(names, (count, age), strict=True)))}))
    assert not prune(connection)
    newest = [mine[place] for place in (1, 3, 0, 4, 2)][:most]
    assert left(connection, table) == sorted(newest + theirs)
    assert left(connection, other) == [unconcerned]
    assert {state: ended(connection, one).state for state, one in live.items()} == {state: state for state in live}


def test_the_count_is_each_tasks_own_whatever_ended_it(app: PgQueue, connection: Look) -> None:
    kinds = ("completed", "cancelled", "expired")
    jobs = {task: [job_in(app, connection, kind, task=task) for kind in kinds] for task in ("a", "b", "c")}
    run(connection, db.retain(SQL, {"a": Retention(keep=1), "b": Retention(keep=2), "c": Retention(keep_dead=0)}))
    prune(connection)
    assert left(connection) == sorted([*jobs["a"][2:], *jobs["b"][1:], *jobs["c"]])


def test_a_task_may_keep_its_jobs_for_longer_than_the_default_and_the_others_go_all_the_same(connection: Look) -> None:
    long = [job(connection, 24 * days, "shop.ledger") for days in (3, 9, 12)]
    short = [job(connection, 24 * days, "shop.pay") for days in (3, 9, 12)]
    counted = [job(connection, 24 * days, "shop.mail") for days in (3, 9)]
    fresh = job(connection, 20, "shop.pay")
    policies = {"shop.ledger": Retention(keep_for=10 * DAY), "shop.mail": Retention(keep=5)}
    run(connection, db.retain(SQL, policies))
    assert run(connection, db.prune(SQL, 7, DAY))[1:] == (1, 0)  # the day that is too old for all of them
    assert left(connection) == sorted([*long[:2], *short[:2], *counted, fresh])
    prune(connection)
    assert left(connection) == sorted([*long[:2], fresh])
    run(connection, db.retain(SQL, {"shop.ledger": Retention()}))
    assert run(connection, db.prune(SQL, 7, DAY))[1] == 2
    assert left(connection) == [fresh]


def test_many_rows_go_in_parts_that_begin_where_the_last_one_ended(
    connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "CHUNK", 2)
    monkeypatch.setattr(pruning, "PART", 4)
    for table in ENDED:
        for hours in range(11):
            job(connection, hours, table=table)
    run(connection, db.retain(SQL, {"shop.pay": Retention(keep=1, keep_dead=6)}))
    seen = []
    while True:
        more = prune(connection)
        seen.append((len(left(connection)), len(left(connection, "dead_jobs"))))
        if not more:
            break
    assert seen == [(7, 9), (3, 7), (1, 6)]


# -- nothing is written of a task that keeps nothing ---------------------------------------------------------------


@pytest.mark.parametrize("how", [{"keep": 0}, {"keep_for": 0}, {"keep_for": timedelta(0), "keep": 7}])
def test_a_completed_job_of_a_task_that_keeps_nothing_is_not_even_written(
    how: dict[str, Any], app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    connection.execute("create table writes (id bigint)")
    connection.execute(
        "create function note() returns trigger language plpgsql as"
        " $$ begin insert into public.writes values (new.id); return null; end $$"
    )
    connection.execute(
        "create trigger note after insert on pgqueue.finished_jobs for each row execute function public.note()"
    )
    told: list[int] = []
    app.on("completed")(lambda event: told.append(event.job.id))

    @app.task(name="quiet", retry=RetryPolicy(delay=0), **how)
    def quiet(fail: bool) -> None:
        if fail and not connection.execute("select from pgqueue.job_errors").fetchall():
            raise RuntimeError("once")

    @app.task(name="loud")
    def loud() -> str:
        return "kept"

    jobs = [quiet.enqueue(connection, fail).id for fail in (False, True)]
    other = loud.enqueue(connection).id
    drain()
    assert sorted(told) == sorted([*jobs, other])
    assert left(connection) == [other]
    assert connection.execute("select id from writes").fetchall() == [(other,)]
    for table in ("jobs", "job_errors", "dead_jobs"):
        assert connection.execute(f"select from pgqueue.{table}").fetchall() == []


def test_the_apps_default_holds_where_the_task_says_nothing(pgqueue_database: str, connection: Look) -> None:
    app = PgQueue(pgqueue_database, keep=0, keep_dead=7, keep_dead_for=timedelta(hours=1))

    @app.task(name="a")
    def a() -> None: ...

    @app.task(name="b", keep=3, keep_dead=0)
    def b() -> None: ...

    @app.task(name="c", keep_for=timedelta(minutes=2))
    def c() -> None: ...

    jobs = [task.enqueue(connection).id for task in (a, b, c)]
    with working(app):
        eventually(lambda: not connection.execute("select from pgqueue.jobs").fetchall())
        eventually(lambda: len(written(connection)) == 3)
    assert written(connection) == {
        "a": (0, None, 7, HOUR),
        "b": (3, None, 0, HOUR),
        "c": (0, 120.0, 7, HOUR),
    }
    assert left(connection) == jobs[1:2]
    app.close()


# -- what stands in the table --------------------------------------------------------------------------------------


def test_a_policy_is_written_once_and_again_when_it_changes_and_goes_with_it(connection: Look, logged: Any) -> None:
    look = "select task, xmin::text, changed_at from pgqueue.retention order by task"
    run(connection, pruning.retain(SQL, {"b": Retention(keep=1), "a": Retention(keep_for=2.5), "c": Retention()}))
    assert written(connection) == {"a": (None, 2.5, None, None), "b": (1, None, None, None)}
    first = connection.execute(look).fetchall()
    run(connection, pruning.retain(SQL, {"a": Retention(keep_for=2.5), "b": Retention(keep=1)}))
    assert connection.execute(look).fetchall() == first
    run(connection, pruning.retain(SQL, {"b": Retention(keep=2, keep_dead=0)}))  # knows nothing of a
    assert written(connection) == {"a": (None, 2.5, None, None), "b": (2, None, 0, None)}
    again = connection.execute(look).fetchall()
    assert again[0] == first[0]
    assert again[1][2] > first[1][2]
    run(connection, pruning.retain(SQL, {"a": Retention(), "b": Retention(keep=2, keep_dead=0)}))
    assert written(connection) == {"b": (2, None, 0, None)}
    said = [(record.task, record.getMessage().partition("now ")[2]) for record in logged("retention_changed")]
    assert said == [("a", "keep_for=2.5"), ("b", "keep=1"), ("b", "keep=2, keep_dead=0"), ("a", "the default")]


@pytest.mark.parametrize("column", ["keep", "keep_for", "keep_dead", "keep_dead_for"])
def test_the_table_holds_no_policy_that_no_option_could_say(column: str, connection: Look) -> None:
    for value in ("-1", *(["'NaN'", "'Infinity'"] if column.endswith("for") else [])):
        with pytest.raises(psycopg.errors.CheckViolation, match="retention_keep"):
            connection.execute(f"insert into pgqueue.retention (task, {column}) values ('t', {value})")


def test_one_worker_of_a_fleet_takes_a_task_on_and_the_others_not_before_the_pause_is_over(connection: Look) -> None:
    run(connection, db.retain(SQL, {"a": Retention(keep=1), "b": Retention(keep_dead=1)}))
    assert run(connection, db.to_prune(SQL, 60.0)) == {"a": True, "b": False}
    assert run(connection, db.to_prune(SQL, 60.0)) == {}
    later = datetime.now(UTC) + timedelta(seconds=61)
    assert run(connection, db.to_prune(SQL, 60.0, later)) == {"a": True, "b": False}
    run(connection, db.retain(SQL, {"a": Retention(keep=2), "b": Retention(keep_dead=1)}))
    assert run(connection, db.to_prune(SQL, 60.0)) == {"a": True}  # what changed is due at once


def test_a_worker_that_does_not_know_the_task_applies_what_its_own_worker_wrote(
    pgqueue_database: str, app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    @app.task(name="shop.pay", keep=2, keep_dead=1)
    def pay() -> None: ...

    with working(app):
        eventually(lambda: "shop.pay" in written(connection))
    for table in ENDED:
        for hours in (1, 2, 3, 4):
            job(connection, hours, table=table)
    connection.execute("update pgqueue.retention set prune_at = now()")
    other = PgQueue(pgqueue_database)
    with working(other):
        eventually(lambda: (len(left(connection)), len(left(connection, "dead_jobs"))) == (2, 1))
    assert written(connection) == {"shop.pay": (2, None, 1, None)}
    other.close()


# -- in nobody's way -----------------------------------------------------------------------------------------------


@pytest.fixture
def second(pgqueue_database: str) -> Iterator[Look]:
    """Another session, whose transaction stays open."""
    with psycopg.connect(pgqueue_database) as made:
        yield made
        made.rollback()


def test_jobs_are_claimed_settled_and_redriven_while_a_prune_is_under_way(
    app: PgQueue, connection: Look, second: Look
) -> None:
    dead = [job(connection, hours, table="dead_jobs") for hours in (1, 2)]
    old = job(connection, 1)
    run(connection, db.retain(SQL, {"shop.pay": Retention(keep=0, keep_dead=1)}))
    prune(second)
    assert left(connection) == [old]  # not committed yet
    connection.execute("set lock_timeout = '1ms'")  # any wait for a lock is an error
    done = job_in(app, connection, "completed", task="shop.pay")
    assert [one.id for one in run(connection, db.redrive(SQL, dead[:1]))] == dead[:1]
    second.commit()
    assert left(connection) == [done]
    assert left(connection, "dead_jobs") == []


def test_two_prunes_at_once_do_not_wait_for_each_other(connection: Look, second: Look) -> None:
    for table in ENDED:
        for hours in (1, 2):
            job(connection, hours, table=table)
    run(connection, db.retain(SQL, {"shop.pay": Retention(keep=1, keep_dead=1)}))
    turn = run(connection, db.to_prune(SQL, 60.0))
    run(second, pruning.prune_jobs(SQL, turn, DAY))
    connection.execute("set lock_timeout = '1ms'")
    assert not run(connection, pruning.prune_jobs(SQL, turn, DAY))
    assert (len(left(connection)), len(left(connection, "dead_jobs"))) == (2, 2)
    second.commit()
    assert (len(left(connection)), len(left(connection, "dead_jobs"))) == (1, 1)


def test_a_job_that_is_being_redriven_is_not_pruned(connection: Look, second: Look) -> None:
    dead = job(connection, 1, table="dead_jobs")
    run(connection, db.retain(SQL, {"shop.pay": Retention(keep_dead=0)}))
    run(second, db.redrive(SQL, [dead]))
    connection.execute("set lock_timeout = '1ms'")
    assert not prune(connection)
    second.commit()
    assert ended(connection, dead).state == "queued"


def test_settles_and_prunes_at_the_same_time_lose_nothing_of_what_is_kept(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    @app.task(name="shop.pay", keep=5)
    def pay() -> None: ...

    @app.task(name="shop.mail")
    def mail() -> None: ...

    run(connection, db.retain(SQL, {"shop.pay": pay.retention}))
    jobs = pay.enqueue_many(connection, [()] * 300)
    mails = mail.enqueue_many(connection, [()] * 300)

    def prune_until_done(_: int) -> None:
        with psycopg.connect(pgqueue_database, autocommit=True) as mine:
            while mine.execute("select from pgqueue.jobs limit 1").fetchall():
                run(mine, pruning.prune_jobs(SQL, {"shop.pay": True}, DAY))

    with ThreadPoolExecutor(2) as threads, working(app, concurrency=5):
        list(threads.map(prune_until_done, range(2)))
    prune(connection)
    stay = connection.execute("select id, task from pgqueue.finished_jobs").fetchall()
    assert sorted(one for one, task in stay if task == "shop.mail") == mails
    assert len([one for one, task in stay if task == "shop.pay" and one in jobs]) == 5


RIGHTS = (
    "usage on schema pgqueue",
    "select, insert, update, delete on all tables in schema pgqueue",
    "usage on sequence pgqueue.jobs_id_seq",
    "execute on function pgqueue.prune(integer, double precision)",
)


def test_a_role_with_the_documented_rights_works_and_prunes(
    pgqueue_database: str, connection: Look, logged: Any
) -> None:
    old = [job(connection, hours, table=table) for table in ENDED for hours in (1, 2)]
    with new_role(pgqueue_database, *RIGHTS) as role:
        app = PgQueue(make_conninfo(pgqueue_database, user=role))

        @app.task(name="shop.pay", keep=1, keep_dead=1)
        def pay() -> None: ...

        with working(app):
            eventually(lambda: left(connection) == [old[0]] and left(connection, "dead_jobs") == [old[2]])
        app.close()
    assert not logged("chore_failed")


def test_a_role_that_may_not_write_down_what_is_kept_is_told_before_its_worker_starts(
    pgqueue_database: str, connection: Look
) -> None:
    with new_role(pgqueue_database, *RIGHTS) as role:
        connection.execute(f"revoke all on pgqueue.retention from {role}")
        app = PgQueue(make_conninfo(pgqueue_database, user=role))
        with pytest.raises(SchemaError, match="permission denied for table retention"):
            app.worker(drain=True).run()
        app.close()
