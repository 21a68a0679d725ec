"""Step 7, redrive: a dead job goes back to its queue as the same job, once, however many people ask for it at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from pgqueue import ArgsNotJSON, InvalidOption, PgQueue, UniqueKeyTaken, control, db
from pgqueue.enqueue import NewJob, Options
from tests.helpers import eventually, job_in, run, worker_row
from tests.life.workbench import Ears, ended, everything

Look = psycopg.Connection[Any]
NOW = datetime.now(UTC).replace(microsecond=0)


def dead(
    app: PgQueue,
    connection: Look,
    *,
    task: str = "test.task",
    args: str = "{}",
    reason: str = "attempts",
    error: str = "ValueError: no",
    died: float = 0.0,
    fails: int = 0,
    **options: Any,
) -> int:
    """A job that died so many seconds ago, after so many failed attempts and the last one."""
    sql = app.statements
    job_id = app.enqueue_alone(NewJob(task, args, Options(**options))).id
    worker = worker_row(app, connection, tasks=[task])
    for n in range(fails + 1):
        (claim,) = run(connection, db.claim(sql, worker, [task], None, 1))
        if n < fails:
            run(connection, db.retry(sql, worker, [job_id], [claim.fence], [0.0], [f"error {n + 1}"], [None]))
    run(connection, db.dead_letter(sql, worker, [job_id], [claim.fence], [reason], [error], [None]))
    connection.execute(
        "update pgqueue.dead_jobs set died_at = died_at - %s * interval '1 second' where id = %s", [died, job_id]
    )
    return job_id


def states(connection: Look, jobs: list[int]) -> list[str]:
    return [ended(connection, job).state for job in jobs]


def test_a_redriven_job_is_the_same_job_due_now_with_its_attempts_anew_and_its_fence_going_on(
    app: PgQueue, connection: Look
) -> None:
    job = dead(
        app, connection, fails=2, queue="q", priority=7, unique_key="k", tags=["t"], meta={"m": 1}, timeout=9, delay=0
    )
    connection.execute("update pgqueue.dead_jobs set crashes = 2, expires_at = now() - interval '1 day'")
    before = ended(connection, job)
    (done,) = run(connection, db.redrive(app.statements, [job, 999_999], None, NOW))
    assert done == (job, "test.task", "q", 3)
    row = ended(connection, job)
    assert (row.state, row.attempt, row.crashes, row.fence, row.worker_id) == ("queued", 0, 0, 3, None)
    assert (row.run_at, row.created_at, row.expires_at, row.started_at) == (NOW, before.created_at, None, None)
    for column in ("task", "args", "queue", "priority", "max_attempts", "unique_key", "tags", "meta", "timeout"):
        assert getattr(row, column) == getattr(before, column), column
    assert (row.errors, row.reason, row.died_at) == (None, None, None)
    worker = worker_row(app, connection, tasks=["test.task"])
    (claim,) = run(connection, db.claim(app.statements, worker, ["test.task"], None, 1))
    assert (claim.attempt, claim.fence) == (1, 4)
    run(connection, db.dead_letter(app.statements, worker, [job], [4], ["never"], ["again"], [None]))
    assert [(one["attempt"], one["fence"], one["error"]) for one in ended(connection, job).errors] == [(1, 4, "again")]


def test_a_dead_job_with_corrected_arguments_runs_to_its_end(
    app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    @app.task(name="ship", max_attempts=1)
    def ship(order: int) -> int:
        if order < 0:
            raise LookupError("no such order")
        return order

    jobs = [ship.enqueue(connection, -n).id for n in (1, 2, 3)]
    drain()
    assert states(connection, jobs) == ["dead"] * 3
    assert app.dead.redrive(jobs[0], args={"order": 1}) == [jobs[0]]
    assert app.dead.redrive(jobs[1], args=[2]) == [jobs[1]]
    assert app.dead.redrive(jobs[2]) == [jobs[2]]
    drain()
    assert [(ended(connection, job).state, ended(connection, job).result) for job in jobs] == [
        ("completed", 1),
        ("completed", 2),
        ("dead", None),
    ]


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"task": "b.task"}, [2]),
    ({"task": "b"}, []),
    ({"queue": "vip"}, [1, 2]),
    ({"reason": "timeout"}, [3]),
    ({"error": "no route"}, [1]),
    ({"error": "%"}, [3]),  # text as it stands, not a pattern
    ({"older_than": 3000}, [0, 1]),
    ({"younger_than": 3000}, [2, 3]),
    ({"older_than": 3000, "younger_than": 9000}, [1]),
    ({"queue": "vip", "older_than": 3000}, [1]),
    ({"everything": True, "limit": 2}, [0, 1]),  # the oldest death first
    ({"everything": True}, [0, 1, 2, 3]),
    ({"everything": True, "task": "b.task"}, [2]),
]


@pytest.mark.parametrize("act", ["redrive", "purge"])
def test_dead_jobs_are_chosen_by_task_queue_reason_error_and_age(act: str, app: PgQueue, connection: Look) -> None:
    jobs = [
        dead(app, connection, died=10_000),
        dead(app, connection, died=5_000, queue="vip", error="OSError: no route to host"),
        dead(app, connection, died=1_000, queue="vip", task="b.task"),
        dead(app, connection, died=0, reason="timeout", error="only 5% done"),
    ]
    before = everything(connection)
    do = getattr(app.dead, act)
    for which, expected in FILTERS:
        assert do(dry_run=True, **which) == [jobs[n] for n in expected], which
    for forgotten in ({}, {"task": None}, {"limit": 2}):
        with pytest.raises(InvalidOption, match="say which dead jobs"):
            do(**forgotten)
    assert everything(connection) == before
    for job in jobs[:2]:
        assert do(job, dry_run=True) == [job]
        assert do(job, task="another.task") == []
        assert do(job) == [job]
        assert do(job) == []
    assert do(queue="vip") == [jobs[2]]
    left = {"redrive": [(jobs[0], "queued"), (jobs[1], "queued"), (jobs[2], "queued"), (jobs[3], "dead")]}
    found = connection.execute("select id, state from pgqueue.all_jobs order by id").fetchall()
    assert found == left.get(act, [(jobs[3], "dead")])


@pytest.mark.parametrize("state", ["queued", "running", "blocked", "completed", "cancelled", "expired"])
def test_what_is_not_dead_is_neither_redriven_nor_purged(state: str, app: PgQueue, connection: Look) -> None:
    job = job_in(app, connection, state)
    before = everything(connection)
    assert app.dead.redrive(job) == []
    assert app.dead.purge(job) == []
    assert connection.execute("select pgqueue.redrive(%s)", [job]).fetchone() == (False,)
    assert everything(connection) == before


@pytest.mark.parametrize("args", [7, "text", [float("nan")], {"a": object()}, {"a": "\0"}])
def test_arguments_that_cannot_be_stored_redrive_nothing(args: Any, app: PgQueue, connection: Look) -> None:
    dead(app, connection)
    before = everything(connection)
    with pytest.raises((InvalidOption, ArgsNotJSON), match="args"):
        app.dead.redrive(everything=True, args=args)
    assert everything(connection) == before


WAYS: dict[str, Callable[[PgQueue, Look, int], bool]] = {
    "Python": lambda app, to, job: run(to, control.redrive(app.statements, ids=[job])) == [job],
    "SQL": lambda app, to, job: to.execute("select pgqueue.redrive(%s)", [job]).fetchone() == (True,),
}


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_redrives_at_once_make_one_job(
    end: str, first: str, second: str, app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    job = dead(app, connection)
    with (
        psycopg.connect(pgqueue_database) as one,
        psycopg.connect(pgqueue_database, autocommit=True) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        assert WAYS[first](app, one, job) is True
        clicked = thread.submit(WAYS[second], app, other, job)
        try:
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
            eventually(lambda: connection.execute(waits, [other.info.backend_pid]).fetchone() == (True,))
        finally:
            getattr(one, end)()
        assert clicked.result(timeout=20) is (end == "rollback")
    row = ended(connection, job)  # exactly one row
    assert (row.state, row.attempt, row.fence) == ("queued", 0, 1)


def test_many_operators_clicking_redrive_all_make_each_job_once(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    jobs = [dead(app, connection) for _ in range(30)]

    def click(_: int) -> list[int]:
        with psycopg.connect(pgqueue_database) as mine:
            return run(mine, control.redrive(app.statements, everything=True))

    with ThreadPoolExecutor(6) as threads:
        done = [job for clicked in threads.map(click, range(12)) for job in clicked]
    assert sorted(done) == jobs
    assert states(connection, jobs) == ["queued"] * 30


@pytest.mark.parametrize("way", WAYS)
def test_a_key_that_a_live_job_holds_is_named_and_nothing_is_redriven(way: str, app: PgQueue, connection: Look) -> None:
    job, fine = dead(app, connection, unique_key="k"), dead(app, connection)
    holder = app.enqueue_alone(NewJob("test.task", "{}", Options(unique_key="k"))).id
    before = everything(connection)
    if way == "Python":
        with pytest.raises(UniqueKeyTaken, match=f"live job {holder} holds the unique key of job {job}"):
            app.dead.redrive(everything=True)
    else:
        with pytest.raises(psycopg.DatabaseError, match=f"live job {holder} holds its unique key") as refused:
            connection.execute("select pgqueue.redrive(id) from pgqueue.dead_jobs order by id desc")
        assert refused.value.sqlstate == "PQ002"
        assert refused.value.diag.message_hint == "Wait for that job to end, or cancel it."
    assert everything(connection) == before
    run(connection, db.cancel(app.statements, [holder], "in the way"))
    assert all(WAYS[way](app, connection, one) for one in (job, fine))


def test_two_dead_jobs_with_one_key_cannot_both_come_back(app: PgQueue, connection: Look) -> None:
    one, other = dead(app, connection, unique_key="k"), dead(app, connection, unique_key="k")
    before = everything(connection)
    with pytest.raises(UniqueKeyTaken, match="unique key"):
        app.dead.redrive(everything=True)
    assert everything(connection) == before
    assert app.dead.redrive(one) == [one]
    assert states(connection, [one, other]) == ["queued", "dead"]


def test_a_redrive_of_thousands_is_all_or_nothing(
    app: PgQueue, connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "BATCH", 2)
    jobs = [dead(app, connection, unique_key="k" if n == 4 else None) for n in range(5)]
    holder = app.enqueue_alone(NewJob("test.task", "{}", Options(unique_key="k"))).id
    before = everything(connection)
    with pytest.raises(UniqueKeyTaken):
        app.dead.redrive(everything=True)
    assert everything(connection) == before
    run(connection, db.cancel(app.statements, [holder], "in the way"))
    assert app.dead.redrive(everything=True, args={"a": 1}) == jobs
    assert connection.execute("select distinct args::text from pgqueue.jobs").fetchall() == [(json.dumps({"a": 1}),)]


def test_the_sql_function_says_whether_there_was_something_to_do(app: PgQueue, connection: Look) -> None:
    job = dead(app, connection, fails=1, priority=3)
    answers = connection.execute(
        "select pgqueue.redrive(id) from unnest(%s::bigint[]) as id", [[job, job, 999_999, None]]
    )
    assert [row[0] for row in answers] == [True, False, False, False]
    row = ended(connection, job)
    assert (row.state, row.attempt, row.fence, row.priority, row.crashes) == ("queued", 0, 2, 3, 0)
    assert row.run_at > row.created_at


def test_the_sql_function_is_part_of_the_callers_transaction(
    app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    job = dead(app, connection)
    with psycopg.connect(pgqueue_database) as mine:
        assert WAYS["SQL"](app, mine, job)
        assert ended(connection, job).state == "dead"
        mine.rollback()
    assert ended(connection, job).state == "dead"


@pytest.mark.parametrize("way", WAYS)
def test_a_redrive_wakes_a_sleeper(way: str, app: PgQueue, connection: Look, ears: Ears) -> None:
    job, other = dead(app, connection, queue="a"), dead(app, connection, queue="b")
    ears.asleep("a", "a")
    assert WAYS[way](app, connection, job)
    assert ears.heard() == ["a"]
    assert WAYS[way](app, connection, other)
    assert ears.heard() == []


def test_a_purged_job_is_gone_for_good(app: PgQueue, connection: Look) -> None:
    job, other = dead(app, connection, fails=1), dead(app, connection)
    assert app.dead.purge(job) == [job]
    assert app.dead.redrive(job) == []
    assert connection.execute("select id from pgqueue.all_jobs").fetchall() == [(other,)]
    assert connection.execute("select count(*) from pgqueue.job_errors").fetchone() == (0,)
