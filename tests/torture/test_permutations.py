"""Two and three sessions through every order of what is done to a job: whatever the order, its fence only rises, one
end is accepted, it is in one place, and nobody deadlocks.

Each session is a transaction, so in half of the orders one meets what another has done and not committed. Two jobs are
in each statement, named in opposite orders by every other session, so that who locks them as they come would deadlock.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pgqueue import PgQueue, db
from pgqueue.drivers import Steps, perform_raw_async
from pgqueue.enqueue import NewJob, Options
from pgqueue.maintenance import rescue
from tests.helpers import run
from tests.torture import history
from tests.torture.checker import Evidence, check, i1, i5, i6, i7, i8, i10, i11, i20, report
from tests.torture.ledger import Line
from tests.torture.permutations import Stage, Step, Stuck, orders

TASK = "test.task"
JUDGED = i1, i5, i6, i7, i8, i10, i11, i20
STATES = "queued", "running", "running, its lease over", "dead", "queued, too late to start"
ROW = {"host": "h", "pid": 1, "queues": None, "tasks": [TASK], "concurrency": 1, "version": "test"}


class World:
    """Two jobs in one state, two workers, of which the first holds them if one does, and what each was told."""

    def __init__(self, app: PgQueue, connection: psycopg.Connection[Any], state: str) -> None:
        self.sql = app.statements
        self.connection = connection
        self.after = history.last(connection)
        self.workers = {"first": uuid4(), "second": uuid4()}
        self.lines: list[Line] = []
        options = Options(expires_in=0.001) if state == "queued, too late to start" else Options()
        self.jobs = run(connection, _enqueue(self.sql, options))
        self.holds = {"first": dict.fromkeys(self.jobs, 0), "second": {}}  # job -> fence
        for worker in self.workers.values():
            run(connection, db.register(self.sql, worker, lease=3600.0, **ROW))
        if state.startswith(("running", "dead")):
            run(connection, _claim(self, "first"))
            assert self.holds["first"] == dict.fromkeys(self.jobs, 1)
        if state == "dead":
            run(connection, SETTLES["dead letter"](self, "first", False))
        if state == "running, its lease over":
            run(connection, db.heartbeat(self.sql, [self.workers["first"]], 0.0))

    def turned(self, reverse: bool) -> list[int]:
        return self.jobs[::-1] if reverse else self.jobs

    def tell(self, event: str, jobs: Iterable[int], who: str = "") -> None:
        worker = str(self.workers[who]) if who else ""
        for job in jobs:
            fence = self.holds[who][job] if who else 0
            self.lines.append(Line(len(self.lines), 1, worker, job, fence, 1, "", event, ""))

    def evidence(self) -> Evidence:
        return Evidence(lines=self.lines, changes=history.read(self.connection, self.after))

    def clear(self) -> None:
        """What would be claimed and swept in the next one goes; thousands of worlds come and go in one database."""
        self.connection.execute("delete from pgqueue.jobs where id = any(%s)", [self.jobs])
        self.connection.execute("delete from pgqueue.queues")
        self.connection.execute("delete from pgqueue.workers where id = any(%s)", [list(self.workers.values())])


def _enqueue(sql: Any, options: Options) -> Steps[list[int]]:
    ids = []
    for _ in range(2):
        row, _existing = yield from db.enqueue(sql, NewJob(TASK, "{}", options).columns())
        ids.append(row[0])
    return ids


# -- what is done to the jobs; `reverse`: they are named from behind ---------------------------------------------------


def _claim(world: World, who: str) -> Steps[None]:
    claims = yield from db.claim(world.sql, world.workers[who], [TASK], None, 10)
    world.holds[who] |= {claim.id: claim.fence for claim in claims}


Ending = Callable[[World, str, bool], Steps[None]]


def _settle(event: str, write: Callable[..., Steps[set[int]]], *each: Any) -> Ending:
    def verb(world: World, who: str, reverse: bool) -> Steps[None]:
        jobs = [job for job in world.turned(reverse) if job in world.holds[who]]
        fences = [world.holds[who][job] for job in jobs]
        done = yield from write(world.sql, world.workers[who], jobs, fences, *([one] * len(jobs) for one in each))
        world.tell(event, done, who)
        asked: set[int] = set()
        if write in (db.retry, db.dead_letter, db.give_back):  # as the Settler does with what they pass by
            left = [job for job in jobs if job not in done]
            fences = [world.holds[who][job] for job in left]
            ended = yield from db.cancel_asked(world.sql, world.workers[who], left, fences)
            asked = {one.id for one in ended}
            world.tell("told.cancelled", asked, who)
        world.tell("lost", set(jobs) - done - asked, who)

    return verb


SETTLES = {
    "complete": _settle("told.completed", db.complete, None),
    "retry": _settle("told.retried", db.retry, 0.0, "no", None),
    "dead letter": _settle("told.dead_lettered", db.dead_letter, "never", "no", None),
    "give back": _settle("told.released", db.give_back, None),
    "cancel running": _settle("told.cancelled", db.cancel_running, "no"),
}


def _redrive(world: World, reverse: bool) -> Steps[None]:
    done = yield from db.redrive(world.sql, world.turned(reverse))
    world.tell("redriven", [one.id for one in done])


Verb = Callable[[World, bool], Steps[Any]]
VERBS: dict[str, Verb] = {
    "claim": lambda world, _: _claim(world, "second"),
    "heartbeat": lambda world, _: db.heartbeat(world.sql, list(world.workers.values()), 3600.0),
    "rescue": lambda world, _: rescue.sweep(world.sql),
    "bury": lambda world, _: rescue.bury(world.sql, [world.workers["first"]], "it died", crashed=True),
    "ghosts": lambda world, _: db.release_ghosts(world.sql, world.workers["first"], []),
    "cancel": lambda world, reverse: db.cancel(world.sql, world.turned(reverse), "no"),
    "change": lambda world, reverse: db.change(world.sql, world.turned(reverse), priority=5, delay=0.0),
    "pause": lambda world, _: db.pause_queue(world.sql, "default"),
    "resume": lambda world, _: db.resume_queue(world.sql, "default"),
    "retry now": lambda world, reverse: db.retry_now(world.sql, world.turned(reverse)),
    "redrive": _redrive,
    "expire": lambda world, _: db.expire(world.sql, 10),
}
VERBS |= {name: lambda world, reverse, verb=verb: verb(world, "first", reverse) for name, verb in SETTLES.items()}
OF_QUEUES = {"pause", "resume"}  # which touch no job, and meet only what looks at queues
# A settle is one of them, by chance: what tells them apart is where they write, not what they lock.
FEW = "claim", "heartbeat", "rescue", "settle", "cancel", "change", "pause", "redrive", "expire"


def transaction(verb: str, world: World, reverse: bool) -> list[Step]:
    async def act(session: psycopg.AsyncConnection[Any]) -> None:
        await session.execute("begin")
        await perform_raw_async(session, VERBS[verb](world, reverse))

    async def commit(session: psycopg.AsyncConnection[Any]) -> None:
        await session.execute("commit")

    return [act, commit]


def alone(verb: Callable[[], Steps[Any]]) -> Step:
    """A statement that commits by itself, as a worker's do."""

    async def act(session: psycopg.AsyncConnection[Any]) -> None:
        await perform_raw_async(session, verb())

    return act


@asynccontextmanager
async def staged(url: str, sessions: int) -> AsyncIterator[Stage]:
    opened = [await psycopg.AsyncConnection.connect(url, autocommit=True) for _ in range(sessions + 1)]
    try:
        yield Stage(opened[:-1], opened[-1])
    finally:
        for one in opened:
            await one.close()


TOLD = {
    "told.completed": "complete",
    "told.retried": "retry",
    "told.dead_lettered": "dead",
    "told.cancelled": "cancel running",
}


def judge(world: World, what: object) -> None:
    evidence = world.evidence()
    violations = check(evidence, JUDGED)
    assert not violations, f"{what}\n{report(violations, evidence)}"
    assert sorted(evidence.edges) == world.jobs, what
    # And what only the holder may do was done by nobody else: each such transition is one that its worker was told of.
    told = sorted((line.job, line.fence, TOLD[line.event]) for line in world.lines if line.event in TOLD)
    made = [(job, edge.fence, edge.kind) for (job, _), edge in evidence.ends.items() if edge.kind in TOLD.values()]
    by_rescue = "dead", "cancel running"  # of which a supervisor is told, or a sweep
    assert sorted(one for one in made if one[2] not in by_rescue or one in told) == told, what


@pytest.fixture
def noted(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    history.install(connection)
    return connection


async def through(stage: Stage, app: PgQueue, noted: Any, state: str, verbs: Sequence[str], order: Any) -> None:
    world = World(app, noted, state)
    scripts = [transaction(verb, world, bool(place % 2)) for place, verb in enumerate(verbs)]
    try:
        await stage.play(order, scripts)
    except (psycopg.Error, Stuck) as error:
        raise AssertionError(f"{state}: {verbs} in the order {order}: {error}") from error
    judge(world, f"{state}: {verbs} in the order {order}")
    world.clear()


@pytest.mark.parametrize("state", STATES)
def test_two_sessions_in_every_order(app: PgQueue, noted: Any, pgqueue_database: str, state: str) -> None:
    # Where nobody holds the jobs, all settles are the same: without effect.
    tried = [verb for verb in VERBS if "running" in state or verb == "complete" or verb not in SETTLES]

    async def all_of_them() -> int:
        async with staged(pgqueue_database, 2) as stage:
            for verbs in itertools.combinations_with_replacement(tried, 2):
                if OF_QUEUES & {*verbs} and {*verbs} - OF_QUEUES - {"claim"}:
                    continue
                for order in orders([2, 2]):
                    await through(stage, app, noted, state, verbs, order)
            return stage.waits

    waits = asyncio.run(all_of_them())
    assert waits > 5  # or it was not tried what happens to who waits


@pytest.mark.parametrize("state", ["queued", "running, its lease over", "dead"])
def test_nobody_deadlocks_with_who_locks_the_jobs_one_after_the_other_by_id(
    app: PgQueue, noted: Any, pgqueue_database: str, state: str
) -> None:
    """A statement is not stepped through, but it can be met half done: with one lock taken, and another waited for."""

    def lock(world: World, place: int) -> Step:
        async def act(session: psycopg.AsyncConnection[Any]) -> None:
            await session.execute("begin")
            for table in ("jobs", "dead_jobs"):
                await session.execute(f"select from pgqueue.{table} where id = %s for update", [world.jobs[place]])

        return act

    async def all_of_them() -> int:
        async with staged(pgqueue_database, 2) as stage:
            for verb, order in itertools.product(VERBS.keys() - OF_QUEUES, orders([3, 2])):
                world = World(app, noted, state)
                act, commit = transaction(verb, world, reverse=True)
                try:
                    await stage.play(order, [[lock(world, 0), lock(world, 1), commit], [act, commit]])
                except (psycopg.Error, Stuck) as error:
                    raise AssertionError(f"{state}: {verb} in the order {order}: {error}") from error
                judge(world, f"{state}: {verb} in the order {order}")
                world.clear()
            return stage.waits

    assert asyncio.run(all_of_them()) > 5


def test_three_sessions(app: PgQueue, noted: Any, pgqueue_database: str) -> None:
    """Of the 37,800 orders of three of them in five states, another part each time."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)

    async def many_of_them() -> int:
        async with staged(pgqueue_database, 3) as stage:
            some = chance.sample(list(itertools.product(STATES, itertools.combinations(FEW, 3))), 180)
            for state, names in some:
                verbs = [chance.choice(list(SETTLES)) if name == "settle" else name for name in names]
                for order in chance.sample(list(orders([2, 2, 2])), 3):
                    await through(stage, app, noted, state, verbs, order)
            return stage.waits

    print(f"seed {seed}")
    assert asyncio.run(many_of_them()) > 5


@pytest.mark.parametrize("settle", SETTLES)
@pytest.mark.parametrize("end", ["its lease is over", "its supervisor sees it die"])
def test_a_worker_that_is_taken_for_dead_and_the_next_one(
    app: PgQueue, noted: Any, pgqueue_database: str, settle: str, end: str
) -> None:
    """Claim, heartbeat and settle of one; a sweep, or a burial; claim and settle of another: all 60 orders."""

    async def all_of_them() -> None:
        async with staged(pgqueue_database, 3) as stage:
            for order in orders([3, 1, 2]):
                world = World(app, noted, "queued")
                world.holds["first"].clear()
                await stage.play(order, scripts(world))
                for line in [one for one in world.lines if one.event == "lost"]:
                    world.lines.append(line._replace(event="told.claim_lost"))
                judge(world, order)
                world.clear()

    def scripts(world: World) -> list[list[Step]]:
        first = world.workers["first"]
        over = partial(db.heartbeat, world.sql, [first], 0.0)  # the last one it sends
        ending = SETTLES[settle]
        take = VERBS["rescue" if end == "its lease is over" else "bury"]
        return [
            [
                alone(partial(_claim, world, "first")),
                alone(over),
                alone(partial(ending, world, "first", True)),
            ],
            [alone(partial(take, world, False))],
            [alone(partial(_claim, world, "second")), alone(partial(SETTLES["complete"], world, "second", False))],
        ]

    asyncio.run(all_of_them())
