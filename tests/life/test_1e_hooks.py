"""Hooks see each job that Python enqueues before any SQL, and may change its options or refuse it."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from pgqueue import ConfigurationError, EnqueueError, InvalidOption
from pgqueue.enqueue import NewJob


@pytest.fixture
def task(app):
    @app.task(name="test.task", queue="mail")
    def task(number: int) -> None: ...

    return task


def stored(connection):
    rows = connection.execute("select args ->> 'number', queue, priority, meta from pgqueue.jobs order by id")
    return [(int(number), queue, priority, meta) for number, queue, priority, meta in rows]


def ways(app, task, connection, url):
    """Every way to enqueue one job from Python."""

    async def awaited() -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as raw:
            await task.enqueue(raw, 6)
            await task.enqueue_many(raw, [(7,)])
        await task.delay_async(8)
        await app.close_async()

    task.enqueue(connection, 1)
    task.options(priority=5).enqueue(connection, 2)
    task.enqueue_many(connection, [(3,), {"number": 4}])
    app.enqueue_many(connection, [task.job(5)])
    asyncio.run(awaited())
    task.delay(9)


def test_each_way_of_enqueueing_has_its_job_changed_in_the_order_of_registration(
    app, task, connection, pgqueue_database
):
    seen = []

    @app.before_enqueue
    def traced(new: NewJob) -> NewJob:
        return new.replace(meta={**(new.options.meta or {}), "trace": new.task})

    @app.before_enqueue
    def raised(new: NewJob) -> NewJob | None:
        seen.append((new.args, new.options.queue, new.options.meta["trace"]))
        return new.replace(priority=new.options.priority + 1) if new.options.priority else None

    ways(app, task, connection, pgqueue_database)
    assert sorted(stored(connection)) == [
        (number, "mail", 6 if number == 2 else 0, {"trace": "test.task"}) for number in range(1, 10)
    ]
    assert sorted(seen) == [(f'{{"number":{number}}}', "mail", "test.task") for number in range(1, 10)]


def test_a_refusal_is_the_callers_error_before_any_sql_and_nothing_of_its_batch_is_written(app, task, connection):
    class Forbidden(Exception):
        pass

    @app.before_enqueue
    def refuse(new: NewJob) -> None:
        if new.args == '{"number":7}':
            raise Forbidden("not seven")

    with connection.transaction():
        task.enqueue(connection, 1)
        for enqueue in (
            lambda: task.enqueue(connection, 7),
            lambda: task.enqueue_many(connection, [(2,), (7,)]),
            lambda: app.enqueue_many(connection, [task.job(3), task.job(7)]),
            lambda: task.enqueue_many(connection, ((number,) for number in [*[2] * 5_000, 7])),  # in its second chunk
        ):
            with pytest.raises(Forbidden, match="not seven"):
                enqueue()
    with pytest.raises(Forbidden):
        task.delay(7)
    assert stored(connection) == [(1, "mail", 0, None)]
    refused = psycopg.Connection.connect(connection.info.dsn, password=connection.info.password)
    refused.close()
    with pytest.raises(Forbidden):  # the hook comes before the connection is looked at, let alone asked
        task.enqueue(refused, 7)


def test_sql_enqueues_and_unqueued_jobs_have_no_hooks(app, task, connection):
    @app.before_enqueue
    def refuse(new: NewJob) -> None:
        raise AssertionError(new)

    task.job(1)
    connection.execute("""select pgqueue.enqueue('test.task', '{"number": 1}')""")
    assert [number for number, *_ in stored(connection)] == [1]


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (lambda new: 7, EnqueueError, "must return a NewJob or None, not int"),
        (lambda new: NewJob(new.task, "{}", new.options), EnqueueError, "not its task or arguments"),
        (lambda new: NewJob("other", new.args, new.options), EnqueueError, "not its task or arguments"),
        (lambda new: new.replace(priority=1_000), InvalidOption, "priority must be between -100 and 100, not 1000"),
        (lambda new: new.replace(colour="red"), InvalidOption, "a job has no option 'colour'"),
        (lambda new: new.replace(meta={"a": {1, 2}}), EnqueueError, "meta.a is a set"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_by_name(app, task, connection, answer, error, sentence):
    app.before_enqueue(answer)
    with pytest.raises(error, match=sentence) as refused:
        task.enqueue(connection, 1)
    assert "\n" not in str(refused.value)
    assert stored(connection) == []


async def awaited(new):
    return new


def yields(new):
    yield new


def nothing():
    return None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (awaited, "awaited must be a plain def: a sync enqueue could not await it"),
        (yields, "yields must return, not yield"),
        (nothing, "nothing must take one argument"),
        (7, "a def that takes a NewJob, not int"),
    ],
)
def test_what_cannot_be_a_hook_is_refused_in_one_line(app, given, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        app.before_enqueue(given)
