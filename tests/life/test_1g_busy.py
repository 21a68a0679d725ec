"""Step 1, a connection that is in the middle of something: a pipeline, a stream, another thread, another loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from pgqueue import PgQueue, SchemaError, Task, UniqueKeyTaken, UnusableConnection, control
from pgqueue.drivers import perform_either
from pgqueue.drivers import psycopg as driver
from pgqueue.enqueue import enqueue_many_steps
from tests.helpers import eventually, job_in
from tests.life.callers import ASYNC, AUTOCOMMIT, SYNC, caller, done, sqlalchemy_url
from tests.life.workbench import names

Look = psycopg.Connection[Any]
PSYCOPG = ["psycopg.Connection", "psycopg.AsyncConnection"]


# -- a pipeline of psycopg --------------------------------------------------------------------------------------------


def many(app: PgQueue, to: Any, jobs: Any, chunk: int) -> Any:
    return perform_either(to, enqueue_many_steps(app.statements, jobs, chunk))


class Pipeline:
    """`with connection.pipeline()`, sync or async."""

    def __init__(self, connection: Any) -> None:
        self._block = connection.pipeline()

    async def __aenter__(self) -> Any:
        sync = hasattr(self._block, "__enter__")
        return self._block.__enter__() if sync else await self._block.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        sync = hasattr(self._block, "__exit__")
        self._block.__exit__(*error) if sync else await self._block.__aexit__(*error)


CALLS: dict[str, Callable[[PgQueue, Task[..., Any], Any], Any]] = {
    "enqueue": lambda app, send, to: send.enqueue(to, "a"),
    "enqueue_many": lambda app, send, to: send.enqueue_many(to, [("b",), ("c",)]),
    "mixed": lambda app, send, to: app.enqueue_many(to, [send.job("d"), send.options(priority=3).job("e")]),
    "chunks": lambda app, send, to: many(app, to, (send.job(name) for name in "fghij"), 2),
    "unique": lambda app, send, to: send.options(unique_key="k").enqueue(to, "k"),
    "unique again": lambda app, send, to: send.options(unique_key="k").enqueue(to, "not this one"),
    "replace": lambda app, send, to: send.options(unique_key="k", on_conflict="replace").enqueue(to, "l"),
    "unique, many": lambda app, send, to: send.options(unique_key="k").enqueue_many(to, [("m",), ("m",)]),
    "claimed": lambda app, send, to: send.options(unique_key="k", unique_until="claimed").enqueue(to, "n"),
    "period": lambda app, send, to: send.options(unique_key="k", unique_for=60).enqueue(to, "o"),
}


@pytest.mark.parametrize("isolation", [None, "SERIALIZABLE"])
@pytest.mark.parametrize("kind", PSYCOPG)
def test_in_a_pipeline_every_enqueue_says_what_it_says_elsewhere_and_writes_each_job_once(
    kind: str, isolation: str | None, app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database, isolation) as mine:
            said = {}
            async with Pipeline(mine.connection):
                await done(mine.connection.execute("select 'sent before'"))
                for name, call in CALLS.items():
                    said[name] = await done(call(app, send, mine.connection))
            assert names(connection) == []
            assert [job.existing for job in (said["unique"], said["unique again"], said["replace"])] == [0, 1, 1]
            assert said["unique again"].id == said["unique"].id == said["replace"].id
            assert said["unique, many"] == [said["unique"].id] * 2
            made = [said["enqueue"].id, *said["enqueue_many"], *said["mixed"], *said["chunks"], said["unique"].id]
            made += [said["claimed"].id, said["period"].id]
            assert await mine.execute("select array_agg(id order by id) from pgqueue.jobs") == [(made,)]
            await mine.commit()

    asyncio.run(application())
    assert names(connection) == [*"abcdefghijlno"]


@pytest.mark.parametrize("kind", PSYCOPG)
def test_in_a_pipeline_a_rollback_takes_the_jobs_along(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            with suppress(ZeroDivisionError):
                async with Pipeline(mine.connection):
                    await done(send.enqueue(mine.connection, "a"))
                    raise ZeroDivisionError
            await mine.rollback()
            await done(send.enqueue(mine.connection, "b"))
            await mine.commit()

    asyncio.run(application())
    assert names(connection) == ["b"]


@pytest.mark.parametrize("kind", PSYCOPG)
def test_in_a_pipeline_that_commits_by_itself_a_job_is_part_of_what_its_sync_commits(
    kind: str, app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    connection.execute("create table own_work (id int primary key)")

    async def application() -> None:
        async with caller(kind, pgqueue_database, AUTOCOMMIT) as mine:
            with suppress(psycopg.errors.UniqueViolation):
                async with Pipeline(mine.connection):
                    await done(mine.connection.execute("insert into own_work values (1)"))
                    await done(send.enqueue(mine.connection, "undone with what is wrong behind it"))
                    await done(mine.connection.execute("insert into own_work values (1)"))
            assert names(connection) == []
            async with Pipeline(mine.connection):
                await done(mine.connection.execute("insert into own_work values (2)"))
                assert await done(send.options(unique_key="k").enqueue(mine.connection, "a"))
                for call in ("chunks", "replace", "unique, many"):
                    with pytest.raises(UnusableConnection, match=r"all or none.*connection\.transaction\(\)"):
                        await done(CALLS[call](app, send, mine.connection))
                await done(send.enqueue_many(mine.connection, [("b",)]))  # and it is usable still
            assert names(connection) == ["a", "b"]
            async with Pipeline(mine.connection), mine.savepoint():
                for call in ("chunks", "unique, many"):
                    await done(CALLS[call](app, send, mine.connection))

    asyncio.run(application())
    assert names(connection) == ["a", *"bfghij"]
    assert connection.execute("select id from own_work").fetchall() == [(2,)]


@pytest.mark.parametrize("kind", PSYCOPG)
def test_in_a_pipeline_whose_earlier_statement_has_failed_that_is_said(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            with suppress(psycopg.Error):
                async with Pipeline(mine.connection):
                    await done(mine.connection.execute("select 1 / 0"))
                    with pytest.raises(UnusableConnection, match=r"earlier statement.*DivisionByZero.*roll back"):
                        await done(send.enqueue(mine.connection, "a"))
                    with pytest.raises(UnusableConnection, match="aborted by an earlier error"):
                        await done(send.enqueue(mine.connection, "a"))
            await mine.rollback()
            with suppress(psycopg.Error):
                async with Pipeline(mine.connection):
                    with pytest.raises(SchemaError, match="no pgqueue tables"):
                        await done(elsewhere.enqueue(mine.connection))
            await mine.rollback()
            await done(send.enqueue(mine.connection, "after the rollback"))
            await mine.commit()

    elsewhere = PgQueue(pgqueue_database, schema="elsewhere").task(name="t")(lambda: None)
    asyncio.run(application())
    assert names(connection) == ["after the rollback"]


@pytest.mark.parametrize("kind", PSYCOPG)
def test_in_a_pipeline_an_operator_steers_and_redrives(
    kind: str, app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    doomed, kept = send.delay("doomed"), send.delay("kept")
    dead = job_in(app, connection, "dead", task="send.dead")
    holder = send.options(unique_key="k").delay("holder")
    taken = job_in(app, connection, "dead", task="send.taken")
    connection.execute("update pgqueue.dead_jobs set unique_key = 'k' where id = %s", [taken])

    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            async with Pipeline(mine.connection):
                assert await done(app.jobs.cancel(doomed.id, connection=mine.connection)) is True
                assert await done(app.jobs.cancel(task="nope", connection=mine.connection)) == []
                assert await done(app.jobs.change(kept.id, priority=7, connection=mine.connection)) is True
                assert await done(app.jobs.retry_now(kept.id, connection=mine.connection)) is False
                await done(app.queues.pause("mail", connection=mine.connection))
                assert await done(app.queues.resume("mail", connection=mine.connection)) is True
                for expected in ([dead], []):
                    steps = control.redrive(app.statements, ids=[dead])
                    assert await done(perform_either(mine.connection, steps)) == expected
                with pytest.raises(UniqueKeyTaken, match=f"live job {holder.id}"):
                    await done(perform_either(mine.connection, control.redrive(app.statements, ids=[taken])))
            await mine.commit()

    asyncio.run(application())
    found = connection.execute("select id, priority from pgqueue.jobs order by id").fetchall()
    assert found == [(kept.id, 7), (dead, 0), (holder.id, 0)]


# -- a stream, a copy, a wait for notifications ---------------------------------------------------------------------


READERS = {
    "stream": lambda to: to.cursor().stream("select generate_series(1, 5)"),
    "copy": lambda to: to.cursor().copy("copy (select generate_series(1, 5)) to stdout"),
    "notifies": lambda to: to.notifies(timeout=60),
}


@pytest.mark.parametrize("reader", READERS)
def test_while_its_own_thread_reads_from_a_psycopg_connection_that_is_said_and_it_stays_usable(
    reader: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    def refuses(to: Any) -> None:
        with pytest.raises(UnusableConnection, match=r"stream\(\), copy\(\) or notifies\(\) is open"):
            send.enqueue(to, "a")

    with psycopg.connect(pgqueue_database) as mine:
        mine.execute("listen own")
        mine.commit()
        connection.execute("notify own")
        if reader == "copy":
            with READERS[reader](mine) as copy:
                refuses(mine)
                assert len(list(copy)) == 5
        else:
            reading = READERS[reader](mine)
            next(reading)
            refuses(mine)
            reading.close()
        mine.rollback()
        send.enqueue(mine, "afterwards")

    async def application() -> None:
        mine = await psycopg.AsyncConnection.connect(pgqueue_database)
        await mine.execute("listen own")
        await mine.commit()
        connection.execute("notify own")
        if reader == "copy":
            async with READERS[reader](mine) as copy:
                await refused(mine)
                assert len([row async for row in copy]) == 5
        else:
            reading = READERS[reader](mine)
            await anext(reading)
            await refused(mine)
            await reading.aclose()
        await mine.rollback()
        await send.enqueue(mine, "afterwards")
        await mine.commit()
        await mine.close()

    async def refused(to: Any) -> None:
        with pytest.raises(UnusableConnection, match=r"stream\(\), copy\(\) or notifies\(\) is open"):
            await send.enqueue(to, "a")

    asyncio.run(application())
    assert names(connection) == ["afterwards"] * 2


@pytest.mark.parametrize("kind", PSYCOPG)
def test_who_waits_longer_for_anothers_statement_is_not_refused(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def ask(raw: Any) -> bool:
        asked.append(is_being_read(raw))
        return asked[-1]

    is_being_read = driver._is_being_read
    monkeypatch.setattr(driver, "_is_being_read", ask)
    monkeypatch.setattr(driver, "_TURN", 0.01)
    connection.execute("select pg_advisory_lock(7)")

    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            with ThreadPoolExecutor(2) as threads:
                if kind == "psycopg.Connection":
                    long = threads.submit(mine.connection.execute, "select pg_advisory_xact_lock(7)")
                    eventually(lambda: connection.execute(LOCKED).fetchone() == (1,))
                    waits = threads.submit(send.enqueue, mine.connection, "afterwards")
                    eventually(lambda: asked)
                    connection.execute("select pg_advisory_unlock(7)")
                    long.result(10)
                    waits.result(10)
                else:
                    sql = mine.connection.execute("select pg_advisory_xact_lock(7)")
                    tasks = [asyncio.ensure_future(one) for one in (sql, send.enqueue(mine.connection, "afterwards"))]
                    while not asked:
                        await asyncio.sleep(0.01)
                    connection.execute("select pg_advisory_unlock(7)")
                    await asyncio.gather(*tasks)
            await mine.commit()

    asyncio.run(application())
    assert asked == [False]
    assert names(connection) == ["afterwards"]


# -- another thread, another loop -----------------------------------------------------------------------------------


LOCKED = "select count(*)::int from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


@pytest.mark.parametrize("kind", SYNC)
def test_a_connection_on_which_another_thread_enqueues_is_refused_or_its_turn_is_waited_for(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    """psycopg's and psycopg2's own connections serve several threads, SQLAlchemy's do not, Django's only their own, and
    a scoped session is another in each thread."""
    held = send.options(unique_key="k")

    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            with psycopg.connect(pgqueue_database) as holder, ThreadPoolExecutor(2) as threads:
                held.enqueue(holder, "holder")
                first = (lambda to: held.enqueue(to, "first"),)
                if kind == "django.db.connection":
                    raw = mine.connection.connection
                    refused = threads.submit(send.enqueue, django_wrapper(mine.connection), "theirs")
                    with pytest.raises(UnusableConnection, match="another thread"):
                        refused.result(10)
                    assert raw is mine.connection.connection
                    holder.rollback()
                    return
                waits = threads.submit(first[0], mine.connection)
                eventually(lambda: connection.execute(LOCKED).fetchone() == (1,))
                if kind.partition(" on ")[0] in ("Session", "Connection"):
                    other = threads.submit(send.enqueue, mine.connection, "second")
                    with pytest.raises(UnusableConnection, match=r"another thread.*give each thread its own"):
                        other.result(10)
                    holder.rollback()
                    waits.result(10)
                    await done(send.enqueue(mine.connection, "second"))  # handed over
                else:
                    other = threads.submit(send_and_commit, mine.connection)
                    holder.rollback()
                    waits.result(10)
                    other.result(10)
                    if kind == "scoped_session":
                        threads.submit(mine.connection.commit).result(10)
            await mine.commit()

    def send_and_commit(to: Any) -> None:
        send.enqueue(to, "second")
        if kind == "scoped_session":
            to.commit()

    def django_wrapper(proxy: Any) -> Any:
        from django.db import connections

        return connections[proxy._alias]

    asyncio.run(application())
    assert "second" in names(connection) or kind == "django.db.connection"


@pytest.mark.parametrize("kind", ASYNC)
def test_an_async_connection_of_another_event_loop_is_refused_while_that_one_is_open(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            await send.enqueue(mine.connection, "here")

            def elsewhere(call: Callable[[Any], Any]) -> None:
                with pytest.raises(UnusableConnection, match="another event loop"):
                    asyncio.run(done(call(mine.connection)))

            for call in (lambda to: send.enqueue(to, "a"), lambda to: send.enqueue_many(to, [("a",), ("b",)])):
                await asyncio.to_thread(elsewhere, call)
            await send.enqueue(mine.connection, "and back")
            await mine.commit()

    asyncio.run(application())
    assert names(connection) == ["here", "and back"]


def test_a_psycopg_connection_whose_loop_has_ended_may_go_to_another(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    """Its connections are bound to no loop: an asyncio.run() may begin where one has ended."""

    async def opened() -> psycopg.AsyncConnection[Any]:
        mine = await psycopg.AsyncConnection.connect(pgqueue_database)
        await send.enqueue(mine, "in the first")
        return mine

    async def used(mine: psycopg.AsyncConnection[Any]) -> None:
        await send.enqueue(mine, "in the second")
        await mine.commit()
        await mine.close()

    asyncio.run(used(asyncio.run(opened())))
    assert names(connection) == ["in the first", "in the second"]


def test_a_session_may_go_from_thread_to_thread(send: Task[..., Any], connection: Look, pgqueue_database: str) -> None:
    engine = create_engine(sqlalchemy_url(pgqueue_database))
    with Session(engine) as session:
        for name in "abc":
            thread = threading.Thread(target=send.enqueue, args=(session, name))
            thread.start()
            thread.join()
        session.commit()
    engine.dispose()
    assert names(connection) == ["a", "b", "c"]
