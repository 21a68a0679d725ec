"""What happens to a job without an attempt of its own is told as well: it expired."""

from __future__ import annotations

from tests.helpers import eventually


def test_a_job_that_was_not_started_in_time_is_told_as_expired(app, connection, drain) -> None:
    told = []

    @app.task(name="test.late")
    def late() -> None: ...

    @app.on("expired")
    def hear(event) -> None:
        told.append((event.name, event.job.id, event.job.task, event.job.queue, event.job.state))

    job = late.options(queue="slow", delay=3600).delay()
    connection.execute("update pgqueue.jobs set expires_at = run_at - interval '2 hours'")
    keeper = late.options(delay=1).delay()  # a claim would take it at once; its retry keeps the worker at work
    connection.execute(
        "update pgqueue.jobs set fence = 1, run_at = now() + interval '0.5 s' where id = %s", [keeper.id]
    )
    drain(sweep_interval=0.05)
    eventually(lambda: told)
    assert told == [("expired", job.id, "test.late", "slow", "expired")]
