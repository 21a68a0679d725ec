"""An idle worker learns of a job by NOTIFY; and finds it by its poll when nobody notifies, or nobody hears."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.helpers import eventually

NEVER = 3_000.0  # a poll interval that no test waits for


@pytest.fixture
def task(app):
    @app.task(name="test.task")
    def nothing() -> None:
        """A job that is done as soon as it is started."""

    return nothing


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
    async def deaf(self) -> None:
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
