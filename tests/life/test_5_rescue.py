"""Step 5, rescue: the jobs of a worker that is gone go back to their queues; by its liveness, never by their age."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pgqueue import PgQueue, db
from pgqueue.db import Claim, Rescued
from pgqueue.enqueue import NewJob, Options
from pgqueue.maintenance.rescue import bury, sweep
from pgqueue.settings import MAX_CRASHES
from tests.helpers import job_in, run, worker_row
from tests.life.workbench import Ears, ended, everything

Look = psycopg.Connection[Any]
NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
ROW = {"host": "h", "pid": 1, "queues": None, "tasks": [], "concurrency": 1, "version": "test"}


def claimed(app: PgQueue, connection: Look, count: int = 1, **options: Any) -> tuple[UUID, list[int]]:
    """A worker whose lease of 10 s began at NOW, and the jobs it runs."""
    jobs = [app.enqueue_alone(NewJob("test.task", "{}", Options(**options))).id for _ in range(count)]
    worker = uuid4()
    run(connection, db.register(app.statements, worker, lease=10, now=NOW, **ROW))
    assert [claim.id for claim in claim_again(app, connection, worker, count)] == jobs
    return worker, jobs


def claim_again(app: PgQueue, connection: Look, worker: UUID, limit: int = 100) -> list[Claim]:
    """As an idle worker without a supervisor does: what is due, and then the suspects."""
    claims = run(connection, db.claim(app.statements, worker, ["test.task"], None, limit, now=NOW))
    while suspect := run(connection, db.claim_suspect(app.statements, worker, ["test.task"], None, now=NOW)):
        claims += suspect
    return claims


def rescue(app: PgQueue, connection: Look, workers: list[UUID], *, crashed: bool = False) -> list[Rescued]:
    steps = db.rescue(app.statements, workers, crashed=crashed, why="killed by SIGKILL", max_crashes=MAX_CRASHES)
    return run(connection, steps)


def test_the_jobs_of_a_worker_whose_lease_has_ended_are_queued_again_without_losing_an_attempt(
    app: PgQueue, connection: Look
) -> None:
    worker, jobs = claimed(app, connection, 2, priority=3)
    run(connection, db.sleep(app.statements, worker, ["a"], 60))
    before = [ended(connection, job).run_at for job in jobs]
    assert run(connection, db.lapsed(app.statements, NOW + timedelta(seconds=9.999))) == []
    assert run(connection, db.lapsed(app.statements, NOW + timedelta(seconds=10))) == [worker]
    assert run(connection, db.lapsed(app.statements, NOW + timedelta(seconds=10))) == [worker]  # until they are rescued
    assert rescue(app, connection, [worker]) == [Rescued(job, "test.task", "default", 0, 1, 0, False) for job in jobs]
    for job, run_at in zip(jobs, before, strict=True):
        row = ended(connection, job)
        assert (row.state, row.worker_id, row.attempt, row.fence, row.crashes) == ("queued", None, 0, 1, 0)
        assert (row.run_at, row.priority, row.errors) == (run_at, 3, None)
    counts = "select (select count(*) from pgqueue.workers), (select count(*) from pgqueue.sleepers)"
    assert connection.execute(counts).fetchone() == (0, 0)
    assert run(connection, db.lapsed(app.statements, NOW + timedelta(days=1))) == []
    assert rescue(app, connection, [worker]) == []


def test_a_worker_that_lives_keeps_its_job_however_old_that_is(app: PgQueue, connection: Look) -> None:
    worker, _ = claimed(app, connection)
    connection.execute(
        "update pgqueue.jobs set started_at = '2000-01-01', created_at = '2000-01-01', run_at = '2000-01-01'"
    )
    before = everything(connection)
    for minute in range(1, 4):
        now = NOW + timedelta(minutes=minute)
        run(connection, db.heartbeat(app.statements, [worker], 10, now=now))
        assert run(connection, db.lapsed(app.statements, now + timedelta(seconds=9))) == []
    assert run(connection, sweep(app.statements)) == []
    assert everything(connection) == before


def test_only_the_jobs_of_the_workers_that_are_gone_are_taken_back(app: PgQueue, connection: Look) -> None:
    gone, (lost,) = claimed(app, connection)
    alive, (running,) = claimed(app, connection)
    waiting = job_in(app, connection, "queued")
    assert [job.id for job in rescue(app, connection, [gone, uuid4()])] == [lost]
    assert ended(connection, running).worker_id == alive
    assert ended(connection, waiting).attempt == 0


def test_an_orphan_whose_owner_never_had_a_row_is_rescued(app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, "running")
    connection.execute("delete from pgqueue.workers")  # a restored dump, a row deleted by hand
    (rescued,) = run(connection, sweep(app.statements))
    assert (rescued.id, ended(connection, job).state) == (job, "queued")


def test_a_rescued_job_runs_again_in_the_same_attempt_with_its_history(app: PgQueue, connection: Look) -> None:
    worker, (job,) = claimed(app, connection)
    run(connection, db.retry(app.statements, worker, [job], [1], [0.0], ["first"], [None], NOW))
    (second,) = claim_again(app, connection, worker)
    rescue(app, connection, [worker])
    (third,) = claim_again(app, connection, worker)
    assert [(claim.attempt, claim.fence) for claim in (second, third)] == [(2, 2), (2, 3)]
    assert [one["error"] for one in ended(connection, job).errors] == ["first"]


def test_a_crash_is_counted_and_noted_and_the_third_dead_letters_the_job(app: PgQueue, connection: Look) -> None:
    worker, (job,) = claimed(app, connection, unique_key="k", tags=["t"])
    for crash in (1, 2):
        (rescued,) = rescue(app, connection, [worker], crashed=True)
        assert (rescued.crashes, rescued.dead, rescued.attempt) == (crash, False, 0)
        assert (ended(connection, job).state, ended(connection, job).crashes) == ("queued", crash)
        claim_again(app, connection, worker)
    (rescued,) = rescue(app, connection, [worker], crashed=True)
    assert (rescued.id, rescued.crashes, rescued.dead) == (job, 3, True)
    row = ended(connection, job)
    assert (row.state, row.reason, row.error, row.crashes) == ("dead", "crashed", "killed by SIGKILL", 3)
    assert (row.attempt, row.fence, row.unique_key, row.tags) == (1, 3, "k", ["t"])
    assert [(one["attempt"], one["fence"], one["error"]) for one in row.errors] == [
        (1, fence, "killed by SIGKILL") for fence in (1, 2, 3)
    ]
    assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)


def test_a_lapsed_lease_never_counts_as_a_crash(app: PgQueue, connection: Look) -> None:
    worker, (job,) = claimed(app, connection)
    for _ in range(2):
        rescue(app, connection, [worker], crashed=True)
        claim_again(app, connection, worker)
    for _ in range(5):
        (rescued,) = rescue(app, connection, [worker], crashed=False)
        assert (rescued.crashes, rescued.dead) == (2, False)
        claim_again(app, connection, worker)
    assert [job.dead for job in rescue(app, connection, [worker], crashed=True)] == [True]
    assert ended(connection, job).fence == 8


def test_a_job_that_ends_otherwise_is_cleared_of_its_crashes(app: PgQueue, connection: Look) -> None:
    worker, (job,) = claimed(app, connection)
    for _ in range(2):
        rescue(app, connection, [worker], crashed=True)
        (claim,) = claim_again(app, connection, worker)
    assert claim.crashes == 2
    run(connection, db.retry(app.statements, worker, [job], [claim.fence], [0.0], ["an error"], [None], NOW))
    assert claim_again(app, connection, worker)[0].crashes == 0


def test_the_neighbours_of_a_crash_are_suspects_too_but_lose_no_attempt(app: PgQueue, connection: Look) -> None:
    worker, jobs = claimed(app, connection, 3)
    rescued = run(connection, bury(app.statements, [worker], "killed by SIGSEGV", crashed=True))
    assert [(job.id, job.crashes, job.attempt, job.dead) for job in rescued] == [(job, 1, 0, False) for job in jobs]
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)


def test_suspects_are_claimed_by_nobody_but_who_asks_for_one_and_the_least_suspected_comes_first(
    app: PgQueue, connection: Look
) -> None:
    worker, jobs = claimed(app, connection, 4)
    rescue(app, connection, [worker], crashed=True)
    connection.execute("update pgqueue.jobs set crashes = 2 where id = %s", [jobs[0]])
    connection.execute("update pgqueue.jobs set priority = 1 where id = %s", [jobs[3]])
    assert run(connection, db.claim(app.statements, worker, ["test.task"], None, 10, now=NOW)) == []
    order = []
    assert run(connection, db.suspects(app.statements, ["test.task"], None, 2, NOW)) == 2  # and no further
    for left in (4, 3, 2, 1):
        assert run(connection, db.suspects(app.statements, ["test.task"], None, 100, NOW)) == left
        (claim,) = run(connection, db.claim_suspect(app.statements, worker, ["test.task"], None, NOW))
        assert (claim.attempt, claim.fence) == (1, 2)
        order.append((claim.id, claim.crashes))
    assert order == [(jobs[3], 1), (jobs[1], 1), (jobs[2], 1), (jobs[0], 2)]
    assert run(connection, db.suspects(app.statements, ["test.task"], None, 100, NOW)) == 0
    assert run(connection, db.claim_suspect(app.statements, worker, ["test.task"], None, NOW)) == []


@pytest.mark.parametrize(
    "obstacle",
    [
        "update pgqueue.jobs set task = 'unknown'",
        "update pgqueue.jobs set queue = 'other'",
        "insert into pgqueue.queues (name, paused) values ('mine', true)",
        "update pgqueue.jobs set run_at = run_at + interval '1 day'",
        "update pgqueue.jobs set expires_at = run_at + interval '1 us'",
        "update pgqueue.jobs set state = 'blocked'",
    ],
)
def test_a_suspect_is_claimed_only_if_it_could_be_otherwise_too(app: PgQueue, connection: Look, obstacle: str) -> None:
    worker, (job,) = claimed(app, connection, queue="mine")
    rescue(app, connection, [worker], crashed=True)
    which: Any = (["test.task"], ["mine", "third"])
    assert run(connection, db.suspects(app.statements, *which, 100, NOW)) == 1
    connection.execute(obstacle)
    assert run(connection, db.suspects(app.statements, *which, 100, NOW)) == 0
    assert run(connection, db.claim_suspect(app.statements, worker, *which, NOW)) == []
    assert ended(connection, job).fence == 1


def test_a_worker_whose_lease_has_ended_claims_no_suspect(app: PgQueue, connection: Look) -> None:
    worker, _ = claimed(app, connection)
    rescue(app, connection, [worker], crashed=True)
    late = NOW + timedelta(seconds=10)
    assert run(connection, db.claim_suspect(app.statements, worker, ["test.task"], None, late)) == []
    assert len(run(connection, db.claim_suspect(app.statements, worker, ["test.task"], None, NOW))) == 1


def test_a_job_locked_by_somebody_is_left_to_the_next_sweep(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    worker, (locked, free) = claimed(app, connection, 2)
    connection.execute("update pgqueue.workers set expires_at = now()")
    connection.execute("set lock_timeout = '1ms'")  # any wait for a lock is an error
    with psycopg.connect(pgqueue_database) as frozen:
        frozen.execute("select from pgqueue.jobs where id = %s for update", [locked])
        assert [job.id for job in run(connection, sweep(app.statements))] == [free]
        assert run(connection, sweep(app.statements)) == []
        assert ended(connection, locked).worker_id == worker
    assert [job.id for job in run(connection, sweep(app.statements))] == [locked]


def test_two_sweeps_at_once_rescue_each_job_once_and_do_not_wait_for_each_other(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    _, (job,) = claimed(app, connection)
    connection.execute("update pgqueue.workers set expires_at = now()")
    with psycopg.connect(pgqueue_database) as one, psycopg.connect(pgqueue_database) as two:
        two.execute("set lock_timeout = '1ms'")
        assert [rescued.id for rescued in run(one, sweep(app.statements))] == [job]
        assert run(two, sweep(app.statements)) == []
        one.commit()
        assert run(two, sweep(app.statements)) == []
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence) == ("queued", 0, 1)


@pytest.mark.parametrize("crashed", [False, True])
def test_a_rescue_wakes_a_sleeper_for_each_queue_that_got_a_job_back(
    crashed: bool, app: PgQueue, connection: Look, ears: Ears
) -> None:
    worker, _ = claimed(app, connection, 2, queue="a")
    for name in ("a", "b"):
        ears.asleep(name, name)
    rescue(app, connection, [worker], crashed=crashed)
    assert ears.heard() == ["a"]
    connection.execute("update pgqueue.jobs set crashes = 2")
    claim_again(app, connection, worker)
    rescue(app, connection, [worker], crashed=True)
    assert ears.heard() == []  # they are dead


def test_what_a_worker_holds_without_knowing_is_given_back_and_what_it_knows_is_not(
    app: PgQueue, connection: Look
) -> None:
    worker, (known, ghost, *_) = claimed(app, connection, 2)
    other = worker_row(app, connection, tasks=["test.task"])
    foreign = job_in(app, connection, "running")
    assert run(connection, db.release_ghosts(app.statements, other, [])) == []
    assert run(connection, db.release_ghosts(app.statements, worker, [known])) == [(ghost, "test.task", 1)]
    row = ended(connection, ghost)
    assert (row.state, row.attempt, row.fence, row.worker_id) == ("queued", 0, 1, None)
    assert [ended(connection, job).state for job in (known, foreign)] == ["running", "running"]
