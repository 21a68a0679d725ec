"""Schedules: one job a tick, by the server's clock, however many workers see it come, and whatever happens to them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import InvalidArguments, InvalidOption, InvalidTask, PgQueue, Schedule, ScheduleNotFound, ScheduleTaken
from pgqueue.maintenance import tick
from tests.helpers import eventually, job_in, run, worker_row
from tests.life.callers import KINDS, caller, done
from tests.life.workbench import working

BEGIN = datetime(2026, 5, 1, 12, tzinfo=UTC)
Connection = psycopg.Connection[Any]


def at(minutes: float) -> datetime:
    return BEGIN + timedelta(minutes=minutes)


def deploy(app: PgQueue, connection: Connection, now: datetime = BEGIN) -> None:
    """What a worker of this app does when it starts."""
    rows = [row for task in app.tasks.values() for row in task.scheduled()]
    run(connection, tick.declare(app.statements, rows, sorted(app.tasks), now))


def look(app: PgQueue, connection: Connection, now: datetime) -> float | None:
    """One worker looks until it has nothing to do; seconds until the next tick."""
    for _ in range(50):
        seconds = run(connection, tick.look(app.statements, sorted(app.tasks), now))
        if seconds != 0.0 and seconds != tick.LOST:
            return seconds
    raise AssertionError("it finds no end")


def ticks(connection: Connection) -> list[str]:
    """The ticks of all jobs that schedules made, in their order, as minutes since BEGIN."""
    rows = connection.execute(
        "select run_at, meta ->> 'tick' from pgqueue.all_jobs where meta ? 'tick' order by run_at, id"
    ).fetchall()
    for run_at, said in rows:
        assert datetime.fromisoformat(said) == run_at
    return [f"{(run_at - BEGIN).total_seconds() / 60:g}" for run_at, _ in rows]


@pytest.fixture
def tidy(app: PgQueue) -> Callable[..., Any]:
    """Declares a task with these options, and schedules."""

    def declare(name: str = "tidy", **options: Any) -> Any:
        @app.task(name=name, **options)
        def function(days: int = 1) -> int:
            return days

        return function

    return declare


# -- a tick becomes a job ------------------------------------------------------------------------------------------


def test_a_tick_becomes_one_job_with_the_options_of_its_task_due_at_the_tick(
    app: PgQueue, connection: Connection, tidy: Any
) -> None:
    tidy(
        schedules=[Schedule(cron="*/5 * * * *", args={"days": 7})],
        queue="slow", priority=3, max_attempts=2, expires_in=600, tags=["t"], meta={"of": "mine"},
    )  # fmt: skip
    deploy(app, connection)
    assert look(app, connection, BEGIN) == 300.0  # strictly after the deploy
    assert look(app, connection, at(4.99)) == pytest.approx(0.6)
    assert ticks(connection) == []
    assert look(app, connection, at(5.01)) == pytest.approx(299.4)
    (job,) = app.jobs.list()
    assert (job.task, job.queue, job.priority, job.max_attempts, job.tags) == ("tidy", "slow", 3, 2, ("t",))
    assert (job.args, job.run_at) == ({"days": 7}, at(5))
    assert job.meta == {"of": "mine", "schedule": "tidy", "tick": "2026-05-01T12:05:00.000000Z"}
    (expires,) = connection.execute("select expires_at from pgqueue.jobs").fetchone() or ()
    assert expires == at(15)
    (stats,) = app.schedules.list()
    assert (stats.next_tick, stats.last_tick, stats.last_job) == (at(10), at(5), job.id)
    assert (stats.fired, stats.skipped, stats.live, stats.last_state) == (1, 0, 1, "queued")


def test_several_schedules_of_a_task_fire_each_by_itself(app: PgQueue, connection: Connection, tidy: Any) -> None:
    tidy(schedules=[Schedule(every=120, name="two"), Schedule(every=timedelta(minutes=3), name="three", args=[9])])
    deploy(app, connection)
    for minute in range(1, 7):
        look(app, connection, at(minute))
    assert ticks(connection) == ["2", "3", "4", "6", "6"]
    assert {job.args.get("days") for job in app.jobs.list() if (job.meta or {})["schedule"] == "three"} == {9}


def test_a_worker_fires_at_the_tick_and_runs_the_job(app: PgQueue, connection: Connection, logged: Any) -> None:
    ran: list[datetime] = []

    @app.task(every=1, name="often")
    def often() -> None:
        ran.append(datetime.now(UTC))

    with working(app):
        eventually(lambda: len(ran) >= 3)
    assert len(logged("schedule_fired")) >= 3
    rows = connection.execute(
        "select extract(epoch from created_at - run_at)::float8, meta ->> 'tick' from pgqueue.all_jobs order by id"
    ).fetchall()
    assert max(Counter(said for _, said in rows).values()) == 1
    assert all(late >= 0 for late, _ in rows)
    # Not when it sweeps (5 s): each of them was there before the next one came.
    assert sum(late < 1.0 for late, _ in rows) >= len(rows) - 1


def test_a_sleeping_worker_is_woken_by_a_tick(app: PgQueue, connection: Connection, tidy: Any, ears: Any) -> None:
    ears.asleep("slow", "slow")
    ears.asleep("other", "other")
    tidy(every=60, queue="slow")
    deploy(app, connection)
    look(app, connection, at(1))
    assert ears.heard() == ["slow"]


# -- exactly one, whoever sees it come -----------------------------------------------------------------------------


def test_eight_workers_make_one_job_of_each_tick(
    app: PgQueue, connection: Connection, pgqueue_database: str, tidy: Any
) -> None:
    tidy(schedules=[Schedule(every=60, name="a"), Schedule(every=60, name="b", missed="all")])
    deploy(app, connection)
    begin = threading.Barrier(8)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with psycopg.connect(pgqueue_database, autocommit=True) as mine:
                for minute in range(1, 41):
                    begin.wait(20)
                    look(app, mine, at(minute))
        except BaseException as error:
            failed.append(error)
            begin.abort()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert ticks(connection) == [str(minute) for minute in range(1, 41) for _ in "ab"]
    assert {(stats.fired, stats.skipped) for stats in app.schedules.list()} == {(40, 0)}


def test_what_one_worker_saw_come_another_one_has_fired(app: PgQueue, connection: Connection, tidy: Any) -> None:
    """Each step of one between any two of another: the look of both came first."""
    tidy(every=60)
    deploy(app, connection)
    firsts, seconds = (tick.look(app.statements, ["tidy"], at(1)) for _ in range(2))
    rows = {}
    for steps in (firsts, seconds):
        rows[steps] = connection.execute(*_sent(next(steps))).fetchall()
    for steps in (firsts, seconds):
        call = steps.send(rows[steps])  # the firing
        with pytest.raises(StopIteration):
            steps.send(connection.execute(*_sent(call)).fetchall())
    assert ticks(connection) == ["1"]


def _sent(call: Any) -> tuple[Any, Any]:
    return call.text.encode(), call.params


def test_a_worker_waits_for_no_lock_on_a_schedule(
    app: PgQueue, connection: Connection, pgqueue_database: str, tidy: Any
) -> None:
    tidy(schedules=[Schedule(every=60, name="held"), Schedule(every=60, name="free")])
    deploy(app, connection)
    with psycopg.connect(pgqueue_database) as holder:
        holder.execute("select from pgqueue.schedules where name = 'held' for update")
        connection.execute("set lock_timeout = 1")
        assert run(connection, tick.look(app.statements, ["tidy"], at(1))) == 0.0  # it had the other one
        assert run(connection, tick.look(app.statements, ["tidy"], at(1))) == tick.LOST  # and will look again
        assert [(job.meta or {})["schedule"] for job in app.jobs.list()] == ["free"]
    look(app, connection, at(1))
    assert ticks(connection) == ["1", "1"]


def test_a_clock_that_jumps_back_repeats_no_tick(app: PgQueue, connection: Connection, tidy: Any) -> None:
    """The server's; those of workers nobody asks."""
    tidy(every=60)
    deploy(app, connection)
    for minute in (1, 2, -60, 1, 2, 3, -1):
        look(app, connection, at(minute))
    deploy(app, connection, at(-30))  # a worker that starts meanwhile
    app.schedules.pause("tidy")
    run(connection, _resumed(app, at(-30)))
    for minute in (-20, 1, 2, 3, 4):
        look(app, connection, at(minute))
    assert ticks(connection) == ["1", "2", "3", "4"]


def _resumed(app: PgQueue, now: datetime) -> Any:
    from pgqueue import db

    return db.pause_schedules(app.statements, ["tidy"], paused=False, now=now)


def test_the_clock_of_a_workers_machine_does_not_matter(
    app: PgQueue, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days off, standing still, or random: none of it is asked when something fires."""
    import time

    @app.task(every=1, name="often")
    def often() -> None: ...

    monkeypatch.setattr(time, "time", lambda: random.choice([0.0, 4e9]))
    for module in ("pgqueue.ticks", "pgqueue.schedules", "pgqueue.enqueue"):
        monkeypatch.setattr(f"{module}.datetime", _Broken)
    with working(app):
        eventually(lambda: connection.execute("select count(*) > 2 from pgqueue.finished_jobs").fetchone()[0])
    off = connection.execute(
        "select from pgqueue.all_jobs where run_at > created_at or created_at - run_at > interval '10 s'"
    ).fetchall()
    assert off == []


class _Broken(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        raise AssertionError("the worker's own clock was asked")


# -- missed, overlapping, paused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ({"missed": "skip"}, []),
        ({"missed": "latest"}, ["10"]),
        ({}, ["10"]),
        ({"missed": "all"}, [str(minute) for minute in range(1, 11)]),
        ({"missed": "all", "missed_limit": 3}, ["8", "9", "10"]),
    ],
)
def test_ticks_that_nobody_fired_in_time(
    app: PgQueue, connection: Connection, tidy: Any, missed: Any, expected: list[str]
) -> None:
    tidy(schedules=[Schedule(every=60, **missed)])
    deploy(app, connection)
    assert look(app, connection, at(10.99)) == pytest.approx(0.6)  # no worker for eleven minutes
    deploy(app, connection, at(10.99))  # what starts now changes nothing
    late = [] if missed.get("missed") != "skip" else ["10"]  # 59 s late is not missed
    assert ticks(connection) == expected + late
    (stats,) = app.schedules.list()
    assert (stats.fired, stats.skipped) == (len(expected + late), 10 - len(expected + late))
    look(app, connection, at(11))
    assert ticks(connection) == [*expected, *late, "11"]


def test_a_missed_tick_is_skipped_if_so_wanted_once_it_is_a_minute_late(
    app: PgQueue, connection: Connection, tidy: Any, logged: Any
) -> None:
    tidy(schedules=[Schedule(cron="0 * * * *", missed="skip")])
    deploy(app, connection)
    look(app, connection, at(61.01))
    assert ticks(connection) == []
    assert len(logged("schedule_skipped")) == 1
    look(app, connection, at(120.5))
    assert ticks(connection) == ["120"]


def test_a_tick_is_skipped_while_a_job_of_its_schedule_is_live_if_so_wanted(
    app: PgQueue, connection: Connection, tidy: Any, drain: Any, logged: Any
) -> None:
    tidy(schedules=[Schedule(every=60, overlap="skip", missed="all")])
    deploy(app, connection)
    look(app, connection, at(2.5))  # two ticks at once: one job, of the later one
    assert ticks(connection) == ["2"]
    look(app, connection, at(3))
    assert ticks(connection) == ["2"]
    assert "live" in logged("schedule_skipped")[-1].getMessage()
    app.jobs.cancel(app.jobs.list()[0].id)
    by_hand = app.schedules.run_now("tidy")
    look(app, connection, at(4))
    assert ticks(connection) == ["2"]
    assert app.jobs.cancel(by_hand.id)
    look(app, connection, at(5))
    assert ticks(connection) == ["2", "5"]
    (stats,) = app.schedules.list()
    assert (stats.fired, stats.skipped, stats.live) == (2, 3, 1)


def test_a_paused_schedule_does_not_pile_up_and_is_run_now_all_the_same(
    app: PgQueue, connection: Connection, tidy: Any
) -> None:
    tidy(schedules=[Schedule(every=60, missed="all")])
    deploy(app, connection)
    assert app.schedules.pause("tidy")
    assert not app.schedules.pause("tidy")
    assert app.schedules.list()[0].status == "paused"
    assert look(app, connection, at(5)) is None
    deploy(app, connection, at(5))  # a new deploy does not wake it
    job = app.schedules.run_now("tidy")
    assert (job.task, job.meta, app.jobs.get(job.id).args) == ("tidy", {"schedule": "tidy"}, {})
    assert run(connection, _resumed(app, at(5.5))) == {"tidy": True}
    assert not app.schedules.resume("tidy")
    look(app, connection, at(6))
    assert ticks(connection) == ["6"]


# -- code, and who changes it --------------------------------------------------------------------------------------


def other_deploy(app: PgQueue, **schedule: Any) -> PgQueue:
    """Another version of the same application."""
    other = PgQueue(app.conninfo)

    @other.task(name="tidy", **schedule)
    def tidy(days: int = 1) -> int:
        return days

    return other


def test_the_last_deploy_counts_is_told_of_and_doubles_no_tick(
    app: PgQueue, connection: Connection, tidy: Any, logged: Any
) -> None:
    tidy(cron="*/2 * * * *")
    new = other_deploy(app, cron="*/3 * * * *")
    deploy(app, connection)
    look(app, connection, at(2))
    deploy(new, connection, at(2.5))
    assert [record.getMessage() for record in logged("schedule_changed")] == [
        "schedule tidy of tidy changed: */3 * * * *, UTC, next at 2026-05-01T12:03:00Z"
    ]
    deploy(new, connection, at(2.6))  # the second worker of that deploy
    assert len(logged("schedule_changed")) == 1
    for minute in range(3, 13):  # workers of both are at work
        for one in (app, new):
            look(one, connection, at(minute))
    assert ticks(connection) == ["2", "3", "6", "9", "12"]
    deploy(app, connection, at(12))  # and back: 12 is a tick of both
    look(app, connection, at(14))
    assert ticks(connection) == ["2", "3", "6", "9", "12", "14"]


def test_a_worker_that_saw_a_tick_come_does_not_fire_it_by_an_expression_of_before(
    app: PgQueue, connection: Connection, tidy: Any
) -> None:
    tidy(cron="*/2 * * * *")
    new = other_deploy(app, schedules=[Schedule(cron="*/2 * * * *", args={"days": 9})])
    deploy(app, connection)
    steps = tick.look(app.statements, ["tidy"], at(2))
    call = steps.send(connection.execute(*_sent(next(steps))).fetchall())
    deploy(new, connection, at(2))  # between its look and its firing
    with pytest.raises(StopIteration):
        steps.send(connection.execute(*_sent(call)).fetchall())
    assert ticks(connection) == []
    look(app, connection, at(2))
    assert ticks(connection) == ["2"]
    assert app.jobs.list()[0].args == {"days": 9}


def test_a_deploy_with_other_rules_of_a_time_zone_works_out_anew_what_is_next(
    app: PgQueue, connection: Connection, tidy: Any, logged: Any
) -> None:
    tidy(cron="0 2 * * *", timezone="Europe/Paris")
    deploy(app, connection)
    connection.execute("update pgqueue.schedules set next_tick = next_tick + interval '1 h'")  # by the rules of before
    deploy(app, connection, at(1))
    assert app.schedules.get("tidy").next_tick == datetime(2026, 5, 2, tzinfo=UTC)
    assert not logged("schedule_changed")


def test_what_the_code_declares_no_more_is_an_orphan_fires_no_more_and_goes_in_a_week(
    app: PgQueue, connection: Connection, tidy: Any, logged: Any
) -> None:
    tidy(every=60)
    deploy(app, connection)
    app.schedules.add(name="by.hand", task="tidy", every=3600)
    new = other_deploy(app)
    deploy(new, connection, at(0.5))
    assert [(one.name, one.status, one.orphaned) for one in app.schedules.list()] == [
        ("by.hand", "unattended", False),  # what was added at run time is no code's to drop
        ("tidy", "orphaned", True),
    ]
    assert len(logged("schedule_orphaned")) == 1
    for one in (app, new):  # workers of before are still there
        look(one, connection, at(10))
    assert ticks(connection) == []
    run(connection, tick.forget(app.statements, at(7 * 24 * 60)))
    assert len(app.schedules.list()) == 2
    run(connection, tick.forget(app.statements, at(7 * 24 * 60 + 1)))
    assert [one.name for one in app.schedules.list()] == ["by.hand"]


def test_a_deploy_that_is_taken_back_takes_its_orphan_back_from_then_on(
    app: PgQueue, connection: Connection, tidy: Any
) -> None:
    tidy(schedules=[Schedule(every=60, missed="all")])
    deploy(app, connection)
    deploy(other_deploy(app), connection, at(0.5))
    deploy(app, connection, at(5.5))
    look(app, connection, at(6))
    assert ticks(connection) == ["6"]


def test_a_schedule_of_a_task_that_is_gone_fires_for_nobody_and_goes_in_the_end(
    app: PgQueue, connection: Connection, tidy: Any
) -> None:
    tidy(every=60)
    deploy(app, connection)
    stranger = PgQueue(app.conninfo)
    stranger.task(name="other")(lambda: None)
    worker = worker_row(app, connection, tasks=["other"])
    deploy(stranger, connection, at(1))
    look(stranger, connection, at(1))
    assert ticks(connection) == []
    (stats,) = app.schedules.list()
    assert (stats.status, stats.orphaned) == ("unattended", False)
    knows = worker_row(app, connection, tasks=["tidy"])
    assert app.schedules.list()[0].status == "active"
    run(connection, tick.forget(app.statements, at(8 * 24 * 60)))
    assert app.schedules.list()
    connection.execute("delete from pgqueue.workers where id = %s", [knows])
    run(connection, tick.forget(app.statements, at(8 * 24 * 60)))
    assert not app.schedules.list()
    assert worker


# -- at run time -----------------------------------------------------------------------------------------------------


def test_a_schedule_is_added_changed_and_removed_at_run_time(app: PgQueue, connection: Connection, tidy: Any) -> None:
    task = tidy(queue="slow")
    added = app.schedules.add(
        name="nightly", task=task, cron="0 2 * * *", timezone="Europe/Paris", args={"days": 3}, priority=5
    )
    (expected,) = app.schedules.preview("0 2 * * *", timezone="Europe/Paris", after=added.since, count=1)
    assert (added.next_tick, added.queue, added.timezone, added.declared) == (expected, "slow", "Europe/Paris", False)
    changed = app.schedules.add(name="nightly", task="unknown.task", every=30, args=[1])
    assert (changed.task, changed.cron, changed.every, changed.queue) == ("unknown.task", None, 30.0, "default")
    assert app.schedules.remove("nightly")
    assert not app.schedules.remove("nightly")
    assert app.schedules.list() == []
    for verb in (app.schedules.get, app.schedules.run_now, app.schedules.pause, app.schedules.resume):
        with pytest.raises(ScheduleNotFound, match="there is no schedule nightly"):
            verb("nightly")


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_in_the_callers_own_transaction(
    app: PgQueue, connection: Connection, pgqueue_database: str, kind: str
) -> None:
    """There when it commits, and nothing of it when it does not; on every kind of connection."""

    def rows() -> list[int]:
        return [
            connection.execute(f"select count(*) from pgqueue.{table}".encode()).fetchone()[0]  # type: ignore[index]
            for table in ("schedules", "jobs")
        ]

    async def steer(on: Any) -> None:
        schedules = app.schedules
        added = await done(
            schedules.add(connection=on, name="s", task="t", every=60, args={"n": 1}, tags=["x"], meta={"y": 1})
        )
        assert (added.name, added.status, added.next_tick > added.since) == ("s", "unattended", True)
        assert await done(schedules.pause("s", connection=on))
        assert await done(schedules.resume("s", connection=on))
        job = await done(schedules.run_now("s", connection=on))
        assert (job.task, job.tags, job.meta) == ("t", ("x",), {"y": 1, "schedule": "s"})
        with pytest.raises(ScheduleNotFound):
            await done(schedules.pause("s", "nobody", connection=on))

    async def work() -> None:
        async with caller(kind, pgqueue_database) as one:
            await steer(one.connection)
            assert rows() == [0, 0]
            await one.rollback()
            await steer(one.connection)
            await one.commit()
            assert rows() == [1, 1]
            assert await done(app.schedules.remove("s", connection=one.connection))
            await one.commit()
            assert rows() == [0, 1]

    asyncio.run(work())


def test_a_change_of_anything_but_the_time_loses_no_tick(app: PgQueue, connection: Connection, tidy: Any) -> None:
    tidy(every=60)
    deploy(app, connection)
    deploy(other_deploy(app, every=60, queue="elsewhere"), connection, at(1.5))  # the tick of 1 is not fired yet
    look(app, connection, at(1.6))
    assert ticks(connection) == ["1"]
    assert app.jobs.list()[0].queue == "elsewhere"


def test_one_name_belongs_to_the_code_or_to_run_time(
    app: PgQueue, connection: Connection, tidy: Any, logged: Any
) -> None:
    tidy(every=60)
    app.schedules.add(name="tidy", task="tidy", every=120)
    deploy(app, connection)
    assert len(logged("schedule_taken")) == 1
    assert app.schedules.get("tidy").every == 120
    app.schedules.remove("tidy")
    deploy(app, connection)
    with pytest.raises(ScheduleTaken, match="schedule tidy is declared in code: change it there"):
        app.schedules.add(name="tidy", task="tidy", every=120)
    assert app.schedules.get("tidy").every == 60


def test_a_row_that_nobody_can_read_says_why_and_stops_no_other(
    app: PgQueue, connection: Connection, tidy: Any, logged: Any
) -> None:
    tidy(every=60)
    deploy(app, connection)
    connection.execute(
        "insert into pgqueue.schedules (name, task, cron, every, timezone, expires_in, since) values "
        "('a.never', 'tidy', '0 0 31 2 *', null, 'UTC', null, %(t)s), "
        "('b.nowhere', 'tidy', '0 0 * * *', null, 'Mars/Base', null, %(t)s), "
        "('c.late', 'tidy', null, 60, 'UTC', 1e300, %(t)s)",
        {"t": BEGIN},
    )
    look(app, connection, at(1))
    look(app, connection, at(1))
    assert ticks(connection) == ["1"]
    problems = {one.name: (one.status, one.problem) for one in app.schedules.list()}
    assert problems["a.never"][1] == "cron '0 0 31 2 *' never fires"
    assert "timezone 'Mars/Base' is not known here" in problems["b.nowhere"][1]
    assert "out of range" in problems["c.late"][1]
    assert {status for status, _ in problems.values()} == {"invalid", "unattended"}
    assert len(logged("schedule_invalid")) == 3
    app.schedules.add(name="a.never", task="tidy", every=60)
    assert app.schedules.get("a.never").problem is None


# -- from SQL --------------------------------------------------------------------------------------------------------


def test_all_of_it_from_sql(app: PgQueue, connection: Connection, tidy: Any) -> None:
    tidy()
    connection.execute(
        "select pgqueue.add_schedule('nightly', 'tidy', ' 0  2 * * MON ', timezone => 'Europe/Paris', "
        "args => '{\"days\": 3}', queue => 'slow', missed => 'all', missed_limit => 2, overlap => 'skip')"
    )
    connection.execute("select pgqueue.add_schedule('often', 'tidy', every => interval '1 min 30 s')")
    look(app, connection, datetime.now(UTC))
    nightly, often = app.schedules.list()
    assert (nightly.cron, nightly.timezone, nightly.queue) == ("0 2 * * mon", "Europe/Paris", "slow")
    assert (nightly.missed, nightly.missed_limit, nightly.overlap) == ("all", 2, "skip")
    assert [nightly.next_tick] == app.schedules.preview(
        nightly.cron, timezone="Europe/Paris", after=nightly.since, count=1
    )
    assert often.every == 90.0
    for call, expected in (
        ("pause_schedule('often')", True),
        ("pause_schedule('often')", False),
        ("resume_schedule('often')", True),
        ("resume_schedule('nobody')", False),
        ("remove_schedule('often')", True),
        ("remove_schedule('often')", False),
    ):
        assert connection.execute(f"select pgqueue.{call}").fetchone() == (expected,)
    (job_id,) = connection.execute("select pgqueue.run_schedule('nightly')").fetchone() or ()
    job = app.jobs.get(job_id)
    assert (job.queue, job.args, job.meta) == ("slow", {"days": 3}, {"schedule": "nightly"})
    assert app.schedules.get("nightly").live == 1


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("add_schedule(null, 't', every => '1 h')", "name"),
        ("add_schedule('a b', 't', every => '1 h')", "name"),
        ("add_schedule('s', 't t', every => '1 h')", "task"),
        ("add_schedule('s', 't')", "either cron or every"),
        ("add_schedule('s', 't', '0 2 * * *', '1 h')", "either cron or every"),
        ("add_schedule('s', 't', '0 2 * *')", "five fields"),
        ("add_schedule('s', 't', '@daily')", "five fields"),
        ("add_schedule('s', 't', every => '0.5 s')", "every"),
        ("add_schedule('s', 't', every => '11 years')", "every"),
        ("add_schedule('s', 't', every => '-1 h')", "every"),
        ("add_schedule('s', 't', every => '1 h', timezone => 'Europe/Paris')", "every takes no timezone"),
        ("add_schedule('s', 't', '0 2 * * *', timezone => 'Mars/Base')", "timezone"),
        ("add_schedule('s', 't', every => '1 h', args => '3')", "args"),
        ("add_schedule('s', 't', every => '1 h', args => null)", "args"),
        ("add_schedule('s', 't', every => '1 h', queue => '')", "queue"),
        ("add_schedule('s', 't', every => '1 h', priority => 101)", "priority"),
        ("add_schedule('s', 't', every => '1 h', max_attempts => 0)", "max_attempts"),
        ("add_schedule('s', 't', every => '1 h', missed => 'some')", "missed"),
        ("add_schedule('s', 't', every => '1 h', missed_limit => 0)", "missed_limit"),
        ("add_schedule('s', 't', every => '1 h', overlap => 'no')", "overlap"),
        ("add_schedule('s', 't', every => '1 h', expires_in => '0 s')", "expires_in"),
        ("add_schedule('s', 't', every => '1 h', expires_in => '11 years')", "expires_in"),
        ("add_schedule('s', 't', every => '1 h', timeout => 0)", "timeout"),
        ("add_schedule('s', 't', every => '1 h', timeout => 'NaN')", "timeout"),
        ("add_schedule('s', 't', every => '1 h', tags => array['a', ' '])", "tags"),
        ("add_schedule('s', 't', every => '1 h', tags => array_fill('x'::text, array[33]))", "tags"),
        ("add_schedule('s', 't', every => '1 h', meta => '[]')", "meta"),
    ],
)
def test_sql_that_cannot_be_a_schedule_is_refused_with_a_hint(connection: Connection, call: str, field: str) -> None:
    with pytest.raises(psycopg.Error, match=field) as caught:
        connection.execute(f"select pgqueue.{call}".encode())
    assert caught.value.sqlstate == "PQ001"
    assert caught.value.diag.message_hint
    assert connection.execute("select count(*) from pgqueue.schedules").fetchone() == (0,)


def test_sql_says_what_a_schedules_jobs_are_like_as_python_does(app: PgQueue, connection: Connection) -> None:
    columns = "expires_at - run_at, timeout, tags, meta - 'schedule'"
    connection.execute(
        "select pgqueue.add_schedule('s', 't', every => '1 h', expires_in => '90 s', timeout => 2.5, "
        "tags => '{a,b}', meta => '{\"by\": \"ann\"}')"
    )
    app.schedules.add(name="p", task="t", every=3600, expires_in=90, timeout=2.5, tags=["a", "b"], meta={"by": "ann"})
    for name in ("s", "p"):
        job = app.schedules.run_now(name).id
        found = connection.execute(f"select {columns} from pgqueue.jobs where id = %s".encode(), [job]).fetchone()
        assert found == (timedelta(seconds=90), 2.5, ["a", "b"], {"by": "ann"})
    connection.execute("select pgqueue.add_schedule('s', 't', every => '1 h')")
    kept = "select expires_in, timeout, tags, meta from pgqueue.schedules where name = 's'"
    assert connection.execute(kept).fetchone() == (None, None, None, None)


def test_sql_does_not_change_what_code_declares_nor_run_what_there_is_not(
    app: PgQueue, connection: Connection, tidy: Any
) -> None:
    tidy(every=60)
    deploy(app, connection)
    for call in ("add_schedule('tidy', 'tidy', every => '1 h')", "run_schedule('nobody')"):
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(f"select pgqueue.{call}".encode())
        assert caught.value.sqlstate == "PQ004"
    assert app.schedules.get("tidy").every == 60


# -- refused before any SQL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"name": "a b"}, "name must be"),
        ({"task": "t t"}, "task must be"),
        ({"every": None}, "either cron"),
        ({"cron": "0 2 * * *"}, "either cron"),
        ({"missed": "never"}, "missed must be one of skip, latest, all"),
        ({"missed_limit": 0}, "missed_limit must be between 1 and 1000"),
        ({"overlap": True}, "overlap must be one of allow, skip"),
        ({"args": "x"}, "args must be a dict"),
        ({"args": {1}}, "args must be a dict"),
        ({"delay": 5}, "delay is no option of a schedule's jobs"),
        ({"unique_key": "k"}, "unique_key is no option"),
        ({"priority": 500}, "priority must be between"),
        ({"colour": "red"}, "no option 'colour'"),
        ({"paused": True}, "no option 'paused'"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused_before_any_sql(given: dict[str, Any], why: str) -> None:
    app = PgQueue("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(InvalidOption, match=why):
        app.schedules.add(**{"name": "s", "task": "t", "every": 60, **given})


def test_a_schedules_arguments_must_fit_its_task() -> None:
    app = PgQueue("postgresql://nobody@127.0.0.1:1/nothing")

    @app.task(name="fine")
    def fine(days: int) -> None: ...

    with pytest.raises(InvalidArguments, match="missing a required argument"):
        app.schedules.add(name="s", task=fine, every=60)

    @app.task(name="not", every=60)
    def not_fine(days: int) -> None: ...

    with pytest.raises(InvalidTask, match="schedule not: task not: missing a required argument: 'days'"):
        app.worker()


def test_the_jobs_of_a_schedule_are_not_unique_whoever_says_so(app: PgQueue, connection: Connection) -> None:
    nowhere = PgQueue("postgresql://nobody@127.0.0.1:1/nothing")

    @nowhere.task(name="once", unique=True, on_conflict="raise")
    def once() -> None: ...

    plain = nowhere.task(name="plain")(lambda: None)
    for task in (once, "once", plain.options(unique_key="k", on_conflict="raise"), once.options(unique_key="k")):
        with pytest.raises(InvalidOption, match=r"task (once|plain): a task with a schedule cannot be unique"):
            nowhere.schedules.add(name="s", task=task, every=60)

    app.tasks.update(nowhere.tasks)
    app.schedules.add(name="s", task="once", every=60, unique=False)
    app.schedules.add(name="t", task=once.options(unique=False), every=60)
    first, second = app.schedules.run_now("s"), app.schedules.run_now("s")
    assert first.id != second.id
    rows = connection.execute("select unique_key, queued_key from pgqueue.jobs").fetchall()
    assert rows == [(None, None)] * 2


def test_what_a_task_says_of_its_times_is_checked_where_it_is_declared() -> None:
    app = PgQueue("postgresql://nobody@127.0.0.1:1/nothing")
    app.task(name="first", every=60)(lambda: None)
    for options, why in (
        ({"cron": "0 0 31 2 *"}, "never fires"),
        ({"cron": "0 2 * * *", "timezone": "Mars/Base"}, "timezone 'Mars/Base'"),
        ({"timezone": "Europe/Paris"}, "either cron"),
        ({"every": 60, "schedules": [Schedule(every=60)]}, "either cron=, every= and timezone=, or schedules="),
        ({"schedules": [Schedule(every=60), Schedule(every=90)]}, "has a name for each"),
        ({"schedules": ["0 2 * * *"]}, "list of Schedule"),
        ({"schedules": [Schedule(every=60, name="first")]}, "two schedules are called first"),
    ):
        with pytest.raises(InvalidOption, match=why):
            app.task(name="second", **options)(lambda: None)
    assert "second" not in app.tasks


def test_preview_shows_the_next_ticks_and_asks_no_database() -> None:
    app = PgQueue("postgresql://nobody@127.0.0.1:1/nothing")
    after = datetime(2026, 3, 28, tzinfo=UTC)
    assert app.schedules.preview("30 2 * * *", timezone="Europe/Paris", after=after, count=3) == [
        datetime(2026, 3, 28, 1, 30, tzinfo=UTC),
        datetime(2026, 3, 29, 1, 0, tzinfo=UTC),
        datetime(2026, 3, 30, 0, 30, tzinfo=UTC),
    ]
    assert all(one > datetime.now(UTC) for one in app.schedules.preview("0 2 * * *"))
    with pytest.raises(InvalidOption, match="after must be a datetime with a time zone"):
        app.schedules.preview("0 2 * * *", after=datetime(2026, 3, 28))
    with pytest.raises(InvalidOption, match="count must be between 1 and 1000"):
        app.schedules.preview("0 2 * * *", count=0)


def test_a_schedule_shows_what_became_of_its_last_job(app: PgQueue, connection: Connection, tidy: Any) -> None:
    tidy(every=60)
    deploy(app, connection)
    for state in ("queued", "completed", "dead"):
        connection.execute("update pgqueue.schedules set last_job = %s", [job_in(app, connection, state)])
        assert app.schedules.get("tidy").last_state == state
