"""Step 6d, what operators do to live work: pause and resume, cancel, change, retry now; from Python and from SQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import InvalidOption, JobNotFound, PgQueue, Task, db
from pgqueue.enqueue import NewJob, Options
from pgqueue.maintenance import rescue
from tests.helpers import eventually, job_in, run, worker_row
from tests.life.callers import KINDS, caller, done
from tests.life.workbench import Ears, ended, everything

Look = psycopg.Connection[Any]
HOUR = timedelta(hours=1)
NOW = datetime.now(UTC).replace(microsecond=0) + HOUR


def enqueue(app: PgQueue, task: str = "test.task", **options: Any) -> int:
    return app.enqueue_alone(NewJob(task, "{}", Options(**options))).id


def claim(app: PgQueue, connection: Look, **options: Any) -> list[int]:
    worker = worker_row(app, connection, tasks=["test.task"])
    claims = run(connection, db.claim(app.statements, worker, ["test.task"], None, 100, **options))
    return [one.id for one in claims]


# -- pause and resume --------------------------------------------------------------------------------------------------


def by_python(app: PgQueue, connection: Look) -> dict[str, Callable[..., Any]]:
    return {
        "pause": app.queues.pause,
        "resume": app.queues.resume,
        "pause_task": app.tasks.pause,
        "resume_task": app.tasks.resume,
    }


def by_sql(app: PgQueue, connection: Look) -> dict[str, Callable[..., Any]]:
    def call(name: str) -> Callable[..., Any]:
        def act(what: str, until: Any = None, by: str | None = None) -> Any:
            until = connection.execute("select now() + %s", [until]).fetchone()[0] if until else None
            words = "%s" if name.startswith("resume") else "%s, %s, %s"
            return connection.execute(f"select pgqueue.{name}({words})", [what, until, by][: words.count("%s")])

        return act

    return {name: call(name) for name in ("pause", "resume", "pause_task", "resume_task")}


@pytest.fixture(params=[by_python, by_sql], ids=["python", "sql"])
def hands(request: Any, app: PgQueue, connection: Look) -> dict[str, Callable[..., Any]]:
    return request.param(app, connection)  # type: ignore[no-any-return]


def test_no_claim_takes_a_job_of_a_paused_queue_and_after_the_resume_it_does(
    app: PgQueue, connection: Look, hands: dict[str, Callable[..., Any]]
) -> None:
    hands["pause"]("email", by="ann")  # no job of it has ever been seen
    held, free = enqueue(app, queue="email"), enqueue(app)
    (email,) = [queue for queue in app.queues.list() if queue.name == "email"]
    assert (email.paused, email.by, email.until, email.queued) == (True, "ann", None, 1)
    since = email.since
    hands["pause"]("email", by="bob")  # again: the later word counts, and it has been paused all along
    (email,) = [queue for queue in app.queues.list() if queue.name == "email"]
    assert (email.by, email.since) == ("bob", since)
    assert claim(app, connection) == [free]
    hands["resume"]("email")
    hands["resume"]("email")
    hands["resume"]("never.seen")
    assert claim(app, connection) == [held]
    (email,) = [queue for queue in app.queues.list() if queue.name == "email"]
    assert (email.paused, email.since, email.by) == (False, None, None)


@pytest.mark.parametrize("kind", ["queue", "task"])
def test_a_pause_ends_by_itself_at_its_time_and_not_before(
    app: PgQueue, connection: Look, hands: dict[str, Callable[..., Any]], kind: str
) -> None:
    job = enqueue(app)
    worker = worker_row(app, connection, tasks=["test.task"])
    hands["pause" if kind == "queue" else "pause_task"]("default" if kind == "queue" else "test.task", HOUR)
    ((told, name, _, _, seconds),) = run(connection, db.orders(app.statements, worker))
    assert (told, name) == (kind, "default" if kind == "queue" else "test.task")
    assert 3500 < seconds <= 3600
    if kind == "queue":
        assert claim(app, connection, now=NOW - timedelta(minutes=1)) == []
        assert run(connection, db.next_due(app.statements, ["test.task"], None, NOW - timedelta(minutes=1))) is None
        assert run(connection, db.suspects(app.statements, ["test.task"], None, 9)) == 0
    table = "queues" if kind == "queue" else "paused_tasks"
    connection.execute(f"update pgqueue.{table} set paused_until = statement_timestamp()")
    assert run(connection, db.orders(app.statements, worker)) == []
    assert not [queue for queue in app.queues.list() if queue.paused]
    assert app.tasks.paused() == []
    assert claim(app, connection) == [job]


def test_a_paused_task_is_named_with_who_did_it_and_until_when(
    app: PgQueue, connection: Look, hands: dict[str, Callable[..., Any]], send: Task[..., Any]
) -> None:
    hands["pause_task"]("send", by="ann")
    hands["pause_task"]("another.apps", HOUR)
    first, second = app.tasks.paused()
    assert (first.name, first.by, second.name, second.by, second.until) == ("another.apps", None, "send", "ann", None)
    hands["resume_task"]("send")
    hands["resume_task"]("send")
    assert [one.name for one in app.tasks.paused()] == ["another.apps"]
    if hands["pause"] == app.queues.pause:
        app.tasks.pause(send)
        assert app.tasks.resume(send) is True
        assert app.tasks.resume(send) is False


def test_jobs_that_run_alone_wait_too_while_their_queue_or_their_task_is_paused(app: PgQueue, connection: Look) -> None:
    job = enqueue(app)
    connection.execute("update pgqueue.jobs set crashes = 1")

    def waiting() -> int:
        return run(connection, db.suspects(app.statements, ["test.task"], None, 9))

    def claimed() -> list[int]:
        worker = worker_row(app, connection, tasks=["test.task"])
        return [one.id for one in run(connection, db.claim_suspect(app.statements, worker, ["test.task"], None))]

    app.tasks.pause("test.task")
    assert waiting() == 0  # or processes would be started for it, again and again
    app.tasks.resume("test.task")
    app.queues.pause("default")
    assert (waiting(), claimed()) == (0, [])
    connection.execute("update pgqueue.queues set paused_until = statement_timestamp()")
    assert (waiting(), claimed()) == (1, [job])


def test_what_is_paused_does_not_keep_a_draining_worker(app: PgQueue, connection: Look, drain: Any) -> None:
    @app.task(name="test.task")
    def task() -> None: ...

    app.tasks.pause("test.task")
    enqueue(app, "test.other", queue="held")
    app.queues.pause("held")
    job = task.enqueue(connection).id
    drain()
    assert ended(connection, job).state == "queued"
    app.tasks.resume(task)
    drain()
    assert ended(connection, job).state == "completed"


# -- cancel ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["python", "sql"])
def cancel(request: Any, app: PgQueue, connection: Look) -> Callable[..., bool]:
    def by_sql(job: int, why: str = "cancelled by an operator") -> bool:
        return connection.execute("select pgqueue.cancel(%s, %s)", [job, why]).fetchone()[0]  # type: ignore[index]

    return app.jobs.cancel if request.param == "python" else by_sql


@pytest.mark.parametrize("state", ["queued", "blocked"])
def test_a_job_that_nobody_runs_is_cancelled(
    app: PgQueue, connection: Look, cancel: Callable[..., bool], state: str
) -> None:
    job = job_in(app, connection, state)
    assert cancel(job, "wrong file") is True
    row = ended(connection, job)
    assert (row.state, row.error, row.attempt) == ("cancelled", "wrong file", 0)
    assert cancel(job) is False


@pytest.mark.parametrize("state", ["completed", "cancelled", "expired", "dead"])
def test_a_job_that_has_ended_is_left_alone(
    app: PgQueue, connection: Look, cancel: Callable[..., bool], state: str
) -> None:
    job = job_in(app, connection, state)
    before = everything(connection)
    assert cancel(job) is False
    assert cancel(999_999) is False
    assert everything(connection) == before


SETTLES: dict[str, Callable[..., Any]] = {
    "retry": lambda *mine: db.retry(*mine, [0.0], ["late"], [None]),
    "dead letter": lambda *mine: db.dead_letter(*mine, ["attempts"], ["late"], [None]),
    "snooze": lambda *mine: db.give_back(*mine, [1.0]),
    "release": lambda *mine: db.give_back(*mine, [None]),
}


@pytest.mark.parametrize("verb", [*SETTLES, "ghosts", "bury", "sweep"])
def test_a_running_job_that_was_asked_to_end_comes_back_to_no_queue(
    app: PgQueue, connection: Look, cancel: Callable[..., bool], verb: str
) -> None:
    job = job_in(app, connection, "running")
    row = ended(connection, job)
    assert cancel(job, "enough") is True
    assert cancel(job, "again") is False
    mine = app.statements, row.worker_id, [job], [row.fence]
    assert run(connection, db.orders(app.statements, row.worker_id)) == [("cancel", "enough", job, row.fence, None)]
    if verb in SETTLES:
        assert run(connection, SETTLES[verb](*mine)) == set()
        assert run(connection, db.cancel_asked(app.statements, row.worker_id, [job], [row.fence + 1])) == []
        assert run(connection, db.cancel_asked(*mine)) == [(job, "test.task", "default", 1, 1, "enough")]
    elif verb == "ghosts":
        assert run(connection, db.release_ghosts(app.statements, row.worker_id, [])) == []
        assert run(connection, db.cancel_asked(*mine)) == [(job, "test.task", "default", 1, 1, "enough")]
    else:
        connection.execute("update pgqueue.workers set expires_at = statement_timestamp()")
        lost = rescue.sweep(app.statements)
        if verb == "bury":
            lost = rescue.bury(app.statements, [row.worker_id], "it died", crashed=True)
        assert [(one.id, one.dead, one.cancelled) for one in run(connection, lost)] == [(job, False, "enough")]
    row = ended(connection, job)
    assert (row.state, row.error, row.attempt, row.crashes) == ("cancelled", "enough", 1, 0)
    assert run(connection, db.orders(app.statements, row.worker_id)) == []
    assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)


def test_a_completion_that_comes_before_its_worker_was_told_stands(app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, "running")
    row = ended(connection, job)
    assert app.jobs.cancel(job) is True
    assert run(connection, db.complete(app.statements, row.worker_id, [job], [row.fence], ["7"])) == {job}
    assert ended(connection, job).state == "completed"


def test_filters_find_the_jobs_that_have_not_ended_and_all_that_are_given_must_hold(
    app: PgQueue, connection: Look
) -> None:
    def live() -> set[int]:
        return {row[0] for row in connection.execute("select id from pgqueue.jobs where cancelling is null")}

    dead, completed = job_in(app, connection, "dead"), job_in(app, connection, "completed")
    keyed = enqueue(app, unique_key="k", tags=["import", "a"])
    tagged = enqueue(app, "other.task", tags=["import"], queue="vip")
    plain, blocked = enqueue(app, "other.task"), job_in(app, connection, "blocked")
    running = job_in(app, connection, "running", "running.task")
    everything_live = {keyed, tagged, plain, blocked, running}
    assert live() == everything_live
    assert app.jobs.cancel(tag="import", dry_run=True) == [keyed, tagged]
    assert app.jobs.cancel(ids=[dead, completed, plain, plain], task="nothing") == []
    assert live() == everything_live
    assert app.jobs.cancel(tag="import", queue="vip") == [tagged]
    assert app.jobs.cancel(unique_key="k", why="enough") == [keyed]
    assert ended(connection, keyed).error == "enough"
    assert app.jobs.cancel(state="blocked") == [blocked]
    assert app.jobs.cancel(task="running.task") == [running]
    assert live() == {plain}
    other = enqueue(app)
    assert app.jobs.cancel(everything=True, limit=1) == [plain]
    assert app.jobs.cancel(everything=True) == [other]
    assert (ended(connection, dead).state, ended(connection, completed).state) == ("dead", "completed")


@pytest.mark.parametrize(
    ("which", "meant"),
    [
        ("unique_key = 'ship:8'", "keyed"),
        ("task = 'shop.ship'", "keyed tagged running"),
        ("'import-7' = any (tags)", "tagged other"),
    ],
)
def test_sql_cancels_by_key_task_or_tag_over_the_rows_of_jobs(
    app: PgQueue, connection: Look, which: str, meant: str
) -> None:
    jobs = {
        "running": job_in(app, connection, "running", "shop.ship"),
        "keyed": enqueue(app, "shop.ship", unique_key="ship:8"),
        "tagged": enqueue(app, "shop.ship", tags=["import-7", "b"]),
        "other": enqueue(app, "shop.pack", tags=["import-7"]),
        "plain": enqueue(app, "shop.pack"),
    }
    call = f"select pgqueue.cancel(id, 'enough') from (select id from pgqueue.jobs where {which} order by id) as job"
    assert connection.execute(call.encode()).fetchall() == [(True,)] * len(meant.split())
    ended_ = "select id from pgqueue.finished_jobs union select id from pgqueue.jobs where cancelling = 'enough'"
    found = {row[0] for row in connection.execute(ended_)}
    assert found == {jobs[name] for name in meant.split()}
    assert connection.execute(call.encode()).fetchall() == [(False,)] * ("running" in meant)


# -- change and retry now ----------------------------------------------------------------------------------------------


def test_a_queued_job_gets_another_priority_and_another_time_and_keeps_everything_else(
    app: PgQueue, connection: Look
) -> None:
    job, other = enqueue(app, delay=60, tags=["a"]), enqueue(app)
    before = ended(connection, job)._asdict()
    assert app.jobs.change(job, priority=50) is True
    assert ended(connection, job)._asdict() == before | {"priority": 50}
    assert app.jobs.change(job, run_at=NOW) is True
    assert ended(connection, job)._asdict() == before | {"priority": 50, "run_at": NOW}
    assert connection.execute("select pgqueue.change(%s, -3)", [job]).fetchone() == (True,)
    assert connection.execute("select pgqueue.change(%s, run_at => %s)", [job, NOW + HOUR]).fetchone() == (True,)
    assert ended(connection, job)._asdict() == before | {"priority": -3, "run_at": NOW + HOUR}
    assert app.jobs.change(job, delay=0) is True
    assert app.jobs.change(other, priority=-4) is True
    assert claim(app, connection) == [job, other]


@pytest.mark.parametrize("state", ["running", "blocked", "completed", "cancelled", "expired", "dead"])
def test_only_a_queued_job_is_changed(app: PgQueue, connection: Look, state: str) -> None:
    job = job_in(app, connection, state)
    before = everything(connection)
    assert app.jobs.change(job, priority=1) is False
    assert connection.execute("select pgqueue.change(%s, 1), pgqueue.retry_now(%s)", [job, job]).fetchone() == (
        False,
        False,
    )
    assert everything(connection) == before


def test_a_job_that_would_have_expired_by_then_is_not_changed(app: PgQueue, connection: Look) -> None:
    job = enqueue(app, expires_in=60)
    before = everything(connection)
    assert app.jobs.change(job, delay=61) is False
    assert app.jobs.change(job, run_at=NOW, priority=1) is False
    assert connection.execute("select pgqueue.change(%s, run_at => %s)", [job, NOW]).fetchone() == (False,)
    assert everything(connection) == before
    assert app.jobs.change(job, delay=30) is True


def test_filters_find_the_queued_jobs_that_are_changed_or_made_due_and_no_others(
    app: PgQueue, connection: Look
) -> None:
    late = [enqueue(app, delay=3600, tags=["a"], priority=n) for n in range(3)]
    late.append(enqueue(app, delay=3600, queue="email"))
    others = enqueue(app, task="test.other", delay=3600), enqueue(app)
    running = job_in(app, connection, "running")
    connection.execute("update pgqueue.jobs set tags = '{a}' where id = %s", [running])
    assert app.jobs.change(tag="a", priority=9) == late[:3]
    assert app.jobs.change(tag="a", priority=8, limit=1) == late[:1]
    assert app.jobs.retry_now(ids=late[2:], task="test.task", queue="email") == [late[3]]
    assert app.jobs.retry_now(task="test.task") == late[:3]  # those that are due have nothing to wait for
    assert app.jobs.retry_now(task="test.task") == []
    claimed = claim(app, connection)
    assert claimed[:3] == [late[1], late[2], late[0]]
    assert sorted(claimed[3:]) == sorted([late[3], others[1]])
    assert ended(connection, others[0]).state == "queued"


def test_sql_makes_a_job_due_now_once_and_wakes_a_sleeper(app: PgQueue, connection: Look, ears: Ears) -> None:
    job = enqueue(app, delay=3600)
    ears.asleep("ann", "default")
    assert connection.execute("select pgqueue.retry_now(%s)", [job]).fetchone() == (True,)
    assert ears.heard() == ["ann"]
    assert connection.execute("select pgqueue.retry_now(%s)", [job]).fetchone() == (False,)
    assert claim(app, connection) == [job]


@pytest.mark.parametrize("call", ["app.jobs.change(job, delay=5)", "select pgqueue.change(%s, run_at => now())"])
def test_whoever_sleeps_looks_again_when_a_jobs_time_has_changed(
    app: PgQueue, connection: Look, ears: Ears, call: str
) -> None:
    job = enqueue(app, delay=3600)
    ears.asleep("ann", "default")
    if call.startswith("app"):
        app.jobs.change(job, delay=5)
    else:
        connection.execute(call.encode(), [job])
    assert ears.heard() == ["ann"]


# -- the caller's transaction ------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[PgQueue, tuple[int, int], Any], Any]] = {
    "pause": lambda app, jobs, on: app.queues.pause("email", connection=on),
    "resume": lambda app, jobs, on: app.queues.resume("held", connection=on),
    "pause task": lambda app, jobs, on: app.tasks.pause("test.task", connection=on),
    "resume task": lambda app, jobs, on: app.tasks.resume("held.task", connection=on),
    "cancel": lambda app, jobs, on: app.jobs.cancel(jobs[0], connection=on),
    "cancel some": lambda app, jobs, on: app.jobs.cancel(task="test.task", connection=on),
    "retry now": lambda app, jobs, on: app.jobs.retry_now(jobs[0], connection=on),
    "retry some now": lambda app, jobs, on: app.jobs.retry_now(task="test.task", connection=on),
    "change": lambda app, jobs, on: app.jobs.change(jobs[0], priority=7, connection=on),
    "change some": lambda app, jobs, on: app.jobs.change(task="test.task", priority=7, connection=on),
    "redrive": lambda app, jobs, on: app.dead.redrive(jobs[1], connection=on),
    "redrive some": lambda app, jobs, on: app.dead.redrive(task="test.task", connection=on),
    "purge": lambda app, jobs, on: app.dead.purge(jobs[1], connection=on),
}


@pytest.fixture
def stored(app: PgQueue, connection: Look) -> Callable[[], Any]:
    def look() -> Any:
        tables = ("queues", "paused_tasks")
        return everything(connection), [connection.execute(f"select * from pgqueue.{one}").fetchall() for one in tables]

    app.queues.pause("held")
    app.tasks.pause("held.task")
    return look


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_callers_transaction_it_is_done_when_that_commits_and_not_when_it_rolls_back(
    app: PgQueue, connection: Look, pgqueue_database: str, stored: Callable[[], Any], call: str, kind: str
) -> None:
    jobs = enqueue(app, delay=3600), job_in(app, connection, "dead")
    before, act = stored(), CALLS[call]

    async def operate() -> None:
        async with caller(kind, pgqueue_database) as one:
            await done(act(app, jobs, one.connection))
            await one.rollback()
            assert stored() == before
            await done(act(app, jobs, one.connection))
            assert stored() == before
            await one.commit()

    asyncio.run(operate())
    assert stored() != before


LOOKS: dict[str, Callable[[PgQueue, int, Any], Any]] = {
    "get": lambda app, job, on: app.jobs.get(job, connection=on),
    "list": lambda app, job, on: app.jobs.list(task="test.task", connection=on),
    "why": lambda app, job, on: app.jobs.why(job, connection=on),
    "dead": lambda app, job, on: app.dead.list(limit=5, connection=on),
    "queues": lambda app, job, on: app.queues.list(connection=on),
    "schedules": lambda app, job, on: app.schedules.list(connection=on),
    "schedule": lambda app, job, on: app.schedules.get("nightly", connection=on),
}


@pytest.mark.parametrize("call", LOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_callers_transaction_one_sees_what_it_has_done_and_nobody_else_does(
    app: PgQueue, connection: Look, pgqueue_database: str, call: str, kind: str
) -> None:
    job, dead, look = enqueue(app), job_in(app, connection, "dead"), LOOKS[call]
    app.schedules.add(name="nightly", task="test.task", cron="0 2 * * *")
    before = look(app, job, None)

    async def operate() -> None:
        async with caller(kind, pgqueue_database) as one:
            on = one.connection
            assert await done(look(app, job, on)) == before
            await done(app.jobs.change(job, priority=7, connection=on))
            await done(app.dead.redrive(dead, connection=on))
            await done(app.queues.pause("default", connection=on))
            await done(app.schedules.pause("nightly", connection=on))
            inside = await done(look(app, job, on))
            assert inside != before
            assert look(app, job, None) == before
            with pytest.raises(JobNotFound, match="there is no job 999999"):
                await done(app.jobs.get(999_999, connection=on))
            await one.commit()
            assert look(app, job, None) == inside

    asyncio.run(operate())


def test_workers_are_told_when_the_transaction_commits_and_only_of_what_concerns_them(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    job = job_in(app, connection, "running")
    mine = ended(connection, job).worker_id
    other = worker_row(app, connection, tasks=[])
    with psycopg.connect(pgqueue_database, autocommit=True) as ear:
        for worker in (mine, other):
            ear.execute(f"listen pgqueue_orders_{worker.hex}")
        ear.execute("listen the_end")

        def heard() -> list[str]:
            connection.execute("notify the_end")
            found = []
            for notice in ear.notifies(timeout=20):
                if notice.channel == "the_end":
                    break
                found.append("mine" if mine.hex in notice.channel else "other")
            return sorted(found)

        with psycopg.connect(pgqueue_database) as operator:
            app.jobs.cancel(job, connection=operator)
            assert heard() == []
        assert heard() == ["mine"]
        app.jobs.cancel(job)
        assert heard() == []  # nothing new
        app.queues.pause("q")
        assert heard() == ["mine", "other"]
        connection.execute("select pgqueue.resume('q'), pgqueue.resume('q')")
        assert heard() == ["mine", "other"]


# -- two operators at once ---------------------------------------------------------------------------------------------


def test_two_operators_at_once_make_one_of_each_thing_and_nothing_deadlocks(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    """Each of them does everything to the same jobs, in opposite orders: every job ends once, as one of them wanted."""
    jobs = [enqueue(app, delay=3600 * (n % 2)) for n in range(40)]
    done: list[list[tuple[str, int]]] = [[], []]

    def operate(who: int) -> None:
        mine = PgQueue(pgqueue_database)
        for place, job in enumerate(jobs[:: 1 - 2 * who]):
            for verb in ("change", "retry_now", "cancel", "pause", "resume")[:: 1 - 2 * (place % 2)]:
                if verb in ("pause", "resume"):
                    getattr(mine.queues, verb)("default")
                elif getattr(mine.jobs, verb)(job, **({"priority": who} if verb == "change" else {})):
                    done[who].append((verb, job))
        mine.close()

    async def both() -> None:
        await asyncio.gather(*(asyncio.to_thread(operate, who) for who in (0, 1)))

    asyncio.run(both())
    cancelled = sorted(job for verb, job in [*done[0], *done[1]] if verb == "cancel")
    assert cancelled == jobs
    assert {ended(connection, job).state for job in jobs} == {"cancelled"}
    assert claim(app, connection) == []


# -- bad values --------------------------------------------------------------------------------------------------------

BAD: list[tuple[Callable[[PgQueue], Any], str]] = [
    (lambda app: app.queues.pause(""), "queue must be 1 to 128 letters"),
    (lambda app: app.queues.pause(7), "queue must be text, not int"),  # type: ignore[call-overload]
    (lambda app: app.queues.resume("a b"), "queue must be 1 to 128 letters"),
    (lambda app: app.queues.pause("q", datetime(2030, 1, 1)), "until must have a time zone"),
    (lambda app: app.queues.pause("q", 60), "until must be a datetime with a time zone, or a timedelta"),  # type: ignore[call-overload]
    (lambda app: app.queues.pause("q", timedelta(0)), "until must be between 0.001 and"),
    (lambda app: app.queues.pause("q", by=" "), "by must be 1 to 512 characters"),
    (lambda app: app.tasks.pause(None), "task must be text, not NoneType"),  # type: ignore[call-overload]
    (lambda app: app.tasks.resume("a\0"), "task must be 1 to 128 letters"),
    (lambda app: app.jobs.cancel("7"), "a job's id must be a whole number, not str"),  # type: ignore[call-overload]
    (lambda app: app.jobs.cancel(True), "a job's id must be a whole number, not bool"),
    (lambda app: app.jobs.cancel(-1), "a job's id must be between 0 and"),
    (lambda app: app.jobs.cancel(2**63), "a job's id must be between 0 and"),
    (lambda app: app.jobs.cancel(7, ""), "why must be 1 to 512 characters"),
    (lambda app: app.jobs.cancel(), "say which jobs"),
    (lambda app: app.jobs.cancel(limit=5), "say which jobs"),
    (lambda app: app.jobs.cancel(task=None), "say which jobs"),  # type: ignore[call-overload]
    (lambda app: app.jobs.cancel(7, task="t"), "give either one job's id or filters"),  # type: ignore[call-overload]
    (lambda app: app.jobs.cancel(ids="7"), "ids must be a list of job ids, not str"),  # type: ignore[call-overload]
    (lambda app: app.jobs.cancel(ids=["7"]), "a job's id must be a whole number, not str"),  # type: ignore[list-item]
    (lambda app: app.jobs.cancel(state="dead"), "state must be one of queued, running, blocked, not 'dead'"),
    (lambda app: app.jobs.cancel(tag=""), "tag must be 1 to 512 characters"),
    (lambda app: app.jobs.cancel(tags=["x"]), "takes no filter 'tags'; it takes ids, task"),  # type: ignore[call-overload]
    (lambda app: app.jobs.cancel(everything=1, limit=0), "limit must be between 1 and"),  # type: ignore[arg-type]
    (lambda app: app.jobs.change(7), r"change\(\) needs a priority, a run_at or a delay"),
    (lambda app: app.jobs.change(7, priority=101), "priority must be between -100 and 100, not 101"),
    (lambda app: app.jobs.change(7, priority=1.0), "priority must be a whole number, not float"),  # type: ignore[call-overload]
    (lambda app: app.jobs.change(7, delay=-1), "delay must be between 0 and"),
    (lambda app: app.jobs.change(7, run_at=datetime(2030, 1, 1)), "run_at must have a time zone"),
    (lambda app: app.jobs.change(7, run_at=NOW, delay=0), "give either delay or run_at, not both"),
    (lambda app: app.jobs.change(7, priority=1, tag="a"), "give either one job's id or filters"),  # type: ignore[call-overload]
    (lambda app: app.jobs.change(priority=1), "say which jobs: ids, task"),
    (lambda app: app.jobs.change(priority=1, state="running"), r"state must be queued or left out: change\(\) is for"),
    (lambda app: app.jobs.retry_now(tags=["x"]), r"retry_now\(\) takes no filter 'tags'"),  # type: ignore[call-overload]
    (lambda app: app.jobs.retry_now(), "say which jobs: ids, task"),
    (lambda app: app.jobs.retry_now("7"), "a job's id must be a whole number, not str"),  # type: ignore[call-overload]
    (lambda app: app.jobs.get(2**70), "a job's id must be between 0 and"),
    (lambda app: app.jobs.get(-1), "a job's id must be between 0 and"),
    (lambda app: app.jobs.get(True), "a job's id must be a whole number, not bool"),
    (lambda app: app.jobs.get("7"), "a job's id must be a whole number, not str"),  # type: ignore[arg-type]
    (lambda app: app.jobs.list(before=2**70), "before must be between 0 and"),
    (lambda app: app.jobs.list(before=7.0), "before must be a whole number, not float"),  # type: ignore[arg-type]
    (lambda app: app.jobs.list(state="gone"), "state must be one of queued, running"),
    (lambda app: app.jobs.list(limit=0), "limit must be a whole number between 1 and 1,000"),
    (lambda app: app.dead.list(before=-1), "before must be between 0 and"),
    (lambda app: app.dead.redrive(2**70), "a job's id must be between 0 and"),
    (lambda app: app.dead.redrive("7"), "a job's id must be a whole number, not str"),  # type: ignore[arg-type]
    (lambda app: app.dead.redrive(ids=[True]), "a job's id must be a whole number, not bool"),
    (lambda app: app.dead.redrive(ids="7"), "ids must be a list of job ids, not str"),  # type: ignore[arg-type]
    (lambda app: app.dead.redrive(task="t", limit=2**70), "limit must be between 1 and"),
    (lambda app: app.dead.redrive(tasks="t"), "there is no filter 'tasks'; there are ids, task"),  # type: ignore[call-arg]
    (lambda app: app.dead.purge(2**70), "a job's id must be between 0 and"),
    (lambda app: app.dead.purge(), "say which dead jobs"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_value_is_refused_before_any_sql_with_one_line_that_names_it(
    call: Callable[[PgQueue], Any], message: str
) -> None:
    with pytest.raises(InvalidOption, match=message) as caught:
        call(PgQueue("postgresql://nobody@127.0.0.1:1/nowhere"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("pause('')", "queue must be 1 to 128 letters"),
        ("pause(null)", "queue must be 1 to 128 letters"),
        ("pause('q', now() - interval '1 s')", "until must lie in the future"),
        ("pause_task('t', 'infinity')", "until must lie in the future"),
        ("pause_task('a b')", "task must be 1 to 128 letters"),
        ("change(1)", r"change\(\) needs a priority or a run_at"),
        ("change(1, 101)", "priority must be between -100 and 100, not 101"),
        ("change(1, run_at => '-infinity')", "run_at must lie within the next ten years"),
        ("change(1, run_at => now() + interval '11 years')", "run_at must lie within the next ten years"),
    ],
)
def test_sql_refuses_it_too_with_a_hint(connection: Look, call: str, message: str) -> None:
    with pytest.raises(psycopg.DatabaseError, match=message) as caught:
        connection.execute(f"select pgqueue.{call}".encode())
    assert caught.value.sqlstate == "PQ001"
    assert caught.value.diag.message_hint


def test_what_was_done_is_said_in_the_log(app: PgQueue, connection: Look, logged: Callable[[str], Any]) -> None:
    job = enqueue(app, delay=60)
    app.queues.pause("email", by="ann")
    app.queues.resume("email")
    app.queues.resume("email")
    app.tasks.pause("t")
    app.tasks.resume("t")
    app.jobs.change(job, priority=1)
    app.jobs.retry_now(job)
    app.jobs.cancel(job)
    app.jobs.cancel(job)
    dead = [job_in(app, connection, "dead") for _ in range(2)]
    app.dead.redrive(dead[0], dry_run=True)
    app.dead.redrive(dead[0])
    app.dead.purge(dead[1])
    app.dead.purge(dead[1])
    said = [
        "jobs_redriven",
        "jobs_purged",
        "queue_paused",
        "queue_resumed",
        "task_paused",
        "task_resumed",
        "job_changed",
        "job_made_due",
    ]
    assert [len(logged(event)) for event in [*said, "jobs_cancelled"]] == [1] * 9
    assert logged("queue_paused")[0].getMessage() == "queue email: paused by ann"
    eventually(lambda: ended(connection, job).state == "cancelled")
