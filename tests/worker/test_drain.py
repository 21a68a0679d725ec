"""--drain: work until nothing is left that could run, and leave what is not for now or not for us."""

from __future__ import annotations

from pgqueue import RetryPolicy
from tests.crash import tasks
from tests.crash.processes import ended, row


def test_draining_an_empty_queue_ends_at_once(drain):
    drain()


def test_draining_waits_for_retries_and_leaves_what_is_scheduled_or_unknown(app, drain, connection):
    attempts: list[int] = []

    @app.task(retry=RetryPolicy(delay=0.3, jitter=0), max_attempts=3)
    def third_time_lucky() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise RuntimeError("not yet")

    @app.task
    def more() -> None:
        third_time_lucky.options(delay=3600).delay()
        third_time_lucky.delay()

    more.enqueue(connection)
    connection.execute("select pgqueue.enqueue('somebody.elses')")
    drain(concurrency=2)

    assert len(attempts) == 3
    left = connection.execute("select task, state, attempt, fence from pgqueue.jobs order by task").fetchall()
    assert left == [("somebody.elses", "queued", 0, 0), (third_time_lucky.name, "queued", 0, 0)]


def test_draining_ends_when_a_retrying_job_is_dead(app, drain, connection):
    @app.task(retry=RetryPolicy(delay=0.05, jitter=0), max_attempts=2)
    def hopeless() -> None:
        raise RuntimeError("no")

    job = hopeless.enqueue(connection).id
    drain()
    assert row(connection, job)[:3] == ("dead", 2, 2)


def test_only_the_queues_asked_for_are_served(app, drain, connection):
    done: list[str] = []

    @app.task
    def note(name: str) -> None:
        done.append(name)

    for queue in ("a", "b", "c"):
        note.options(queue=queue).enqueue(connection, queue)
    drain(queues=["c", "a"])
    assert sorted(done) == ["a", "c"]
    assert connection.execute("select queue from pgqueue.jobs").fetchall() == [("b",)]


def test_the_processes_of_a_worker_share_the_work_and_every_flag_has_its_variable(start, ledger, connection):
    """Two jobs that wait for each other, in two processes with one slot each."""
    jobs = [tasks.meet.enqueue(connection, "ada", "bob").id, tasks.meet.enqueue(connection, "bob", "ada").id]
    worker = start(drain=True, processes=2, concurrency=None, env={"PGQUEUE_CONCURRENCY": "1"})
    pids = {ledger.wait_for("started", job).pid for job in jobs}
    assert len(pids) == 2
    assert worker.wait() == 0
    assert [ended(connection, job)[:4] for job in jobs] == [("completed", 1, 1, 0)] * 2
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)
    assert len(worker.log("drained")) == 2
