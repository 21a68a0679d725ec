"""Step 1, unique_key: while a live job holds the key, an enqueue gives that job; when it has ended the key is free."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, Task, db
from pgqueue.drivers import Call, Rows
from pgqueue.drivers.psycopg import run_raw
from pgqueue.drivers.steps import play
from pgqueue.enqueue import enqueue_many_steps
from pgqueue.sql import Statements
from tests.helpers import eventually, run, worker_row

Look = psycopg.Connection[Any]
Enqueue = Callable[[PgQueue, Look], int]

WAYS: dict[str, Enqueue] = {
    "enqueue": lambda app, to: app.tasks["send"].options(unique_key="k").enqueue(to).id,
    "enqueue_many": lambda app, to: app.tasks["send"].options(unique_key="k").enqueue_many(to, [()])[0],
    "sql": lambda app, to: to.execute("select pgqueue.enqueue('send', unique_key => 'k')").fetchone()[0],  # type: ignore[index]
}


@pytest.fixture(autouse=True)
def send(app: PgQueue) -> Task[..., Any]:
    @app.task(name="send")
    def send() -> None: ...

    return send


def ids(connection: Look) -> list[int]:
    return [row[0] for row in connection.execute("select id from pgqueue.jobs order by id")]


@pytest.mark.parametrize("way", WAYS)
def test_a_second_enqueue_gives_the_job_that_holds_the_key(way: str, app: PgQueue, connection: Look) -> None:
    first = WAYS[way](app, connection)
    assert [WAYS[other](app, connection) for other in WAYS] == [first] * 3
    assert ids(connection) == [first]


def test_the_enqueuer_is_told_that_the_job_existed_and_the_job_stays_as_it_was(
    send: Task[..., Any], connection: Look
) -> None:
    first = send.options(unique_key="k", priority=1).enqueue(connection)
    again = send.options(unique_key="k", priority=9, queue="other", delay=60).enqueue(connection)
    assert (first.existing, again.existing) == (False, True)
    assert (again.id, again.run_at, again.created_at) == (first.id, first.run_at, first.created_at)
    assert connection.execute("select queue, priority from pgqueue.jobs").fetchall() == [("default", 1)]
    assert send.options(unique_key="K").enqueue(connection).existing is False


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_enqueue_waits_for_an_uncommitted_holder_and_then_goes_by_what_became_of_it(
    end: str, way: str, app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    enqueue = WAYS[way]
    with (
        psycopg.connect(pgqueue_database) as holder,
        psycopg.connect(pgqueue_database, autocommit=True) as second,
        ThreadPoolExecutor(1) as thread,
    ):
        held = enqueue(app, holder)
        try:
            waiting = thread.submit(enqueue, app, second)
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
            eventually(lambda: connection.execute(waits, [second.info.backend_pid]).fetchone() == (True,))
            assert not waiting.done()
        finally:
            getattr(holder, end)()
        found = waiting.result(timeout=20)
    assert (found == held) is (end == "commit")
    assert ids(connection) == [found]


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_a_holder_newer_than_the_snapshot_is_a_serialization_failure_as_of_any_insert(
    level: psycopg.IsolationLevel, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    unique = send.options(unique_key="k")
    with psycopg.connect(pgqueue_database) as mine:
        mine.isolation_level = level
        mine.execute("select 1")
        held = unique.enqueue(connection)
        with pytest.raises(psycopg.errors.SerializationFailure):
            unique.enqueue(mine)
        mine.rollback()
        assert unique.enqueue(mine).id == held.id


def test_batches_that_name_the_same_keys_in_another_order_wait_for_each_other_and_never_deadlock(
    app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    def batch(keys: str, to: Look) -> list[int]:
        return app.enqueue_many(to, [send.options(unique_key=key).job() for key in keys])

    waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    with (
        psycopg.connect(pgqueue_database) as holder,
        psycopg.connect(pgqueue_database, autocommit=True) as one,
        psycopg.connect(pgqueue_database, autocommit=True) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        batch("m", holder)
        try:  # Inserted as they come, the first would hold x and want y, the second hold y and want x.
            first = threads.submit(batch, "xmy", one)
            eventually(lambda: connection.execute(waits, [one.info.backend_pid]).fetchone() == (True,))
            second = threads.submit(batch, "yx", other)
            eventually(
                lambda: second.done() or connection.execute(waits, [other.info.backend_pid]).fetchone() == (True,)
            )
        finally:
            holder.rollback()
        x, m, y = first.result(timeout=20)
        assert second.result(timeout=20) == [y, x]
    assert ids(connection) == sorted([x, m, y])


def test_a_batch_that_finds_a_holder_gone_begins_anew_and_does_not_insert_its_key_out_of_order(
    app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    """It holds y by then: were it to insert x after it, it would wait for who holds x and waits for y."""
    holder = send.options(unique_key="x").enqueue(connection).id
    waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    jobs = [send.options(unique_key=key).job() for key in "xy"]
    with (
        psycopg.connect(pgqueue_database) as one,
        psycopg.connect(pgqueue_database) as other,
        ThreadPoolExecutor(1) as threads,
    ):
        second: list[Future[list[int]]] = []

        def enqueue_and_commit() -> list[int]:
            found = app.enqueue_many(other, jobs)
            other.commit()
            return found

        def until_the_look_up(call: Call) -> Rows:
            if call.text == app.statements["holders"] and not second:
                run(connection, db.cancel(app.statements, [holder], "gone"))
                second.append(threads.submit(enqueue_and_commit))
                eventually(lambda: connection.execute(waits, [other.info.backend_pid]).fetchone() == (True,))
            return run_raw(one, call)

        found = play(until_the_look_up, enqueue_many_steps(app.statements, jobs))
        one.commit()
        assert found == second[0].result(timeout=20)
    assert ids(connection) == sorted(found)


def test_batches_and_single_enqueues_of_a_few_keys_never_deadlock_while_their_holders_end(
    app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown when it fails
    keys = [f"k{number}" for number in range(12)]
    errors: list[psycopg.Error] = []

    def session(number: int) -> None:
        chance = random.Random(seed + number)
        with psycopg.connect(pgqueue_database) as mine:
            for _ in range(60):
                try:
                    if chance.random() < 0.4:
                        live = [row[0] for row in mine.execute("select id from pgqueue.jobs order by random() limit 3")]
                        run(mine, db.cancel(app.statements, live, "gone"))
                    elif chance.random() < 0.3:
                        send.options(unique_key=chance.choice(keys)).enqueue(mine)
                    else:
                        chosen = [send.options(unique_key=chance.choice(keys)).job() for _ in range(8)]
                        assert len(app.enqueue_many(mine, chosen)) == 8
                    (mine.rollback if chance.random() < 0.2 else mine.commit)()
                except psycopg.Error as error:
                    errors.append(error)
                    mine.rollback()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(session, range(6)))
    assert not errors
    taken = {row[0] for row in connection.execute("select unique_key from pgqueue.jobs")}
    assert len(ids(connection)) == len(taken)
    assert {key for key in keys if send.options(unique_key=key).enqueue(connection).existing} == taken


def _claimed(app: PgQueue, connection: Look) -> tuple[Statements, Any, list[int], list[int]]:
    worker_id = worker_row(app, connection, tasks=["send"])
    (claim,) = run(connection, db.claim(app.statements, worker_id, ["send"], None, 1))
    return app.statements, worker_id, [claim.id], [claim.fence]


ENDS: dict[str, Callable[[PgQueue, Look], object]] = {
    "completed": lambda app, to: run(to, db.complete(*_claimed(app, to), [None])),
    "dead": lambda app, to: run(to, db.dead_letter(*_claimed(app, to), ["never"], ["no"], [None])),
    "cancelled by itself": lambda app, to: run(to, db.cancel_running(*_claimed(app, to), ["no"])),
    "cancelled": lambda app, to: run(to, db.cancel(app.statements, ids(to), "no")),
    "expired": lambda app, to: (
        to.execute("update pgqueue.jobs set expires_at = now()"),
        run(to, db.expire(app.statements, 1)),
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_key_is_held_until_the_job_has_ended_and_free_afterwards(
    end: str, app: PgQueue, send: Task[..., Any], connection: Look
) -> None:
    unique = send.options(unique_key="k")
    first = unique.enqueue(connection)
    statements, worker_id, claimed, fences = _claimed(app, connection)
    assert unique.enqueue(connection).id == first.id  # while it runs
    run(connection, db.retry(statements, worker_id, claimed, fences, [0.0], ["no"], [None]))
    assert unique.enqueue(connection).id == first.id  # while it waits for its next attempt
    ENDS[end](app, connection)
    assert ids(connection) == []
    after = unique.enqueue(connection)
    assert after.existing is False
    assert ids(connection) == [after.id]
