"""Two workers that see one tick come, or one and somebody who changes the schedule, through every order of their steps:
one job a tick, whoever is first, whoever rolls back; and none for a schedule that is paused, orphaned or gone.

A worker's steps are its look, its firing, and the end of that transaction: whatever the other does may come between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, Schedule, db
from pgqueue.drivers import perform_raw_async
from pgqueue.maintenance import tick
from tests.helpers import run
from tests.torture.permutations import Step, orders
from tests.torture.test_permutations import staged

BEGIN = datetime(2026, 5, 1, 12, tzinfo=UTC)
TICK = BEGIN + timedelta(minutes=1)
Session = psycopg.AsyncConnection[Any]


def version(app: PgQueue, **schedule: Any) -> PgQueue:
    """An app with the task, and this schedule of it; or with none."""
    made = PgQueue(app.conninfo)
    made.task(name="t", schedules=[Schedule(name="s", **schedule)] if schedule else [])(lambda n=0: None)
    return made


def deploy(app: PgQueue) -> Any:
    rows = [row for task in app.tasks.values() for row in task.scheduled()]
    return tick.declare(app.statements, rows, ["t"], TICK)


Verb = Callable[[PgQueue], Any]
VERBS: dict[str, Verb] = {
    "pause": lambda app: db.pause_schedules(app.statements, ["s"], paused=True, now=TICK),
    "orphan": lambda app: deploy(version(app)),
    "remove": lambda app: db.remove_schedules(app.statements, ["s"]),
    "other args": lambda app: deploy(version(app, every=60, overlap="skip", args=[1])),
    "run now": lambda app: db.run_now(app.statements, "s"),
}


def firing(app: PgQueue, end: str) -> list[Step]:
    """A worker's steps. The statements are what it sends; the moments between them are ours."""
    steps: Generator[Any, Any, Any] = tick.look(app.statements, ["t"], TICK)
    sent: list[Any] = []

    async def answer(session: Session, call: Any) -> list[Any]:
        return await (await session.execute(call.text.encode(), call.params)).fetchall()

    async def look(session: Session) -> None:
        rows = await answer(session, next(steps))
        try:
            sent.append(steps.send(rows))
        except StopIteration:
            pass  # there was nothing due

    async def fire(session: Session) -> None:
        await session.execute("begin")
        while sent:
            rows = await answer(session, sent.pop())
            try:
                sent.append(steps.send(rows))
            except StopIteration:
                pass

    async def finish(session: Session) -> None:
        await session.execute(end.encode())

    return [look, fire, finish]


def changing(app: PgQueue, verb: Verb) -> list[Step]:
    async def act(session: Session) -> None:
        await session.execute("begin")
        await perform_raw_async(session, verb(app))

    async def commit(session: Session) -> None:
        await session.execute("commit")

    return [act, commit]


@pytest.mark.parametrize("other", ["fire", "fire and roll back", *VERBS])
def test_a_worker_that_fires_and_another_session_in_every_order(
    app: PgQueue, connection: psycopg.Connection[Any], pgqueue_database: str, other: str
) -> None:
    mine = version(app, every=60, overlap="skip")
    made = set()

    def scripts() -> list[list[Step]]:
        first = firing(mine, "commit")
        if other in VERBS:
            return [first, changing(mine, VERBS[other])]
        return [first, firing(mine, "rollback" if "roll" in other else "commit")]

    async def all_of_them() -> None:
        async with staged(pgqueue_database, 2) as stage:
            for order in orders([3, 2 if other in VERBS else 3]):
                connection.execute("truncate pgqueue.jobs, pgqueue.schedules")
                rows = [row for task in mine.tasks.values() for row in task.scheduled()]
                run(connection, tick.declare(mine.statements, rows, ["t"], BEGIN))
                await stage.play(order, scripts())
                for _ in range(3):  # and a worker that comes later
                    run(connection, tick.look(mine.statements, ["t"], TICK))
                jobs = connection.execute(
                    "select meta ->> 'tick', run_at, args from pgqueue.jobs order by id"
                ).fetchall()
                ticks = [run_at for said, run_at, _ in jobs if said is not None]
                made.add(len(ticks))
                assert ticks in ([], [TICK]), order
                if other in ("fire", "fire and roll back", "other args"):
                    assert ticks == [TICK], order
                if other == "run now":  # a job that is live keeps the tick from making another
                    assert [said is not None for said, _, _ in jobs] in ([True, False], [False]), order
                (stats,) = mine.schedules.list() or (None,)
                if stats is not None and stats.status == "unattended":
                    assert stats.fired + stats.skipped == 1, order

    asyncio.run(all_of_them())
    assert made == ({0, 1} if other in ("pause", "orphan", "remove", "run now") else {1})
    mine.close()
