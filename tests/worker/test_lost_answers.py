"""The connection breaks after a commit and before its answer: what was done counts once, and nobody cries loss."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg
import pytest

from pgqueue import db
from pgqueue.events import Events
from pgqueue.job import DeadReason
from pgqueue.link import Link
from pgqueue.worker.claim import attempt
from pgqueue.worker.heartbeat import Heart
from pgqueue.worker.settle import (
    Settlement,
    Settler,
    ToCancelled,
    ToComplete,
    ToCrashed,
    ToDead,
    ToGiveBack,
    ToHinder,
    ToRetry,
)
from tests.crash.processes import ended, row
from tests.helpers import run, worker_row

# A settler by itself: there is no claimer to ring, and nothing more to wait for.
alone: dict[str, Any] = {
    "given_back": lambda claims: None,
    "written": lambda number: None,
    "busy": lambda: False,
    "awaited": lambda: False,
}


class Unlucky(Link):
    """Its first statement is committed, and the answer never arrives."""

    breaks = 1

    async def perform(self, steps: Any) -> Any:
        answer = await super().perform(steps)
        if self.breaks:
            self.breaks -= 1
            await self.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return answer


@pytest.mark.parametrize(
    ("verdict", "state", "attempts"),
    [
        (ToComplete("42"), "completed", 1),
        (ToRetry(60.0, "RuntimeError: no"), "queued", 1),
        (ToDead(DeadReason.ATTEMPTS, "RuntimeError: no"), "dead", 1),
        (ToCancelled("why not"), "cancelled", 1),
        (ToGiveBack(60.0), "queued", 0),
        (ToGiveBack(None), "queued", 0),
        (ToHinder(60.0, "no (no attempt used)", None, ToRetry(60.0, "no")), "queued", 0),
    ],
)
def test_a_settle_that_was_committed_unheard_counts_once(
    app, connection, pgqueue_database, logged, verdict, state, attempts
):
    told: list[str] = []

    @app.task
    def note() -> None:
        """Claimed by hand below."""

    for name in ("completed", "retried", "dead_lettered", "cancelled", "snoozed", "released", "claim_lost"):
        app.on(name)(lambda event: told.append(event.name))
    jobs = note.enqueue_many(connection, [(), ()])
    worker_id = worker_row(app, connection, [note.name])
    claims = run(connection, db.claim(app.statements, worker_id, [note.name], None, 10))

    async def settle(events: Events) -> None:
        link = Unlucky(pgqueue_database, "settle", random.random)
        settler = Settler(
            app.statements,
            link,
            worker_id,
            events,
            given_back=lambda claims: None,
            written=lambda number: None,
            busy=lambda: False,
            awaited=lambda: False,
        )
        writing = asyncio.create_task(settler.run())
        for claim in claims:
            settler.add(Settlement(attempt(claim, note, worker_id), verdict, 0.1))
        await settler.flushed()
        await events.finish(5)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await link.close()

    asyncio.run(settle(app.events))
    for job in jobs:
        assert row(connection, job)[:3] == (state, attempts, 1)
    assert not logged("claim_lost")
    assert len(told) == 2
    assert "claim_lost" not in told


@pytest.mark.parametrize("lost", ["the settle, unsent", "the settle's answer", "the cancellation's answer"])
@pytest.mark.parametrize(
    "verdict",
    [
        ToRetry(0.0, "RuntimeError: no"),
        ToDead(DeadReason.ATTEMPTS, "RuntimeError: no"),
        ToGiveBack(60.0),
        ToGiveBack(None),
        ToCrashed("killed"),
    ],
)
def test_a_job_that_was_asked_to_end_is_cancelled_whatever_is_lost_and_told_so_once(
    app, connection, pgqueue_database, logged, verdict, lost
):
    """Its worker has not heard of it: the settle passes it by, which must not be taken for one that was done before."""
    told: list[tuple[str, str | None]] = []

    @app.task
    def note() -> None:
        """Claimed by hand below."""

    for name in ("retried", "failed", "dead_lettered", "cancelled", "snoozed", "released", "rescued", "claim_lost"):
        app.on(name)(lambda event: told.append((event.name, event.error)))
    job = note.enqueue(connection).id
    worker_id = worker_row(app, connection, [note.name])
    (claim,) = run(connection, db.claim(app.statements, worker_id, [note.name], None, 1))
    assert app.jobs.cancel(job, "enough")

    class Unsent(Unlucky):
        async def perform(self, steps: Any) -> Any:
            if self.breaks:
                self.breaks -= 1
                raise psycopg.OperationalError("no route to host")
            return await super().perform(steps)

    class Later(Unlucky):
        calls = 0

        async def perform(self, steps: Any) -> Any:
            self.calls, self.breaks = self.calls + 1, int(self.calls == 1)
            return await super().perform(steps)

    async def settle() -> None:
        kind = {"the settle, unsent": Unsent, "the settle's answer": Unlucky, "the cancellation's answer": Later}[lost]
        link = kind(pgqueue_database, "settle", random.random)
        settler = Settler(app.statements, link, worker_id, app.events, **alone)
        writing = asyncio.create_task(settler.run())
        settler.add(Settlement(attempt(claim, note, worker_id), verdict, 0.1))
        await settler.flushed()
        await app.events.finish(5)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await link.close()

    asyncio.run(settle())
    assert row(connection, job).state == "cancelled"
    assert told == [("cancelled", "enough")]
    assert len(logged("job_cancelled")) == 1


@pytest.mark.parametrize(
    ("meanwhile", "told", "logs"),
    [
        ("nothing", ["completed"], []),
        ("the lease ended", [], ["settle_unknown"]),
        ("it was rescued", ["claim_lost"], ["claim_lost"]),
        ("it was rescued and has ended elsewhere", [], ["settle_unknown"]),
        ("it was rescued and died elsewhere", ["claim_lost"], ["claim_lost"]),
    ],
)
def test_the_end_of_a_job_that_is_not_kept_is_never_a_loss_that_was_none_nor_a_success_that_may_be_anothers(
    app, connection, pgqueue_database, logged, meanwhile, told, logs
):
    heard: list[str] = []

    @app.task(keep=0)
    def note() -> None:
        """Claimed by hand below."""

    for name in ("completed", "claim_lost"):
        app.on(name)(lambda event: heard.append(event.name))
    note.enqueue(connection)
    worker_id = worker_row(app, connection, [note.name])
    (claim,) = run(connection, db.claim(app.statements, worker_id, [note.name], None, 1))

    class Unluckier(Unlucky):
        """What happens meanwhile does so before the first statement (then it does nothing), or after."""

        async def perform(self, steps: Any) -> Any:
            if self.breaks and "rescued" in meanwhile:
                rescue()
            try:
                return await super().perform(steps)
            except psycopg.OperationalError:
                if meanwhile == "the lease ended":
                    run(connection, db.leave(app.statements, [worker_id]))
                raise

    def rescue() -> None:
        run(connection, db.leave(app.statements, [worker_id]))
        run(connection, db.rescue(app.statements, [worker_id], crashed=False, why="", max_crashes=3))
        if "elsewhere" in meanwhile:
            other = worker_row(app, connection, [note.name])
            (again,) = run(connection, db.claim(app.statements, other, [note.name], None, 1))
            mine = app.statements, other, [again.id], [again.fence]
            if "died" in meanwhile:
                run(connection, db.dead_letter(*mine, ["attempts"], ["no"], [None]))
            else:
                run(connection, db.complete(*mine, [None], kept=[False]))

    async def settle() -> None:
        link = Unluckier(pgqueue_database, "settle", random.random)
        settler = Settler(app.statements, link, worker_id, app.events, **alone)
        writing = asyncio.create_task(settler.run())
        settler.add(Settlement(attempt(claim, note, worker_id), ToComplete("42"), 0.1))
        await settler.flushed()
        await app.events.finish(5)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await link.close()

    asyncio.run(settle())
    assert heard == told
    assert [name for name in ("claim_lost", "settle_unknown") for _ in logged(name)] == logs
    assert connection.execute("select from pgqueue.finished_jobs").fetchall() == []


@pytest.mark.parametrize("afterwards", ["nothing", "completed elsewhere", "dead elsewhere", "cancelled", "redriven"])
@pytest.mark.parametrize("end", ["completed", "retried", "dead-lettered", "rescued"])
def test_what_became_of_a_job_later_is_not_taken_for_its_settle_nor_does_it_hide_it(app, connection, end, afterwards):
    """A rescue leaves the fence as it is, and so does the end of a job that nobody has claimed since."""

    @app.task
    def note() -> None:
        """Claimed by hand below."""

    sql, worker_id = app.statements, worker_row(app, connection, [note.name])
    job = note.enqueue(connection).id
    (claim,) = run(connection, db.claim(sql, worker_id, [note.name], None, 1))
    mine = sql, worker_id, [job], [claim.fence]
    match end:
        case "completed":
            run(connection, db.complete(*mine, [None]))
        case "retried":
            run(connection, db.retry(*mine, [0.0], ["no"], [None]))
        case "dead-lettered":
            run(connection, db.dead_letter(*mine, ["never"], ["no"], [None]))
        case "rescued":
            run(connection, db.leave(sql, [worker_id]))
            run(connection, db.rescue(sql, [worker_id], crashed=False, why="", max_crashes=3))
    if "elsewhere" in afterwards:
        other = worker_row(app, connection, [note.name])
        again = run(connection, db.claim(sql, other, [note.name], None, 1))
        theirs = sql, other, [one.id for one in again], [one.fence for one in again]
        if afterwards == "completed elsewhere":
            run(connection, db.complete(*theirs, [None] * len(again)))
        else:
            run(connection, db.dead_letter(*theirs, *([one] * len(again) for one in ("never", "no", None))))
    elif afterwards == "cancelled":
        run(connection, db.cancel(sql, [job], "no"))
    elif afterwards == "redriven":
        run(connection, db.redrive(sql, [job]))
    assert run(connection, db.settled(*mine)) == ({} if end == "rescued" else {job: True})
    if end != "rescued":  # with the row gone, and nobody to say that nothing was rescued, its traces must do
        run(connection, db.leave(sql, [worker_id]))
        traces = (end, afterwards) != ("dead-lettered", "redriven")
        assert run(connection, db.settled(*mine)) == ({job: True} if traces else {})
    else:
        assert run(connection, db.standing(sql, worker_id, job, claim.fence)) == "lost"


def test_a_worker_whose_registration_was_committed_unheard_works(app, work, connection, monkeypatch):
    perform, lost = Heart.perform, []

    def break_once(self: Heart, steps: Any) -> Any:
        answer = perform(self, steps)
        if self.is_alive() and not lost:  # not the check of the schema, which comes before the thread
            lost.append(True)
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return answer

    monkeypatch.setattr(Heart, "perform", break_once)

    @app.task
    def nothing() -> None:
        """Done as soon as it is started."""

    job = nothing.enqueue(connection).id
    work(lease=2)
    assert ended(connection, job).state == "completed"
    assert lost
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (1,)


@pytest.mark.parametrize("refusal", ["a result PostgreSQL cannot store", "a constraint of somebody else's"])
def test_an_end_that_postgresql_refuses_holds_up_no_other(app, connection, pgqueue_database, logged, refusal):
    @app.task(name="bad")
    def bad() -> None:
        """Claimed by hand below."""

    @app.task(name="good")
    def good() -> None:
        """Claimed by hand below."""

    if refusal.endswith("else's"):
        connection.execute("alter table pgqueue.finished_jobs add constraint picky check (task <> 'bad')")
    odd, *jobs = bad.enqueue(connection).id, *good.enqueue_many(connection, [(), ()])
    worker_id = worker_row(app, connection, ["bad", "good"])
    claims = run(connection, db.claim(app.statements, worker_id, ["bad", "good"], None, 10))

    async def settle() -> None:
        link = Link(pgqueue_database, "settle", random.random)
        settler = Settler(
            app.statements,
            link,
            worker_id,
            app.events,
            given_back=lambda claims: None,
            written=lambda number: None,
            busy=lambda: False,
            awaited=lambda: False,
        )
        writing = asyncio.create_task(settler.run())
        for claim in claims:
            result = '"\\u0000"' if claim.id == odd and refusal.startswith("a result") else "42"
            settler.add(Settlement(attempt(claim, app.tasks[claim.task], worker_id), ToComplete(result), 0.1))
        async with asyncio.timeout(20):
            await settler.flushed()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await link.close()

    asyncio.run(settle())
    assert [row(connection, job).state for job in jobs] == ["completed"] * 2
    assert [record.job_id for record in logged("settle_refused")] == [odd]
    if refusal.endswith("else's"):
        assert row(connection, odd).state == "running"
    else:
        (result,) = connection.execute("select result from pgqueue.finished_jobs where id = %s", [odd]).fetchone()
        assert result["$pgqueue"] == "result dropped"
