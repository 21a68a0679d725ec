"""What a worker is told beside its jobs: pauses hold, resumes wake, and a running job that is cancelled ends so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import Context, PgQueue, RetryPolicy, Snooze, steering
from pgqueue.worker.orders import Orders
from pgqueue.worker.wake import Wake
from tests.helpers import eventually
from tests.life.workbench import ended

Look = psycopg.Connection[Any]
NEVER = 3_000.0  # a poll interval that no test waits for


def state(connection: Look, job: int) -> str:
    return ended(connection, job).state  # type: ignore[no-any-return]


def clock(connection: Look) -> Any:
    return connection.execute("select clock_timestamp()").fetchone()[0]  # type: ignore[index]


# -- pause and resume --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["queue", "task"])
def test_the_ledger_shows_no_start_between_pause_and_resume_and_every_job_afterwards(
    app: PgQueue, connection: Look, work: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Two workers, jobs that end at once and are claimed ahead, three pauses in the midst of them."""
    starts: list[int] = []
    told: dict[Orders, frozenset[str]] = {}
    jobs = 1_200
    heard = Orders.heard

    def listen(self: Orders, orders: Any) -> bool:
        done = heard(self, orders)
        told[self] = self.queues | self.tasks
        return done

    monkeypatch.setattr(Orders, "heard", listen)

    @app.task(name="test.steered", queue="steered")
    async def steered(n: int) -> None:
        starts.append(n)
        await asyncio.sleep(0.005)

    @app.task(name="test.free")
    async def free() -> None: ...

    running = "select from pgqueue.jobs where state = 'running' and task = 'test.steered'"
    hands: Any = app.queues if kind == "queue" else app.tasks
    name = "steered" if kind == "queue" else "test.steered"
    steered.enqueue_many(connection, [(n,) for n in range(jobs)])
    for _ in range(2):
        work(concurrency=3, poll_interval=NEVER)
    for share in (1, 2, 3):
        eventually(lambda share=share: len(starts) >= share * jobs // 5)
        hands.pause(name)
        told.clear()
        paused = clock(connection)
        eventually(lambda: len(told) == 2 and all(name in one for one in told.values()))
        eventually(lambda: not connection.execute(running).fetchall())
        if kind == "queue":  # no claim that began after the commit took one
            taken = "select count(*) from pgqueue.finished_jobs where task = 'test.steered' and started_at > %s"
            assert connection.execute(taken, [paused]).fetchone() == (0,)
        before = len(starts)
        for _ in range(5):  # time goes by, and others are not held up
            job = free.enqueue(connection).id
            eventually(lambda job=job: state(connection, job) == "completed")
        assert len(starts) == before < jobs
        hands.resume(name)
    eventually(lambda: len(starts) >= jobs)
    assert sorted(starts) == list(range(jobs))


@pytest.mark.parametrize("kind", ["queue", "task"])
def test_who_sleeps_gets_up_at_a_resume_and_when_a_pause_is_over(
    app: PgQueue, connection: Look, work: Any, asleep: Any, kind: str
) -> None:
    @app.task(name="test.task")
    def task() -> None: ...

    hands: Any = app.queues if kind == "queue" else app.tasks
    name = "default" if kind == "queue" else "test.task"
    hands.pause(name)
    work(poll_interval=NEVER)
    asleep()
    job = task.enqueue(connection).id
    hands.resume(name)
    eventually(lambda: state(connection, job) == "completed")

    hands.pause(name, timedelta(seconds=0.5))
    table = "queues" if kind == "queue" else "paused_tasks"
    (until,) = connection.execute(f"select paused_until from pgqueue.{table}").fetchone()  # type: ignore[misc]
    job = task.enqueue(connection).id
    eventually(lambda: state(connection, job) == "completed")
    assert ended(connection, job).started_at >= until


def test_what_was_claimed_ahead_is_given_back_at_a_pause_without_an_attempt(
    app: PgQueue, connection: Look, work: Any, logged: Any
) -> None:
    began, hold = threading.Event(), threading.Event()

    @app.task(name="test.quick", queue="quick")
    async def quick(n: int) -> None:
        if n == 2_000:
            app.queues.pause("quick")  # the loop stands still meanwhile: what is claimed ahead is still there
            began.set()
            while not hold.is_set():
                await asyncio.sleep(0.01)

    quick.enqueue_many(connection, [(n,) for n in range(4_000)])
    try:
        work(concurrency=1)
        assert began.wait(30)
        held = "select count(*) from pgqueue.jobs where state = 'running'"
        eventually(lambda: connection.execute(held).fetchone() == (1,))
        left = "select count(*), max(attempt) from pgqueue.jobs where state = 'queued'"
        assert connection.execute(left).fetchone() == (1_999, 0)
    finally:
        hold.set()


def test_a_worker_that_hears_no_notification_obeys_within_seconds(
    app: PgQueue, connection: Look, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its listener is away for good: the connection that claims asks."""

    async def deaf(self: Wake, ask: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Wake, "listen", deaf)
    began, told = threading.Event(), threading.Event()

    @app.task(name="test.task")
    def task(ctx: Context) -> None:
        began.set()
        eventually(lambda: ctx.cancelled, timeout=30)
        told.set()

    other = app.task(name="test.other")(lambda: None)
    app.tasks.pause("test.other")
    job, held = task.enqueue(connection).id, other.enqueue(connection).id
    work(concurrency=1)
    assert began.wait(10)
    app.jobs.cancel(job)
    assert told.wait(30)
    eventually(lambda: state(connection, job) == "cancelled")
    app.tasks.resume("test.other")
    eventually(lambda: state(connection, held) == "completed")


# -- cancel ------------------------------------------------------------------------------------------------------------

Ending = Callable[[Context], Any]


def give_up(ctx: Context) -> None:
    raise ValueError("whatever comes of being told to end")


def ask_for_more(ctx: Context) -> None:
    raise Snooze(0)


ENDINGS: dict[str, Ending] = {"it returns": lambda ctx: 7, "it fails": give_up, "it snoozes": ask_for_more}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["async", "async, swallowing", "sync"])
def test_a_running_job_that_is_cancelled_ends_so_whatever_it_then_does(
    app: PgQueue, connection: Look, work: Any, logged: Any, kind: str, ending: str
) -> None:
    began, events = threading.Semaphore(0), list[Any]()
    options: dict[str, Any] = {"name": "test.task", "retry": RetryPolicy(delay=0)}

    @app.on("cancelled")
    def heard(event: Any) -> None:
        events.append((event.job.id, event.job.state, event.error))

    @app.on("completed")
    @app.on("failed")
    @app.on("snoozed")
    def not_heard(event: Any) -> None:
        events.append(event)

    if kind == "sync":

        @app.task(**options)
        def task(ctx: Context) -> Any:
            began.release()
            eventually(lambda: ctx.cancelled, timeout=30)
            return ENDINGS[ending](ctx)

    else:

        @app.task(**options)
        async def task(ctx: Context) -> Any:
            began.release()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if kind == "async":
                    raise
                return ENDINGS[ending](ctx)

    job = task.enqueue(connection).id
    work(poll_interval=NEVER)
    assert began.acquire(timeout=10)
    assert app.jobs.cancel(job, "wrong file") is True
    eventually(lambda: state(connection, job) == "cancelled")
    row = ended(connection, job)
    assert (row.error, row.result, row.attempt, row.fence, row.errors) == ("wrong file", None, 1, 1, None)
    eventually(lambda: events == [(job, "cancelled", "wrong file")])
    eventually(lambda: len(logged("job_cancelled")) == 1)
    assert not logged("claim_lost")
    assert not began.acquire(blocking=False)


def test_a_job_that_fails_before_its_worker_was_told_is_not_tried_again(
    app: PgQueue, connection: Look, work: Any, logged: Any
) -> None:
    """It holds the loop, so the worker hears nothing before the failure is settled."""
    starts: list[int] = []

    @app.task(name="test.task", retry=RetryPolicy(delay=0))
    async def task(ctx: Context) -> None:
        starts.append(ctx.job.attempt)
        assert app.jobs.cancel(ctx.job.id, "enough")
        raise ValueError("no")

    job = task.enqueue(connection).id
    work()
    eventually(lambda: state(connection, job) == "cancelled")
    eventually(lambda: logged("job_cancelled"))
    assert (starts, ended(connection, job).error) == ([1], "enough")
    assert not logged("claim_lost")
    assert not logged("job_retried")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_cancelled_job_leaves_no_effects_in_its_own_transaction(
    app: PgQueue, connection: Look, work: Any, kind: str
) -> None:
    connection.execute("create table effects (job_id bigint)")
    began = threading.Event()
    insert = "insert into effects values (%s)"

    if kind == "sync":

        @app.task(name="test.task")
        def task(ctx: Context) -> None:
            with ctx.transaction(driver=True) as on:
                on.execute(insert, [ctx.job.id])
                began.set()
                eventually(lambda: ctx.cancelled, timeout=30)

    else:

        @app.task(name="test.task")
        async def task(ctx: Context) -> None:
            async with ctx.transaction(driver=True) as on:
                await on.execute(insert, [ctx.job.id])
                began.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass

    job = task.enqueue(connection).id
    work()
    assert began.wait(10)
    assert app.jobs.cancel(job) is True
    eventually(lambda: state(connection, job) == "cancelled")
    assert connection.execute("select count(*) from effects").fetchone() == (0,)


def test_a_job_that_waits_for_its_slot_is_cancelled_without_a_start(app: PgQueue, connection: Look, work: Any) -> None:
    began, hold, starts = threading.Event(), threading.Event(), list[int]()

    @app.task(name="test.quick")
    async def quick(n: int) -> None:
        starts.append(n)
        if n == 2_000:
            waiting.extend(row[0] for row in connection.execute(ready, [n]))
            app.jobs.cancel(ids=waiting)
            began.set()
            while not hold.is_set():
                await asyncio.sleep(0.001)

    ready = "select id from pgqueue.jobs where state = 'running' and (args ->> 'n')::int > %s order by id limit 5"
    waiting: list[int] = []
    quick.enqueue_many(connection, [(n,) for n in range(4_000)])
    try:
        work(concurrency=1)
        assert began.wait(30)
        assert waiting
        eventually(lambda: {state(connection, job) for job in waiting} == {"cancelled"})
    finally:
        hold.set()
    eventually(lambda: connection.execute("select count(*) from pgqueue.jobs").fetchone() == (0,))
    assert len(starts) == len(set(starts)) == 4_000 - len(waiting)


def test_a_job_that_was_claimed_without_its_workers_knowing_is_cancelled_too(
    app: PgQueue, connection: Look, work: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.task(name="test.task")(lambda: None)
    told = []
    app.on("cancelled")(lambda event: told.append((event.job.id, event.job.task, event.job.queue, event.error)))
    app.queues.pause("held")
    loops, make = list[Any](), app.loop
    monkeypatch.setattr(app, "loop", lambda *args, **more: loops.append(make(*args, **more)) or loops[-1])
    work()
    (worker,) = eventually(lambda: connection.execute("select id from pgqueue.workers").fetchone())
    (job,) = connection.execute(  # type: ignore[misc]
        "insert into pgqueue.jobs (task, queue, state, worker_id, fence, attempt, cancelling)"
        " values ('test.task', 'held', 'running', %s, 1, 1, 'enough') returning id",
        [worker],
    ).fetchone()
    eventually(lambda: state(connection, job) == "cancelled")
    assert ended(connection, job).error == "enough"
    eventually(lambda: told == [(job, "test.task", "held", "enough")])
    assert [record.task for record in logged("job_cancelled")] == ["test.task"]
    assert loops[0].take_counts().cancelled == {("held", "test.task"): 1}


def test_a_cancelled_job_that_does_not_end_is_named_in_the_log(
    app: PgQueue, connection: Look, work: Any, logged: Any
) -> None:
    hold = threading.Event()

    @app.task(name="test.task")
    def deaf() -> None:
        assert hold.wait(60)

    job = deaf.enqueue(connection).id
    try:
        work()
        eventually(lambda: state(connection, job) == "running")
        app.jobs.cancel(job)
        eventually(lambda: logged("job_stuck"))
        assert "was asked to end, does not look at ctx.cancelled" in logged("job_stuck")[0].getMessage()
        assert state(connection, job) == "running"
    finally:
        hold.set()
    eventually(lambda: state(connection, job) == "cancelled")


def test_the_ledger_shows_no_start_of_a_cancelled_job_and_every_other_one_once(
    app: PgQueue, connection: Look, pgqueue_database: str, work: Any
) -> None:
    """Two workers run quick jobs that fail now and then, while two operators cancel two thirds of them. What nobody ran
    starts no more. What was claimed already may start that once; then it succeeds before its worker is told, or is
    cancelled, and is never tried again."""
    starts: dict[int, list[float]] = {}
    cancelled: dict[int, tuple[bool, float]] = {}

    @app.task(name="test.task", retry=RetryPolicy(delay=0), max_attempts=50)
    async def task(n: int, ctx: Context) -> None:
        starts.setdefault(ctx.job.id, []).append(time.monotonic())
        await asyncio.sleep(0.002)
        if ctx.job.attempt < 1 + n % 3:
            raise ValueError("again")

    jobs = task.enqueue_many(connection, [(n,) for n in range(900)])
    for _ in range(2):
        work(concurrency=5)

    def operate(who: int) -> None:
        mine = PgQueue(pgqueue_database)
        for job in (jobs if who else jobs[::-1])[::3]:
            for job_id, runs in mine.perform(steering.cancel(mine.statements, [job], "enough")).items():
                assert job_id not in cancelled  # one operator alone is told that it did it
                cancelled[job_id] = runs, time.monotonic()
        mine.close()

    threads = [threading.Thread(target=operate, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: connection.execute("select count(*) from pgqueue.jobs").fetchone() == (0,), timeout=30)
    states = dict(connection.execute("select id, state from pgqueue.all_jobs").fetchall())
    assert set(states) == set(jobs)
    for job in jobs:
        if job in cancelled:
            runs, at = cancelled[job]
            assert states[job] in (("cancelled", "completed") if runs else ("cancelled",))
            assert len([one for one in starts.get(job, []) if one > at]) <= runs
        else:
            assert states[job] == "completed"
    assert "cancelled" in states.values()
