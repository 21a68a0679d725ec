"""Step 1, enqueue_many: all of them or none, ids in the order of the input, on every kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgqueue import ArgsNotJSON, PgQueue, RetryPolicy, Task, db
from pgqueue.drivers import perform_either
from pgqueue.enqueue import NewJob, enqueue_many_steps
from pgqueue.settings import BULK_CHARS, BULK_CHUNK
from tests.life.callers import AUTOCOMMIT, KINDS, caller, done

Look = psycopg.Connection[Any]


@pytest.fixture
def number(app: PgQueue) -> Task[..., Any]:
    @app.task(name="number", queue="numbers", priority=3)
    def number(n: int, note: str = "") -> int:
        return n

    return number


def numbers(connection: Look, ids: list[int]) -> list[int]:
    """The argument of each of these jobs, in their order."""
    found = dict(connection.execute("select id, (args ->> 'n')::int from pgqueue.jobs").fetchall())
    return [found[job_id] for job_id in ids]


def count(connection: Look) -> int:
    (found,) = connection.execute("select count(*) from pgqueue.jobs").fetchall()
    return int(found[0])


@pytest.mark.parametrize(
    "calls",
    [
        [(3,), (1, "a"), (2,)],
        [{"n": 3}, {"note": "a", "n": 1}, {"n": 2}],
        [(3,), {"n": 1}, [2]],
        (call for call in [(3,), (1,), (2,)]),
    ],
    ids=["tuples", "dicts", "mixed", "a generator"],
)
def test_calls_may_be_tuples_or_dicts_and_their_ids_come_in_the_order_of_the_input(
    calls: Any, number: Task[..., Any], connection: Look
) -> None:
    ids = number.enqueue_many(connection, calls)
    assert numbers(connection, ids) == [3, 1, 2]
    assert ids == sorted(ids)  # so that equal jobs start in the order of the input, too
    assert connection.execute("select distinct task, queue, priority from pgqueue.jobs").fetchall() == [
        ("number", "numbers", 3)
    ]


@pytest.mark.parametrize("nothing", [[], (), {}, iter(())])
def test_nothing_to_enqueue_is_nothing_enqueued(nothing: Any, number: Task[..., Any], pgqueue_database: str) -> None:
    with psycopg.connect(pgqueue_database) as mine:
        assert number.enqueue_many(mine, nothing) == []
        assert mine.info.transaction_status == TransactionStatus.IDLE


def test_jobs_of_several_tasks_and_options_go_in_together(
    app: PgQueue, number: Task[..., Any], connection: Look, drain: Callable[..., None]
) -> None:
    @app.task(name="shout")
    async def shout(word: str) -> str:
        return word.upper()

    jobs = [
        shout.job("a"),
        number.options(queue="vip", tags=["x", 'y"{}\\'], meta={"k": [1]}).job(7),
        shout.options(delay=3600).job(word="b"),
        number.job(8, note="c"),
    ]
    ids = app.enqueue_many(connection, iter(jobs))
    sql = "select task, queue, args, tags, meta, run_at > created_at from pgqueue.jobs order by id"
    assert connection.execute(sql).fetchall() == [
        ("shout", "default", {"word": "a"}, None, None, False),
        ("number", "vip", {"n": 7}, ["x", 'y"{}\\'], {"k": [1]}, False),
        ("shout", "default", {"word": "b"}, None, None, True),
        ("number", "numbers", {"n": 8, "note": "c"}, None, None, False),
    ]
    drain()
    results = connection.execute("select id, result from pgqueue.all_jobs order by id").fetchall()
    assert results == list(zip(ids, ["A", 7, None, 8], strict=True))


@pytest.mark.parametrize("isolation", [None, AUTOCOMMIT], ids=["transaction", "autocommit"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_call_after_some_chunks_leaves_nothing_written_and_the_transaction_usable(
    kind: str, isolation: str | None, app: PgQueue, number: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    def chunks(to: Any, last: Any) -> Any:
        jobs = (number.job(n) for n in (*range(6), last))
        return done(perform_either(to, enqueue_many_steps(app.statements, jobs, chunk=2)))

    async def application() -> None:
        async with caller(kind, pgqueue_database, isolation) as mine:
            await done(number.enqueue(mine.connection, 100))
            with pytest.raises(ArgsNotJSON):
                await chunks(mine.connection, float("nan"))
            assert await mine.execute("select (args ->> 'n')::int from pgqueue.jobs") == [(100,)]
            ids = await chunks(mine.connection, 6)
            await mine.commit()
            assert numbers(connection, ids) == list(range(7))

    asyncio.run(application())
    assert count(connection) == 8


def test_thousands_are_all_or_nothing_too_and_keep_their_order(
    number: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    size = 2 * BULK_CHUNK + 1

    def calls(bad: int | None = None) -> Iterator[dict[str, Any]]:
        return ({"n": size - n, "note": "\0" if n == bad else ""} for n in range(size))

    with pytest.raises(ArgsNotJSON, match="NUL"):
        number.enqueue_many(connection, calls(bad=size - 1))
    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert count(connection) == 0
    with psycopg.connect(pgqueue_database) as mine:
        ids = number.enqueue_many(mine, calls())
        assert count(connection) == 0
    assert ids == sorted(ids)
    assert numbers(connection, ids) == list(range(size, 0, -1))


def test_an_error_of_the_database_in_a_later_chunk_undoes_the_earlier_ones_and_no_more(
    app: PgQueue, number: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    connection.execute("alter table pgqueue.jobs add constraint own check (args ->> 'n' <> '5')")
    with psycopg.connect(pgqueue_database) as mine:
        number.enqueue(mine, 100)
        with pytest.raises(psycopg.errors.CheckViolation):
            perform_either(mine, enqueue_many_steps(app.statements, (number.job(n) for n in range(6)), chunk=2))
        number.enqueue(mine, 101)
    assert connection.execute("select args -> 'n' from pgqueue.jobs order by id").fetchall() == [(100,), (101,)]


def test_an_input_that_breaks_half_way_leaves_nothing_written(
    app: PgQueue, number: Task[..., Any], connection: Look
) -> None:
    def breaks() -> Iterator[Any]:
        yield from (number.job(n) for n in range(5))
        raise RuntimeError("the file ended early")

    with pytest.raises(RuntimeError, match="ended early"):
        perform_either(connection, enqueue_many_steps(app.statements, breaks(), chunk=2))
    with pytest.raises(RuntimeError, match="ended early"):
        app.enqueue_many(connection, breaks())
    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert count(connection) == 0


def test_a_key_that_occurs_twice_in_a_batch_or_is_held_already_gives_the_same_id_in_its_place(
    app: PgQueue, number: Task[..., Any], connection: Look
) -> None:
    held = number.options(unique_key="held").enqueue(connection, 0)
    keys = ["b", None, "held", "a", "b", None, "a", "held"]
    ids = app.enqueue_many(connection, [number.options(unique_key=key).job(n) for n, key in enumerate(keys, start=1)])
    assert ids[2] == ids[7] == held.id
    assert ids[4] == ids[0]
    assert ids[6] == ids[3]
    assert len(set(ids)) == 5
    assert numbers(connection, ids) == [1, 2, 0, 4, 1, 6, 4, 0]
    assert count(connection) == 5


def test_a_key_that_occurs_in_two_chunks_gives_the_same_id(
    app: PgQueue, number: Task[..., Any], connection: Look
) -> None:
    jobs = (number.options(unique_key=key).job(n) for n, key in enumerate("abcab"))
    ids = perform_either(connection, enqueue_many_steps(app.statements, jobs, chunk=3))
    assert ids[3:] == ids[:2]
    assert numbers(connection, ids) == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delay": 3600, "priority": -7, "queue": "late", "max_attempts": 9},
        {"expires_in": 60, "timeout": 5, "tags": ["a", 'quo"ted'], "meta": {"from": "line\nbreak"}},
        {"retry": RetryPolicy(delay=5), "wake": False},
    ],
    ids=["none", "delayed", "tagged", "retried"],
)
def test_many_jobs_alike_are_the_rows_that_one_enqueue_each_would_have_made(
    options: Any, number: Task[..., Any], app: PgQueue, connection: Look
) -> None:
    calls = [(2, "line\nbreak"), (1, "\u2028 \u0085 \r\n"), (3, "plain")]
    task = number.options(**options)
    alike = task.enqueue_many(connection, calls)
    mixed = app.enqueue_many(connection, [task.job(*call) for call in calls] + [number.job(0)])[:-1]
    single = [task.enqueue(connection, *call).id for call in calls]
    look = (
        "select queue, task, priority, round(extract(epoch from run_at - created_at)), max_attempts,"
        " expires_at - run_at, timeout, args, retry, unique_key, tags, meta, state, attempt, fence"
        " from pgqueue.jobs where id = any(%s) order by id"
    )
    rows = [connection.execute(look, [ids]).fetchall() for ids in (alike, mixed, single)]
    assert rows[0] == rows[1] == rows[2]
    assert [row[7]["note"] for row in rows[0]] == [note for _, note in calls]


def test_large_arguments_go_in_smaller_chunks_so_that_no_statement_outgrows_memory(
    number: Task[..., Any], connection: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    insert = db.enqueue_alike
    monkeypatch.setattr(db, "enqueue_alike", lambda sql, row: (sizes.append(len(row["args"])), insert(sql, row))[1])
    ids = number.enqueue_many(connection, ((n, "x" * 200_000) for n in range(100)))
    assert numbers(connection, ids) == list(range(100))
    assert len(sizes) == 3
    assert max(sizes) < BULK_CHARS + 300_000


def test_arguments_that_somebody_wrote_by_hand_over_several_lines_stay_one_job_each(
    app: PgQueue, number: Task[..., Any], connection: Look
) -> None:
    options = number.job(0).options
    ids = app.enqueue_many(
        connection, [NewJob("number", '{\n"n": 1\n}', options), NewJob("number", '{"n": 2}', options)]
    )
    assert numbers(connection, ids) == [1, 2]
