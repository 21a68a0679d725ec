"""Step 2, claim: the due jobs of the queues in turn, by priority, run_at and id; none twice, none early, none late."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pgqueue import Context, PgQueue, db
from pgqueue.db import Claim, Lane
from pgqueue.drivers.psycopg import run_raw
from pgqueue.drivers.steps import play
from pgqueue.enqueue import NewJob, Options
from pgqueue.link import Link
from pgqueue.worker.claim import Claimer
from pgqueue.worker.floor import Floors, Start
from tests.helpers import run, worker_row

Look = psycopg.Connection[Any]
NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)  # after everything that is due at once
EVER = 1e9  # seconds: a lease that no `now` of these tests outlives


@pytest.fixture
def worker(app: PgQueue, connection: Look) -> UUID:
    return worker_row(app, connection, tasks=["test.task"], lease=EVER)


def enqueue(app: PgQueue, task: str = "test.task", **options: Any) -> int:
    return app.enqueue_alone(NewJob(task, "{}", Options(**options))).id


@pytest.fixture(params=["from the bottom", "from a floor"], autouse=True)
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every promise holds for both statements that claim; the second gets the lanes that there are."""
    monkeypatch.setattr(f"{__name__}.from_a_floor", request.param == "from a floor")


from_a_floor = False
LANES = "select queue, priority from pgqueue.jobs group by 1, 2 order by 2, 1 desc"  # their order must not matter


def claim(
    app: PgQueue,
    connection: Look,
    worker: UUID,
    limit: int = 100,
    *,
    tasks: list[str] | None = None,
    queues: list[str] | None = None,
    after: str = "",
    now: datetime | None = NOW,
) -> list[Claim]:
    which = app.statements, worker, tasks or ["test.task"], queues, limit
    if not from_a_floor:
        return run(connection, db.claim(*which, after, now))
    lanes = [db.Lane(*lane, -math.inf, 0) for lane in connection.execute(LANES)]
    return run(connection, db.claim_above(*which, lanes, after, now))


def ids(claims: list[Claim]) -> list[int]:
    return [one.id for one in claims]


@pytest.mark.parametrize("limit", [100, 4, 1])
def test_within_a_queue_jobs_start_by_priority_then_run_at_then_id(
    limit: int, app: PgQueue, connection: Look, worker: UUID
) -> None:
    minute = timedelta(minutes=1)
    jobs = [
        (-priority, run_at, enqueue(app, priority=priority, run_at=run_at))
        for priority in (0, 100, -100, 7)
        for run_at in (NOW - minute, NOW - 3 * minute, NOW - 2 * minute, NOW - 2 * minute)
    ]
    claimed: list[int] = []
    while batch := ids(claim(app, connection, worker, limit)):
        claimed += batch
    assert claimed == [job_id for _, _, job_id in sorted(jobs)]


def test_a_scheduled_job_is_claimed_at_its_time_by_the_given_clock_and_not_a_moment_before(
    app: PgQueue, connection: Look, worker: UUID
) -> None:
    job_id = enqueue(app, run_at=NOW)
    assert claim(app, connection, worker, now=NOW - timedelta(microseconds=1)) == []
    assert claim(app, connection, worker, now=None) == []
    (claimed,) = claim(app, connection, worker, now=NOW)
    assert (claimed.id, claimed.run_at, claimed.started_at) == (job_id, NOW.timestamp(), NOW.timestamp())


def test_without_a_given_clock_the_databases_own_counts(app: PgQueue, connection: Look, worker: UUID) -> None:
    due, later = enqueue(app), enqueue(app, delay=3600)
    assert ids(claim(app, connection, worker, now=None)) == [due]
    connection.execute("update pgqueue.jobs set run_at = statement_timestamp() where id = %s", [later])
    assert ids(claim(app, connection, worker, now=None)) == [later]


def test_a_long_queue_does_not_starve_the_others(app: PgQueue, connection: Look, worker: UUID) -> None:
    for queue, count in (("a", 30), ("b", 3), ("c", 2)):
        for _ in range(count):
            enqueue(app, queue=queue, priority=50 if queue == "a" else 0)
    served, after = "", ""
    for _ in range(9):
        (claimed,) = claim(app, connection, worker, 1, after=after)
        after = claimed.queue
        served += after
    assert served == "abcabcaba"


def test_the_queue_after_the_last_one_served_comes_first_in_a_batch_too(
    app: PgQueue, connection: Look, worker: UUID
) -> None:
    for queue in "aabbcc":
        enqueue(app, queue=queue)
    batch = claim(app, connection, worker, 5, after="a")
    assert "".join(one.queue for one in batch) == "bbcca"


def test_claimers_at_the_same_time_take_different_jobs_up_to_their_limits_and_never_wait(
    app: PgQueue, connection: Look, worker: UUID, pgqueue_database: str
) -> None:
    jobs = [enqueue(app, queue=queue) for queue in "aaaabbbbcccc"]
    other, third = (worker_row(app, connection, tasks=["test.task"], lease=EVER) for _ in range(2))
    with psycopg.connect(pgqueue_database) as one, psycopg.connect(pgqueue_database) as two:
        for opened in (one, two, connection):
            opened.execute("set lock_timeout = '1ms'")  # any wait for a lock is an error
        first = ids(claim(app, one, worker, 5))
        second = ids(claim(app, two, other, 5))
        rest = ids(claim(app, connection, third, 5))
        assert [len(first), len(second), len(rest)] == [5, 5, 2]
        assert sorted(first + second + rest) == jobs
        two.commit()
        one.rollback()
    owners = "select worker_id, array_agg(id order by id) from pgqueue.jobs group by worker_id"
    assert dict(connection.execute(owners).fetchall()) == {None: sorted(first), other: sorted(second), third: rest}
    assert sorted(ids(claim(app, connection, third))) == sorted(first)


def test_a_job_locked_by_somebody_is_passed_by(
    app: PgQueue, connection: Look, worker: UUID, pgqueue_database: str
) -> None:
    locked, free = enqueue(app, priority=1), enqueue(app)
    connection.execute("set lock_timeout = '1ms'")
    with psycopg.connect(pgqueue_database) as somebody:
        somebody.execute("select from pgqueue.jobs where id = %s for update", [locked])
        assert ids(claim(app, connection, worker, 1)) == [free]
        assert claim(app, connection, worker, 1) == []
    assert ids(claim(app, connection, worker, 1)) == [locked]


def test_a_claimed_job_belongs_to_the_worker_and_everything_a_run_needs_comes_back(
    app: PgQueue, connection: Look, worker: UUID
) -> None:
    job = app.enqueue_alone(NewJob("test.task", '{"a": [1]}', Options(timeout=3, tags=["t"], meta={"m": 1})))
    (claimed,) = claim(app, connection, worker, now=None)
    assert (claimed.id, claimed.task, claimed.queue, claimed.attempt, claimed.max_attempts, claimed.fence) == (
        *(job.id, "test.task", "default"),
        *(1, 4, 1),
    )
    assert (json.loads(claimed.args), claimed.timeout, claimed.tags, claimed.meta) == ({"a": [1]}, 3, ["t"], '{"m": 1}')
    sql = "select state, worker_id, attempt, fence, extract(epoch from started_at)::float8 from pgqueue.jobs"
    assert connection.execute(sql).fetchall() == [("running", worker, 1, 1, claimed.started_at)]


def test_the_fence_rises_with_each_claim_even_when_the_attempt_is_given_back(
    app: PgQueue, connection: Look, worker: UUID
) -> None:
    job_id = enqueue(app)
    seen = []
    for back in (db.give_back, db.give_back, db.retry, db.give_back, None):
        (claimed,) = claim(app, connection, worker)
        seen.append((claimed.fence, claimed.attempt))
        if back is db.give_back:
            run(connection, db.give_back(app.statements, worker, [job_id], [claimed.fence], [None]))
        elif back is db.retry:
            run(connection, db.retry(app.statements, worker, [job_id], [claimed.fence], [0.0], ["no"], [None], NOW))
    assert seen == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]


def test_unknown_tasks_stay_queued_for_those_who_know_them(app: PgQueue, connection: Look, worker: UUID) -> None:
    unknown = [enqueue(app, "new.task", priority=100) for _ in range(3)]
    known = enqueue(app)
    assert ids(claim(app, connection, worker)) == [known]
    states = "select id, state, attempt from pgqueue.jobs where task = 'new.task' order by id"
    assert connection.execute(states).fetchall() == [(job_id, "queued", 0) for job_id in unknown]
    assert ids(claim(app, connection, worker, tasks=["new.task"])) == unknown


def test_a_worker_that_serves_some_queues_leaves_the_others_alone(app: PgQueue, connection: Look, worker: UUID) -> None:
    jobs = {queue: enqueue(app, queue=queue) for queue in ("a", "b", "c", "ab")}
    assert ids(claim(app, connection, worker, queues=["c", "b", "empty"])) == [jobs["b"], jobs["c"]]
    assert ids(claim(app, connection, worker, queues=["none of them"])) == []
    assert ids(claim(app, connection, worker)) == [jobs["a"], jobs["ab"]]


def test_a_paused_queue_starts_nothing_until_it_is_resumed(app: PgQueue, connection: Look, worker: UUID) -> None:
    paused, running = enqueue(app, queue="paused", priority=100), enqueue(app, queue="running")
    connection.execute("insert into pgqueue.queues (name, paused) values ('paused', true), ('running', false)")
    assert ids(claim(app, connection, worker)) == [running]
    assert ids(claim(app, connection, worker, queues=["paused"])) == []
    connection.execute("update pgqueue.queues set paused = false")
    assert ids(claim(app, connection, worker)) == [paused]


def test_a_job_that_has_expired_is_never_started_late(app: PgQueue, connection: Look, worker: UUID) -> None:
    job_id = enqueue(app, run_at=NOW, expires_in=10)
    assert claim(app, connection, worker, now=NOW + timedelta(seconds=10)) == []
    assert claim(app, connection, worker, now=NOW + timedelta(days=1)) == []
    assert ids(claim(app, connection, worker, now=NOW + timedelta(seconds=9.999))) == [job_id]


def test_a_worker_without_a_row_or_with_a_lapsed_lease_claims_nothing(app: PgQueue, connection: Look) -> None:
    job_id = enqueue(app)
    assert claim(app, connection, uuid4()) == []
    worker = uuid4()
    row = {"host": "h", "pid": 1, "queues": None, "tasks": [], "concurrency": 1, "version": "test"}
    run(connection, db.register(app.statements, worker, lease=10, now=NOW, **row))
    assert claim(app, connection, worker, now=NOW + timedelta(seconds=10)) == []
    assert run(connection, db.heartbeat(app.statements, [worker], 10, now=NOW + timedelta(seconds=5))) == {worker}
    assert ids(claim(app, connection, worker, now=NOW + timedelta(seconds=10))) == [job_id]


def test_next_due_is_the_time_until_the_earliest_job_this_worker_could_take(app: PgQueue, connection: Look) -> None:
    def next_due(queues: list[str] | None = None) -> float | None:
        return run(connection, db.next_due(app.statements, ["test.task"], queues, NOW))

    def at(seconds: float, **options: Any) -> int:
        return enqueue(app, run_at=NOW + timedelta(seconds=seconds), **options)

    assert next_due() is None
    at(-1)  # due for a while, and no claim took it: the poll is soon enough
    at(1, task="unknown.task")
    assert next_due() is None
    at(60, priority=7)
    at(90)
    assert next_due() == 60
    at(30, queue="other", priority=-7)
    at(20, queue="paused")
    connection.execute("insert into pgqueue.queues (name, paused) values ('paused', true)")
    assert next_due() == 30
    assert next_due(["default", "paused"]) == 60
    assert next_due(["paused"]) is None


def test_a_job_that_came_due_between_the_claim_and_the_question_is_not_left_to_the_poll(
    app: PgQueue, connection: Look, worker: UUID
) -> None:
    job_id = enqueue(app, run_at=NOW)
    assert claim(app, connection, worker, now=NOW - timedelta(milliseconds=1)) == []
    asked = run(connection, db.next_due(app.statements, ["test.task"], None, NOW + timedelta(milliseconds=1)))
    assert asked == pytest.approx(-0.001)
    assert ids(claim(app, connection, worker, now=NOW + timedelta(milliseconds=2))) == [job_id]


BAD_ROWS = {
    "arguments that do not fit": ("args", '{"n": "text"}'),
    "an argument too many": ("args", '{"n": 1, "m": 2}'),
    "an argument too few": ("args", "{}"),
    "too many positional arguments": ("args", "[1, 2]"),
    "nested 1,500 deep": ("args", '{"n": ' + "[" * 1500 + "]" * 1500 + "}"),
    "a number of 5,000 digits": ("args", '{"n": 1e5000}'),
    "100 numbers of 131,000 digits": ("args", '{"n": [' + ",".join(["1e131071"] * 100) + "]}"),
    "nested 10,000 deep": ("args", '{"n": ' + "[" * 10_000 + "]" * 10_000 + "}"),
    "no policy": ("retry", "[1]"),
    "a policy nested 10,000 deep": ("retry", "[" * 10_000 + "]" * 10_000),
    "a policy that cannot be": (
        "retry",
        '{"delay": -1, "factor": 1, "max_delay": 1, "jitter": 0, "on": [], "never": []}',
    ),
    "due before the year 1": ("run_at", "4713-01-02 BC"),
    "due before PostgreSQL's first day was over": ("run_at", "4714-11-24 BC"),
    "made at the end of time": ("created_at", "infinity"),
    "made before all time": ("created_at", "-infinity"),
    "claimed as often as can be counted": ("fence", 2**31 - 1),
    "tried as often as can be counted": ("attempt", 2**31 - 1),
    "made in the year 294276": ("created_at", "294276-01-01"),
}


def test_a_bad_row_is_dead_lettered_as_such_and_its_neighbours_run(
    app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    told: dict[str, list[int]] = {"started": [], "dead_lettered": []}
    for name in told:  # a handler gets the job as an object, dates and all
        app.on(name)(lambda event: told[event.name].append(event.job.id))

    @app.task(name="test.task")
    def task(n: int) -> int:
        return n

    good, bad = [], {}
    for n, (name, (column, value)) in enumerate(BAD_ROWS.items()):
        good.append(task.enqueue(connection, n).id)
        bad[task.enqueue(connection, n).id] = name
        connection.execute(f"update pgqueue.jobs set {column} = %s where id = %s", [value, max(bad)])
    good.append(task.enqueue(connection, 99).id)
    far = task.enqueue(connection, 99).id
    connection.execute("update pgqueue.jobs set run_at = '294276-01-01' where id = %s", [far])
    drain()
    completed = connection.execute("select id from pgqueue.finished_jobs where state = 'completed' order by id")
    assert [row[0] for row in completed] == good
    dead = connection.execute("select id, reason, attempt, error from pgqueue.dead_jobs order by id").fetchall()
    assert {bad[job_id]: (reason, attempt) for job_id, reason, attempt, _ in dead} == dict.fromkeys(
        BAD_ROWS, ("bad_row", 1)
    ) | {"tried as often as can be counted": ("bad_row", 2**31 - 1)}
    assert all(error.startswith("the stored ") and len(error) < 300 for *_, error in dead)
    assert sorted(told["dead_lettered"]) == sorted(bad)
    assert sorted(told["started"]) == sorted([*good, *bad])
    assert connection.execute("select id, state from pgqueue.jobs").fetchall() == [(far, "queued")]


ODD_ROWS = {
    "meta nested 10,000 deep": ("meta", "[" * 10_000 + "]" * 10_000),
    "13 MB of meta": ("meta", "[" + ",".join(["1e131071"] * 100) + "]"),
    "a tag that is none": ("tags", "{NULL,a}"),
    "tags in two dimensions": ("tags", "{{a,b},{c,d}}"),
    "started at the end of time": ("started_at", "infinity"),
    "to be started before the end of time": ("expires_at", "infinity"),
    "tried less than never": ("attempt", -(2**31)),
    "a timeout of longer than the world": ("timeout", 1e308),
}


def test_what_else_plain_sql_may_have_put_into_a_row_keeps_no_job_from_running(
    app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    @app.task(name="test.task")
    def task(ctx: Context, n: int) -> int:
        assert ctx.job.id
        return n

    for n, (column, value) in enumerate(ODD_ROWS.values()):
        job = task.enqueue(connection, n)
        connection.execute(f"update pgqueue.jobs set {column} = %s where id = %s", [value, job.id])
    late = task.enqueue(connection, 99)
    connection.execute("update pgqueue.jobs set expires_at = '-infinity' where id = %s", [late.id])
    drain()
    found = connection.execute("select state, result from pgqueue.finished_jobs order by id").fetchall()
    assert found == [("completed", n) for n in range(len(ODD_ROWS))] + [("expired", None)]


MORE_THAN_A_GIGABYTE = '{"n": [' + ",".join(["1e131071"] * 8_500) + "]}"  # as text; 85 KB as it is written


def test_json_of_which_the_server_can_make_no_text_costs_its_own_job_alone(
    app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    @app.task(name="test.task")
    def task(n: int) -> int:
        return n

    one, bad, suspect, other = (task.enqueue(connection, n).id for n in range(4))
    connection.execute("update pgqueue.jobs set args = %s where id = %s", [MORE_THAN_A_GIGABYTE, bad])
    connection.execute("update pgqueue.jobs set crashes = 1, meta = %s where id = %s", [MORE_THAN_A_GIGABYTE, suspect])
    drain(lease=120)  # which bounds a claim too, and the server works for seconds until it gives up
    completed = connection.execute("select id, result from pgqueue.finished_jobs order by id").fetchall()
    assert completed == [(one, 0), (other, 3)]
    dead = connection.execute("select id, reason, error from pgqueue.dead_jobs order by id").fetchall()
    why = "the stored JSON is too large to be read: more than the server can hold as text"
    assert dead == [(bad, "bad_row", why), (suspect, "bad_row", why)]


def test_what_cannot_be_printed_in_time_is_read_job_by_job_the_next_time(
    app: PgQueue, connection: Look, worker: UUID
) -> None:
    class Slow:
        """A link on which no claim that brings JSON along is answered."""

        async def perform(self, steps: Any) -> Any:
            def run(call: Any) -> Any:
                if call.params.get("bare") is False:
                    raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
                return run_raw(connection, call)

            return play(run, steps)

    @app.task(name="test.task")
    def task(n: int) -> int:
        return n

    jobs = [task.enqueue(connection, n).id for n in range(3)]
    claimer = Claimer(app.statements, Slow(), worker, app.tasks, None)  # type: ignore[arg-type]
    with pytest.raises(psycopg.errors.QueryCanceled):  # said aloud: it may be a lock, and pass
        asyncio.run(claimer.claim(10))
    attempts = asyncio.run(claimer.claim(10))
    assert [(made.claim.id, made.arguments, made.unreadable) for made in attempts] == [
        (job, {"n": n}, None) for n, job in enumerate(jobs)
    ]
    with pytest.raises(psycopg.errors.QueryCanceled):  # and tried in the ordinary way again
        asyncio.run(claimer.claim(10))


def test_a_job_that_was_given_back_is_claimed_again_from_the_floor(
    app: PgQueue, connection: Look, worker: UUID, pgqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next look lower down: here there is none."""
    monkeypatch.setattr(Floors, "start", lambda self: Start("floor", [Lane(*k, *v) for k, v in self._floors.items()]))
    first, second = enqueue(app), enqueue(app)
    tasks = {"test.task": app.task(name="test.task")(lambda: None)}

    async def work() -> None:
        link = Link(pgqueue_database, "claim", random.random)
        claimer = Claimer(app.statements, link, worker, tasks, None)
        claimer._floors.lower(run(connection, db.claim(app.statements, worker, ["test.task"], None, 1))[0])
        run(connection, db.give_back(app.statements, worker, [first], [1], [None]))
        (attempt,) = await claimer.claim(1)
        assert attempt.claim.id == first
        (above,) = await claimer.claim(1)
        assert above.claim.id == second
        run(connection, db.give_back(app.statements, worker, [first], [2], [None]))
        assert await claimer.claim(1) == []
        claimer.given_back([attempt.claim])
        (again,) = await claimer.claim(1)
        assert (again.claim.id, again.claim.fence) == (first, 3)
        await link.close()

    asyncio.run(work())
