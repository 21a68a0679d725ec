"""An idle worker learns of a job by NOTIFY; and finds it by its poll when nobody notifies, or nobody hears."""

from __future__ import annotations

import threading
from datetime import timedelta

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from pgqueue.worker.wake import channel
from tests.helpers import eventually

NEVER = 3_000.0  # a poll interval that no test waits for
LOOKOUTS = "select count(*) from pgqueue.sleepers where queue like '+%' and until > clock_timestamp()"


@pytest.fixture
def task(app):
    @app.task(name="test.task")
    def nothing() -> None:
        """A job that is done as soon as it is started."""

    return nothing


@pytest.fixture
def notified(pgqueue_database, connection):
    """How many notifications were sent to the workers since it was asked for the first time."""
    heard: list[str] = []
    with psycopg.connect(pgqueue_database, autocommit=True) as listener:
        listener.add_notify_handler(lambda notify: heard.append(notify.channel))

        def count() -> int:
            for (worker_id,) in connection.execute("select id from pgqueue.workers").fetchall():
                listener.execute(SQL("listen {}").format(Identifier(channel(worker_id))))
            listener.execute("select 1")
            return len(heard)

        yield count


@pytest.fixture
def is_done(connection):
    def done(job: int) -> bool:
        row = connection.execute("select state from pgqueue.finished_jobs where id = %s", [job]).fetchone()
        return row == ("completed",)

    return done


def test_an_idle_worker_is_woken_by_an_enqueue(task, work, asleep, connection, is_done):
    work(poll_interval=NEVER)
    asleep()
    job = task.enqueue(connection).id
    eventually(lambda: is_done(job))

    asleep()  # and again, after it has worked
    job = task.enqueue(connection).id
    eventually(lambda: is_done(job))


@pytest.mark.parametrize("queues", [None, ["default"], ["other", "default"]])
def test_the_sql_function_and_a_batch_wake_it_too_whatever_queues_it_serves(
    task, work, asleep, connection, is_done, queues
):
    work(poll_interval=NEVER, queues=queues)
    asleep()
    (job,) = connection.execute("select pgqueue.enqueue('test.task')").fetchone()
    eventually(lambda: is_done(job))

    asleep()
    for job in task.enqueue_many(connection, [(), ()]):
        eventually(lambda job=job: is_done(job))


def test_a_job_nobody_was_notified_of_is_found_by_the_poll(task, work, asleep, connection, is_done):
    work(poll_interval=0.2)
    asleep()
    (job,) = connection.execute("insert into pgqueue.jobs (task) values ('test.task') returning id").fetchone()
    eventually(lambda: is_done(job))

    connection.execute("delete from pgqueue.sleepers")
    job = task.enqueue(connection).id
    eventually(lambda: is_done(job))


def test_a_worker_without_a_listener_still_polls(task, work, connection, is_done, monkeypatch):
    async def deaf(self, ask) -> None:
        """LISTEN through a pooler, say."""

    monkeypatch.setattr("pgqueue.worker.wake.Wake.listen", deaf)
    work(poll_interval=0.2)
    job = task.enqueue(connection).id
    eventually(lambda: is_done(job))


@pytest.mark.parametrize("when", ["before the worker starts", "while it sleeps"])
def test_a_delayed_job_starts_at_its_time_and_not_with_the_next_poll(task, work, asleep, connection, is_done, when):
    if when == "while it sleeps":
        work(poll_interval=NEVER)
        asleep()
    job = task.options(delay=0.6).enqueue(connection).id
    if when == "before the worker starts":
        work(poll_interval=NEVER)
    eventually(lambda: is_done(job))
    (waited,) = connection.execute("select started_at - run_at from pgqueue.finished_jobs").fetchone()
    assert waited >= timedelta(0)


def test_a_listener_whose_connection_is_cut_listens_again(task, work, asleep, connection, is_done):
    work(poll_interval=NEVER)
    asleep()
    listener = "select pid from pg_stat_activity where application_name = %s and datname = current_database()"
    before = connection.execute(listener, ["pgqueue listener"]).fetchall()
    connection.execute("select pg_terminate_backend(%s)", before[0])
    eventually(lambda: connection.execute(listener, ["pgqueue listener"]).fetchall() not in ([], before))
    asleep()
    job = task.enqueue(connection).id
    eventually(lambda: is_done(job))


def test_a_full_worker_lets_another_take_what_it_cannot(app, work, asleep, connection):
    """Two idle workers and two jobs: whoever is woken for both takes one, and wakes the other."""
    running: list[int] = []

    @app.task
    def wait_for_another(number: int) -> None:
        running.append(number)
        eventually(lambda: len(running) == 2)

    for _ in range(2):
        work(poll_interval=NEVER, concurrency=1)
    asleep(workers=2)
    wait_for_another.enqueue_many(connection, [(1,), (2,)])
    eventually(lambda: connection.execute("select count(*) from pgqueue.finished_jobs").fetchone() == (2,))


@pytest.mark.parametrize("queues", [None, ["other", "default"]])
def test_a_worker_on_the_lookout_takes_jobs_that_notify_nobody(
    task, work, asleep, connection, is_done, notified, monkeypatch, queues
):
    """Woken again and again it looks by itself: a steady stream must not serialise the application's commits."""
    monkeypatch.setattr("pgqueue.worker.loop._SOON", 1_000.0)
    monkeypatch.setattr("pgqueue.worker.loop._BELIEVED", 3_000.0)
    work(poll_interval=NEVER, queues=queues)
    asleep()
    for _ in range(2):  # as if in short order
        job = task.enqueue(connection).id
        eventually(lambda job=job: is_done(job))
    eventually(lambda: connection.execute(LOOKOUTS).fetchone()[0])
    before = notified()
    single = task.enqueue(connection).id
    many = task.enqueue_many(connection, [(), ()])
    mixed = task._home.enqueue_many(connection, [task.job(), task.options(priority=1).job()])
    (from_sql,) = connection.execute("select pgqueue.enqueue('test.task')").fetchone()
    for job in (single, *many, *mixed, from_sql):
        eventually(lambda job=job: is_done(job))
    assert notified() == before
    # What is due later still has to tell it when.
    task.options(delay=0.2).enqueue(connection)
    eventually(lambda: notified() == before + 1)


def test_a_lookout_lies_down_when_the_stream_ends_and_is_notified_again(
    task, work, asleep, connection, is_done, notified, monkeypatch
):
    monkeypatch.setattr("pgqueue.worker.loop._BELIEVED", 1_000.0)  # so it has to take its word back
    work(poll_interval=NEVER)
    asleep()
    for _ in range(200):
        task.enqueue(connection)
    last = task.enqueue(connection).id
    eventually(lambda: is_done(last))
    eventually(lambda: not connection.execute(LOOKOUTS).fetchone()[0])
    asleep()
    before = notified()
    job = task.enqueue(connection).id
    eventually(lambda: notified() == before + 1)
    eventually(lambda: is_done(job))


def test_a_lookout_that_takes_all_it_can_is_none_any_more(app, task, work, asleep, connection, is_done, monkeypatch):
    monkeypatch.setattr("pgqueue.worker.loop._SOON", 1_000.0)
    monkeypatch.setattr("pgqueue.worker.loop._BELIEVED", 3_000.0)
    running = "select count(*) from pgqueue.jobs where state = 'running'"
    sleepers = "select count(*) from pgqueue.sleepers where until > clock_timestamp()"
    go_on = threading.Event()

    @app.task(name="test.slow")
    def slow() -> None:
        assert go_on.wait(60)

    try:
        work(concurrency=2, poll_interval=NEVER)
        asleep()
        for _ in range(2):
            job = task.enqueue(connection).id
            eventually(lambda job=job: is_done(job))
        eventually(lambda: connection.execute(LOOKOUTS).fetchone()[0])
        slow.enqueue_many(connection, [(), ()])
        eventually(lambda: connection.execute(running).fetchone()[0] == 2)
        eventually(lambda: not connection.execute(sleepers).fetchone()[0])
        work(concurrency=1, poll_interval=NEVER)
        eventually(lambda: connection.execute(sleepers).fetchone()[0])
        slow.enqueue(connection)
        eventually(lambda: connection.execute(running).fetchone()[0] == 3)
    finally:
        go_on.set()
