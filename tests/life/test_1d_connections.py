"""Step 1, the connection: what is special about each library's, and what is said of one that cannot take a job."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
from django.core.cache import cache as django_cache
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError as DjangoIntegrityError
from django.db import connections as django_connections
from django.db import transaction as django_transaction
from django.db.backends.sqlite3.base import DatabaseWrapper as DjangoOnSqlite
from psycopg.pq import TransactionStatus
from psycopg2 import extras
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgqueue import PgQueue, SchemaError, Task, UnusableConnection
from pgqueue.drivers import is_async, perform, perform_async, perform_either, sqlstate
from pgqueue.drivers.asyncpg import check as asyncpg_check
from pgqueue.drivers.steps import numbered
from pgqueue.embedded import EmbeddedPostgres
from pgqueue.enqueue import enqueue_many_steps
from pgqueue.migrate import head, upgrade
from pgqueue.testing import _temp_dir
from tests.life.callers import ASYNC, AUTOCOMMIT, KINDS, Undo, caller, django_database, done, sqlalchemy_url
from tests.life.workbench import Ears, names

Look = psycopg.Connection[Any]

CANARY = "cAnArY"  # an argument that no message may show


# -- every kind -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_is_awaited_where_the_connection_is_async_and_nowhere_else(
    kind: str, app: PgQueue, send: Task[..., Any], pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            assert is_async(mine.connection) is (kind in ASYNC)
            steps = enqueue_many_steps(app.statements, [send.job("a")])
            wrong = _sync if kind in ASYNC else perform_async
            with pytest.raises(UnusableConnection, match="await"):
                await wrong(mine.connection, steps)

    asyncio.run(application())


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_may_only_read_is_named_before_any_sql_and_its_transaction_stays_usable(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    connection.execute("do $$ begin execute format('alter database %I set default_transaction_read_only = on', "
                       "current_database()); end $$")  # fmt: skip

    async def application(isolation: str | None) -> None:
        async with caller(kind, pgqueue_database, isolation) as mine:
            if kind.startswith("asyncpg") and isolation is None:
                return  # has begun before pgqueue could see it: the next test
            for call in (
                lambda: send.enqueue(mine.connection, "a"),
                lambda: send.enqueue_many(mine.connection, [("a",)]),
            ):
                with pytest.raises(UnusableConnection, match="read-only"):
                    await done(call())
            assert await mine.execute("select count(*)::int from pgqueue.jobs") == [(0,)]

    asyncio.run(application(None))
    asyncio.run(application(AUTOCOMMIT))


@pytest.mark.parametrize("kind", KINDS)
def test_a_transaction_that_was_made_read_only_is_named_by_what_the_server_says_and_can_be_rolled_back(
    kind: str, app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            for call in (
                lambda: send.enqueue(mine.connection, "a"),
                lambda: perform_either(
                    mine.connection, enqueue_many_steps(app.statements, (send.job(n) for n in "abcde"), chunk=2)
                ),
            ):
                await mine.execute("set transaction read only")
                with pytest.raises(UnusableConnection, match="read-only") as refused:
                    await done(call())
                assert "\n" not in str(refused.value)
                await mine.rollback()
            await done(send.enqueue(mine.connection, "may write"))
            await mine.commit()

    asyncio.run(application())
    assert names(connection) == ["may write"]


def test_a_transaction_that_its_library_calls_read_only_is_refused_before_any_sql(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    def refuses(to: Any) -> None:
        with pytest.raises(UnusableConnection, match="read-only"):
            send.enqueue(to, "a")

    with psycopg.connect(pgqueue_database) as mine:
        mine.read_only = True
        refuses(mine)
        assert mine.info.transaction_status == TransactionStatus.IDLE
    with closing(psycopg2.connect(pgqueue_database)) as old:
        old.set_session(readonly=True)
        refuses(old)
    for driver in ("psycopg", "psycopg2"):
        engine = create_engine(sqlalchemy_url(pgqueue_database, driver))
        with engine.connect().execution_options(postgresql_readonly=True) as to:
            assert to.execute(text("select 1")).all() == [(1,)]
            refuses(to)
            assert to.execute(text("select 1")).all() == [(1,)]
        engine.dispose()

    async def application() -> None:
        mine = await asyncpg.connect(pgqueue_database)
        async with mine.transaction(readonly=True):
            with pytest.raises(UnusableConnection, match="read-only"):
                await send.enqueue(mine, "a")
            assert await mine.fetchval("select 1") == 1
        await mine.close()
        engine = create_async_engine(sqlalchemy_url(pgqueue_database, "asyncpg"))
        async with engine.connect() as to:
            to = await to.execution_options(postgresql_readonly=True)
            with pytest.raises(UnusableConnection, match="read-only"):
                await send.enqueue(to, "a")
            assert (await to.execute(text("select 1"))).all() == [(1,)]
        await engine.dispose()

    asyncio.run(application())
    assert names(connection) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_bulk_enqueue_leaves_no_transaction_open_on_a_connection_that_commits_by_itself(
    kind: str, app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    class Interrupted(BaseException): ...

    def jobs() -> Iterator[Any]:
        yield from (send.job(n) for n in "abcde")
        raise Interrupted

    async def application() -> None:
        async with caller(kind, pgqueue_database, AUTOCOMMIT) as mine:
            with pytest.raises(Interrupted):
                await done(perform_either(mine.connection, enqueue_many_steps(app.statements, jobs(), chunk=2)))
            await done(send.enqueue(mine.connection, "by itself again"))
            assert names(connection) == ["by itself again"]

    asyncio.run(application())


def test_a_cancelled_bulk_enqueue_leaves_no_transaction_open(
    app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application(connect: Callable[[], Any]) -> None:
        mine = await connect()
        with psycopg.connect(pgqueue_database) as holder:
            send.options(unique_key="k").enqueue(holder, "holder")
            jobs = [send.job("a"), send.job("b"), send.options(unique_key="k").job("waits")]
            waiting = asyncio.ensure_future(
                done(perform_either(mine, enqueue_many_steps(app.statements, jobs, chunk=2)))  # type: ignore[arg-type]
            )
            locked = (
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            )
            while connection.execute(locked).fetchone() != (1,):
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            holder.rollback()
        await send.enqueue(mine, "by itself again")
        await mine.close()

    asyncio.run(application(lambda: asyncpg.connect(pgqueue_database)))
    asyncio.run(application(lambda: psycopg.AsyncConnection.connect(pgqueue_database, autocommit=True)))
    assert names(connection) == ["by itself again"] * 2


async def _sync(connection: Any, steps: Any) -> None:
    perform(connection, steps)


# -- what is no connection, or not here -----------------------------------------------------------------------------


def test_pools_and_handlers_are_refused_with_what_to_pass_instead(send: Task[..., Any], pgqueue_database: str) -> None:
    pool = ConnectionPool(pgqueue_database, min_size=0, max_size=1, open=False)
    with pytest.raises(UnusableConnection, match=r"ConnectionPool is no connection.*handed out"):
        send.enqueue(pool, "a")
    with pytest.raises(UnusableConnection, match=r"ConnectionHandler.*django\.db\.connection"):
        send.enqueue(django_connections, "a")
    with pytest.raises(UnusableConnection, match="to no database"):
        send.enqueue(django_cache, "a")  # a ConnectionProxy, too

    async def application() -> None:
        async with asyncpg.create_pool(pgqueue_database, min_size=0) as pool:
            with pytest.raises(UnusableConnection, match=r"Pool is no connection.*handed out"):
                send.enqueue(pool, "a")

    asyncio.run(application())


def test_a_connection_of_a_psycopg_pool_is_as_good_as_any(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    with ConnectionPool(pgqueue_database, min_size=1, open=True) as pool:
        with pool.connection() as mine:
            send.enqueue(mine, "a")
        assert names(connection) == ["a"]
        with suppress(Undo), pool.connection() as mine:
            send.enqueue(mine, "b")
            raise Undo
    assert names(connection) == ["a"]


def test_a_fork_is_told_that_the_connection_is_its_parents(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    engine = create_engine(sqlalchemy_url(pgqueue_database, "psycopg2"))
    with (
        psycopg.connect(pgqueue_database) as mine,
        Session(engine) as session,
        closing(psycopg2.connect(pgqueue_database)) as old,
    ):
        for to in (mine, session, old):
            send.enqueue(to, "parent")
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                said = b"nothing"
                try:
                    send.enqueue(to, "child")
                except UnusableConnection as error:
                    said = str(error).encode()
                finally:
                    os.write(writing, said)
                    os._exit(0)  # closing nothing of the parent's
            os.waitpid(child, 0)
            assert f"opened by process {os.getpid()}, and this is a fork" in os.read(reading, 1000).decode()
            os.close(reading)
            os.close(writing)
            send.enqueue(to, "parent again")
            to.commit()
    engine.dispose()
    assert names(connection) == ["parent", "parent again"] * 3


def in_a_fork(call: Callable[[], object]) -> str:
    """What `call` gives in a child of this process, or raises, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = str(call())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)  # closing nothing of the parent's
    os.waitpid(child, 0)
    try:
        return os.read(reading, 10_000).decode()
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.skipif(sys.platform != "linux", reason="sockets have no inodes here")
def test_a_fork_is_told_so_of_a_connection_on_which_nobody_has_enqueued_before(
    send: Task[..., Any], connection: Look, pgqueue_database: str, request: pytest.FixtureRequest
) -> None:
    engine = create_engine(sqlalchemy_url(pgqueue_database, "psycopg"))
    request.addfinalizer(engine.dispose)  # also where there is no Django for this PostgreSQL, and the rest is skipped
    pooled = engine.connect()
    pooled.close()  # it waits in the pool, which the child has a copy of
    theirs = f"UnusableConnection: the connection was opened by process {os.getpid()}, and this is a fork of it"

    def with_pool() -> None:
        with Session(engine) as session, session.begin():
            send.enqueue(session, "child")

    with (
        psycopg.connect(pgqueue_database) as mine,
        closing(psycopg2.connect(pgqueue_database)) as old,
        django_database(pgqueue_database) as (django, _),
    ):
        django.ensure_connection()
        for to in (mine, old, django):
            assert in_a_fork(lambda to=to: send.enqueue(to, "child")).startswith(theirs)
        assert in_a_fork(with_pool).startswith(theirs)
        assert in_a_fork(lambda: in_a_fork(lambda: send.enqueue(mine, "grandchild"))).startswith(theirs)
        assert names(mine) == []  # and in step with the server: nothing of it has got there
        for to in (mine, old):
            send.enqueue(to, "parent")
            to.commit()

    async def application() -> None:
        raw = await asyncpg.connect(pgqueue_database)
        assert in_a_fork(lambda: asyncpg_check(raw)).startswith(theirs)
        await send.enqueue(raw, "parent")
        await raw.close()

    asyncio.run(application())

    def opened_here() -> str:
        engine.dispose(close=False)
        with_pool()
        with psycopg.connect(pgqueue_database) as own:
            send.enqueue(own, "child")
        return "done"

    assert in_a_fork(opened_here) == "done"
    assert names(connection) == ["parent"] * 3 + ["child"] * 2


# SQLAlchemy makes the coroutine that connects before it notices that nobody can await it.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine object .*connect")
@pytest.mark.filterwarnings("ignore:coroutine '.*connect' was never awaited")
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_sync_side_of_an_async_session_works_inside_run_sync_and_is_explained_elsewhere(
    driver: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        engine = create_async_engine(sqlalchemy_url(pgqueue_database, driver))
        async with AsyncSession(engine) as session:
            with pytest.raises(UnusableConnection, match=r"sync side.*run_sync"):
                send.enqueue(session.sync_session, "before it has connected")
            await session.rollback()
            await session.connection()
            with pytest.raises(UnusableConnection, match=r"sync side.*run_sync"):
                send.enqueue(session.sync_session, "on its connection")
            await session.run_sync(lambda inner: send.enqueue(inner, "inside"))
            assert await session.run_sync(lambda inner: send.enqueue_many(inner, [("many",)]))
            await session.commit()
            await session.run_sync(lambda inner: send.enqueue(inner, "rolled back"))
            await session.rollback()
        unstarted = engine.connect()
        with pytest.raises(UnusableConnection, match="never started"):
            await send.enqueue(unstarted, "a")
        await engine.dispose()

    asyncio.run(application())
    assert names(connection) == ["inside", "many"]


def test_threads_that_share_a_psycopg_connection_take_turns_in_its_one_transaction(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    with psycopg.connect(pgqueue_database) as mine, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: send.enqueue(mine, str(n)), range(40)))
        assert names(connection) == []
    assert sorted(names(connection), key=int) == [str(n) for n in range(40)]


# -- asyncpg ----------------------------------------------------------------------------------------------------------


class OwnRecord(asyncpg.Record): ...


class OwnConnection(asyncpg.Connection): ...


@pytest.mark.parametrize(
    "settings",
    [
        {"record_class": OwnRecord},
        {"connection_class": OwnConnection},
        {"statement_cache_size": 0},
        {"server_settings": {"search_path": "nowhere", "timezone": "Asia/Tokyo", "DateStyle": "SQL, DMY"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_how_an_application_set_up_asyncpg_does_not_matter(
    settings: dict[str, Any], app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        mine = await asyncpg.connect(pgqueue_database, **settings)
        for kind in ("json", "jsonb"):  # the usual way to read JSON with asyncpg
            await mine.set_type_codec(kind, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        unique = send.options(unique_key="k", delay=60, meta={"a": [1]}, tags=["t"])
        job = await unique.enqueue(mine, "a")
        again = await unique.enqueue(mine, "b")
        assert (again.id, again.existing, again.run_at) == (job.id, True, job.run_at)
        assert job.run_at is not None
        assert job.created_at is not None
        assert job.run_at - job.created_at == timedelta(seconds=60)
        await app.enqueue_many(mine, [send.options(meta={"a": [1]}, tags=["t"]).job("c")])
        await mine.close()

    asyncio.run(application())
    found = connection.execute("select args, meta, tags from pgqueue.jobs order by id").fetchall()
    assert found == [({"name": "a"}, {"a": [1]}, ["t"]), ({"name": "c"}, {"a": [1]}, ["t"])]


def test_an_asyncpg_connection_that_cannot_take_a_job_is_named(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with asyncpg.create_pool(pgqueue_database, min_size=1, max_size=1) as pool:
            async with pool.acquire() as mine:
                await send.enqueue(mine, "in a pool")
            with pytest.raises(UnusableConnection, match="released back to the pool"):
                await send.enqueue(mine, "a")
        mine = await asyncpg.connect(pgqueue_database)
        busy = asyncio.ensure_future(mine.execute("select pg_sleep(0.2)"))
        await asyncio.sleep(0)
        with pytest.raises(UnusableConnection, match="another operation is in progress"):
            await send.enqueue(mine, "a")
        await busy
        elsewhere = await asyncio.to_thread(lambda: _raised(lambda: asyncio.run(done(send.enqueue(mine, "a")))))
        assert "another event loop" in str(elsewhere)
        await send.enqueue(mine, "and back")
        await mine.close()
        with pytest.raises(UnusableConnection, match="closed"):
            await send.enqueue(mine, "a")

    asyncio.run(application())
    assert names(connection) == ["in a pool", "and back"]


def _raised(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except UnusableConnection as error:
        return error
    return None


def test_an_error_on_asyncpg_is_asyncpgs_own_also_below_sqlalchemy(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    connection.execute("alter table pgqueue.jobs add constraint own check (args ->> 'name' <> 'bad')")

    async def application() -> None:
        for kind in ("AsyncSession on asyncpg", "asyncpg.Connection"):
            async with caller(kind, pgqueue_database) as mine:
                with pytest.raises(asyncpg.CheckViolationError):
                    await send.enqueue(mine.connection, "bad")
                await mine.rollback()
                await send.enqueue(mine.connection, "good")
                await mine.commit()

    asyncio.run(application())
    assert names(connection) == ["good"] * 2


# -- psycopg2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [extras.RealDictCursor, extras.NamedTupleCursor, extras.DictCursor])
def test_the_cursor_factory_of_a_psycopg2_application_does_not_matter(
    factory: Any, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    unique = send.options(unique_key="k", tags=["a", "b"], meta={"a": "50%"})
    with closing(psycopg2.connect(pgqueue_database, cursor_factory=factory)) as mine:
        first = unique.enqueue(mine, "100% %(name)s")
        assert unique.enqueue(mine, "again").id == first.id
        mine.commit()
    connect_args = (
        {} if factory is extras.RealDictCursor else {"cursor_factory": factory}
    )  # SQLAlchemy cannot read dicts
    engine = create_engine(sqlalchemy_url(pgqueue_database, "psycopg2"), connect_args=connect_args)
    with engine.connect() as to:
        assert unique.enqueue(to, "again").id == first.id
        send.enqueue_many(to, [("c",)])
        to.commit()  # SQLAlchemy knows that something has begun
    engine.dispose()
    assert names(connection) == ["100% %(name)s", "c"]


def test_a_psycopg2_connection_that_cannot_take_a_job_is_named(send: Task[..., Any], pgqueue_database: str) -> None:
    mine = psycopg2.connect(pgqueue_database, async_=True)
    with pytest.raises(UnusableConnection, match="asynchronous psycopg2"):
        send.enqueue(mine, "a")
    mine.close()


# -- Django -----------------------------------------------------------------------------------------------------------


def test_a_job_is_in_the_atomic_block_around_it(
    send: Task[..., Any], connection: Look, pgqueue_database: str, drain: Callable[..., None]
) -> None:
    with django_database(pgqueue_database) as (mine, alias):
        send.enqueue(mine, "at once")
        assert names(connection) == ["at once"]
        with django_transaction.atomic(using=alias):
            send.enqueue(django_connections[alias], "the wrapper itself")
            with suppress(Undo), django_transaction.atomic(using=alias):
                send.enqueue(mine, "undone with its savepoint")
                raise Undo
            told: list[list[str]] = []
            django_transaction.on_commit(lambda: told.append(names(connection)), using=alias)
        assert told == [["at once", "the wrapper itself"]]
        with suppress(Undo), django_transaction.atomic(using=alias):
            send.enqueue_many(mine, [("undone",)])
            raise Undo
        mine.set_autocommit(False)
        send.enqueue(mine, "rolled back by hand")
        mine.rollback()
        send.enqueue(mine, "committed by hand")
        mine.commit()
    drain()
    done_ones = connection.execute("select result #>> '{}' from pgqueue.finished_jobs order by id").fetchall()
    assert [row[0] for row in done_ones] == ["at once", "the wrapper itself", "committed by hand"]


def test_djangos_own_settings_for_dates_do_not_matter(
    send: Task[..., Any], pgqueue_database: str, settings_of_django: Callable[..., None]
) -> None:
    for use_tz in (True, False):
        settings_of_django(USE_TZ=use_tz, TIME_ZONE="Asia/Tokyo")
        with django_database(pgqueue_database) as (mine, _):
            job = send.options(delay=60).enqueue(mine, "a")
            assert job.run_at is not None
            assert job.run_at.tzinfo is not None
            assert job.run_at - job.created_at == timedelta(seconds=60)


@pytest.fixture
def settings_of_django(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    from django.conf import settings

    def change(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setattr(settings, name, value)

    return change


def test_djangos_query_log_does_not_see_arguments_and_its_connection_is_not_suspected(
    app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    with django_database(pgqueue_database) as (mine, _):
        mine.force_debug_cursor = True
        with mine.cursor() as cursor:
            cursor.execute("select 1")
        send.enqueue(mine, "secret")
        perform_either(mine, enqueue_many_steps(app.statements, (send.job("secret") for _ in range(5)), chunk=2))
        assert len(mine.queries) == 1
        assert not mine.errors_occurred
    assert names(connection) == ["secret"] * 6


def test_an_error_is_djangos_with_the_drivers_below_it(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    connection.execute("alter table pgqueue.jobs add constraint own check (args ->> 'name' <> 'bad')")
    with django_database(pgqueue_database) as (mine, alias):
        with pytest.raises(DjangoIntegrityError) as raised, django_transaction.atomic(using=alias):
            send.enqueue(mine, "bad")
        assert isinstance(raised.value.__cause__, psycopg.errors.CheckViolation)
        send.enqueue(mine, "good")
    assert names(connection) == ["good"]


def test_a_connection_of_djangos_that_cannot_take_a_job_is_named(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    def refuses(to: Any, match: str) -> None:
        with pytest.raises(UnusableConnection, match=match):
            send.enqueue(to, "a")

    with django_database(pgqueue_database) as (mine, alias):
        with django_transaction.atomic(using=alias):
            django_transaction.set_rollback(True, using=alias)
            refuses(mine, "atomic block was broken")
        own = django_connections[alias]
        send.enqueue(own, "mine")
        with ThreadPoolExecutor(1) as thread:
            refused = thread.submit(_raised, lambda: send.enqueue(own, "theirs")).result()
        assert "another thread" in str(refused)

        async def application() -> None:
            refuses(mine, "sync_to_async")
            await asyncio.to_thread(lambda: None)

        mine.close()
        with pytest.raises(SynchronousOnlyOperation):
            asyncio.run(_cursor(mine))
        asyncio.run(application())
        send.enqueue(mine, "opened again, as Django does")
        with django_transaction.atomic(using=alias):
            mine.close()
            refuses(mine, "closed inside its atomic block")
    sqlite = DjangoOnSqlite({"NAME": ":memory:", "OPTIONS": {}, "TIME_ZONE": None}, "sqlite")
    refuses(sqlite, r"to sqlite; pgqueue needs one to PostgreSQL")
    sqlite.close()
    assert names(connection) == ["mine", "opened again, as Django does"]


async def _cursor(connection: Any) -> None:
    connection.cursor()


# -- two-phase commit -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_phase_server() -> Iterator[str]:
    """A server that prepares transactions, which the others do not, with pgqueue's tables."""
    settings = {"max_prepared_transactions": "10", "synchronous_commit": "off"}
    with EmbeddedPostgres(temp_dir=_temp_dir(), fsync=False, settings=settings) as server:
        upgrade(server.url(), schema="pgqueue")
        yield server.url()


@pytest.fixture
def pgqueue_database_for_two_phases(two_phase_server: str) -> Iterator[str]:
    yield two_phase_server
    with psycopg.connect(two_phase_server) as connection:
        assert connection.execute("select gid from pg_prepared_xacts").fetchall() == []
        connection.execute("truncate pgqueue.jobs, pgqueue.sleepers, pgqueue.workers")


class TestTwoPhaseCommit:
    """NOTIFY forbids PREPARE TRANSACTION; while a worker sleeps an enqueue would notify it."""

    @pytest.fixture
    def app(self, pgqueue_database_for_two_phases: str) -> Iterator[PgQueue]:
        made = PgQueue(pgqueue_database_for_two_phases)
        yield made
        made.close()

    @pytest.fixture
    def connection(self, pgqueue_database_for_two_phases: str) -> Iterator[Look]:
        with psycopg.connect(pgqueue_database_for_two_phases, autocommit=True) as made:
            yield made

    @pytest.fixture
    def sleeper(self, app: PgQueue, connection: Look, pgqueue_database_for_two_phases: str) -> Iterator[Ears]:
        made = Ears(app, connection, pgqueue_database_for_two_phases)
        made.asleep("sleeper", "default")
        yield made
        made.close()

    @pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
    def test_a_session_in_two_phases_enqueues_with_wake_false(
        self, driver: str, send: Task[..., Any], connection: Look, sleeper: Ears, pgqueue_database_for_two_phases: str
    ) -> None:
        engine = create_engine(sqlalchemy_url(pgqueue_database_for_two_phases, driver))
        quiet = send.options(wake=False)
        with Session(engine, twophase=True) as session:
            with pytest.raises(UnusableConnection, match=r"two-phase.*wake=False"):
                send.enqueue(session, "would notify")
            with pytest.raises(UnusableConnection, match=r"two-phase.*wake=False"):
                send.enqueue_many(session, [("would notify",)])
            quiet.enqueue(session, "a")  # the transaction has stayed usable
            quiet.enqueue_many(session, [("b",), ("c",)])
            session.prepare()
            assert names(connection) == []
            session.commit()
            assert names(connection) == ["a", "b", "c"]
            quiet.enqueue(session, "rolled back")
            session.prepare()
            session.rollback()
        engine.dispose()
        assert names(connection) == ["a", "b", "c"]
        assert sleeper.heard() == []

    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    def test_an_async_session_in_two_phases_too(
        self, driver: str, send: Task[..., Any], connection: Look, sleeper: Ears, pgqueue_database_for_two_phases: str
    ) -> None:
        quiet = send.options(wake=False)

        async def application() -> None:
            engine = create_async_engine(sqlalchemy_url(pgqueue_database_for_two_phases, driver))
            async with AsyncSession(engine, twophase=True) as session:
                with pytest.raises(UnusableConnection, match=r"two-phase.*wake=False"):
                    await send.enqueue(session, "would notify")
                await quiet.enqueue(session, "a")  # the transaction has stayed usable
                await quiet.enqueue_many(session, [("b",)])
                await session.run_sync(lambda inner: inner.prepare())
                assert names(connection) == []
                await session.commit()
                assert names(connection) == ["a", "b"]
                await quiet.enqueue(session, "rolled back")
                await session.run_sync(lambda inner: inner.prepare())
                await session.rollback()
            await engine.dispose()

        asyncio.run(application())
        assert names(connection) == ["a", "b"]
        assert sleeper.heard() == []

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_a_psycopg2_transaction_in_two_phases_enqueues_with_wake_false(
        self, end: str, send: Task[..., Any], connection: Look, sleeper: Ears, pgqueue_database_for_two_phases: str
    ) -> None:
        class Own(psycopg2.extensions.connection): ...

        for factory in (None, Own):
            with closing(psycopg2.connect(pgqueue_database_for_two_phases, connection_factory=factory)) as mine:
                mine.tpc_begin(mine.xid(1, f"pgqueue {end}", "test"))
                for call in (send.enqueue, lambda to, name: send.enqueue_many(to, [(name,)])):
                    with pytest.raises(UnusableConnection, match=r"two-phase.*wake=False"):
                        call(mine, "would notify")
                send.options(wake=False).enqueue(mine, "a")
                mine.tpc_prepare()
                assert names(connection) == []
                getattr(mine, f"tpc_{end}")()
                assert names(connection) == (["a"] if end == "commit" else [])
                send.enqueue(mine, "in one phase")
                mine.commit()
            assert sleeper.heard() == ["sleeper"]
            connection.execute("delete from pgqueue.jobs")

    def test_the_function_of_sql_enqueues_with_wake_false(self, connection: Look, sleeper: Ears) -> None:
        connection.execute("begin")
        connection.execute("select pgqueue.enqueue('t', '{\"name\": \"a\"}', wake => false)")
        connection.execute("prepare transaction 'from sql'")
        connection.execute("commit prepared 'from sql'")
        assert names(connection) == ["a"]
        assert sleeper.heard() == []
        connection.execute("select pgqueue.enqueue('t')")
        assert sleeper.heard() == ["sleeper"]

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_a_psycopg_transaction_in_two_phases_enqueues_with_wake_false(
        self, end: str, send: Task[..., Any], connection: Look, sleeper: Ears, pgqueue_database_for_two_phases: str
    ) -> None:
        with psycopg.connect(pgqueue_database_for_two_phases) as mine:
            mine.tpc_begin(mine.xid(1, f"pgqueue {end}", "test"))
            with pytest.raises(UnusableConnection, match=r"two-phase.*wake=False"):
                send.enqueue(mine, "would notify")
            send.options(wake=False).enqueue(mine, "a")
            mine.tpc_prepare()
            assert names(connection) == []
            getattr(mine, f"tpc_{end}")()
            assert names(connection) == (["a"] if end == "commit" else [])
            send.enqueue(mine, "in one phase")
        assert sleeper.heard() == ["sleeper"]

    @pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
    def test_a_connection_of_sqlalchemys_in_two_phases_with_savepoints_batches_and_keys(
        self, driver: str, send: Task[..., Any], connection: Look, sleeper: Ears, pgqueue_database_for_two_phases: str
    ) -> None:
        engine = create_engine(sqlalchemy_url(pgqueue_database_for_two_phases, driver))
        quiet = send.options(wake=False)
        held = quiet.options(unique_key="k")
        with engine.connect() as mine:
            both = mine.begin_twophase()
            with pytest.raises(UnusableConnection, match=r"two-phase.*wake=False"):
                send.enqueue(mine, "would notify")
            quiet.enqueue(mine, "a")
            with mine.begin_nested() as savepoint:
                with pytest.raises(UnusableConnection, match=r"two-phase.*wake=False"):
                    send.enqueue_many(mine, [("would notify",)])
                quiet.enqueue(mine, "undone")
                savepoint.rollback()
            with mine.begin_nested():
                (first, second) = held.enqueue_many(mine, [("k",), ("k again",)])
                assert first == second
                with pytest.raises(UnusableConnection, match=r"two-phase.*wake=False"):
                    held.options(wake=True, on_conflict="replace").enqueue(mine, "would notify")
            assert held.options(on_conflict="replace").enqueue(mine, "replaced").id == first
            later = held.options(on_conflict="debounce", debounce_for=60, delay=5)
            assert later.enqueue_many(mine, [("debounced",)]) == [first]
            both.prepare()
            assert names(connection) == []
            both.commit()
        engine.dispose()
        assert names(connection) == ["a", "debounced"]
        assert sleeper.heard() == []

    def test_an_async_connection_of_psycopg_in_two_phases(
        self, send: Task[..., Any], connection: Look, sleeper: Ears, pgqueue_database_for_two_phases: str
    ) -> None:
        quiet = send.options(wake=False)

        async def application() -> None:
            async with await psycopg.AsyncConnection.connect(pgqueue_database_for_two_phases) as mine:
                for end in (mine.tpc_commit, mine.tpc_rollback):
                    await mine.tpc_begin(mine.xid(1, "pgqueue async", end.__name__))
                    with pytest.raises(UnusableConnection, match=r"two-phase.*wake=False"):
                        await send.enqueue(mine, "would notify")
                    async with mine.transaction():
                        await quiet.enqueue(mine, "a")
                    held = quiet.options(unique_key="k")
                    await held.enqueue_many(mine, [("k",), ("k",)])
                    await held.options(on_conflict="replace").enqueue(mine, "replaced")
                    await mine.tpc_prepare()
                    await end()
                    assert names(connection) == ["a", "replaced"]  # of the first, that was committed
                await send.enqueue(mine, "in one phase")

        asyncio.run(application())
        assert sleeper.heard() == ["sleeper"]

    def test_without_it_the_server_refuses_to_prepare_which_is_why_the_option_is_there(
        self, send: Task[..., Any], connection: Look, sleeper: Ears, pgqueue_database_for_two_phases: str
    ) -> None:
        with psycopg.connect(pgqueue_database_for_two_phases) as mine:
            send.enqueue(mine, "a")
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
                mine.execute("prepare transaction 'by hand'")
            mine.rollback()
            send.options(wake=False).enqueue(mine, "a")
            mine.execute("prepare transaction 'by hand'")
            mine.rollback()
        connection.execute("commit prepared 'by hand'")
        assert names(connection) == ["a"]


# -- without the libraries --------------------------------------------------------------------------------------------


def test_pgqueue_works_where_the_other_drivers_are_not_installed(pgqueue_database: str) -> None:
    code = f"""
import sys
import traceback
for name in ("asyncpg", "psycopg2", "django"):
    sys.modules[name] = None  # an import of it fails
import psycopg
from pgqueue import PgQueue, UnusableConnection
app = PgQueue({pgqueue_database!r})
@app.task(name="t")
def t(): ...
with psycopg.connect({pgqueue_database!r}) as connection:
    t.enqueue(connection)
t.delay()
try:
    t.enqueue(object())
except UnusableConnection:
    print(len(app.jobs.list()))
app.close()
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (finished.stdout, finished.stderr) == ("2\n", "")


# -- parameters -------------------------------------------------------------------------------------------------------


def test_named_parameters_become_numbers_once_each_and_doubled_percent_signs_become_one() -> None:
    sql = "select %(b)s, %(a)s::int % %(b)s like '50%%' from \"odd%%(a)s\""
    assert numbered("select %(b)s, %(a)s::int %% %(b)s like '50%%' from \"odd%%(a)s\"") == (
        "select $1, $2::int % $1 like '50%' from \"odd%(a)s\"",
        ("b", "a"),
    )
    assert numbered(sql)[0] != sql
    assert numbered("begin") == ("begin", ())


def test_every_kind_works_in_a_schema_with_an_odd_name(pgqueue_blank_database: str) -> None:
    odd = 'Odd "%(queue)s" $1 %'
    upgrade(pgqueue_blank_database, schema=odd)
    app = PgQueue(pgqueue_blank_database, schema=odd)

    @app.task(name="t")
    def t() -> None: ...

    async def application(kind: str) -> None:
        async with caller(kind, pgqueue_blank_database) as mine:
            unique = t.options(unique_key=kind)
            first = await done(unique.enqueue(mine.connection))
            assert (await done(unique.enqueue(mine.connection))).id == first.id
            await done(t.enqueue_many(mine.connection, [()]))
            await mine.commit()

    for kind in KINDS:
        asyncio.run(application(kind))
    assert len(app.jobs.list()) == 2 * len(KINDS)
    app.close()


# -- what must not be seen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_leaves_an_enqueue_holds_no_arguments_whoever_prints_it(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    """The server's DETAIL would: `Failing row contains (7, queued, default, …, {"name": "…"})`."""
    connection.execute("alter table pgqueue.jobs add constraint own check (args ->> 'name' not like 'cAn%')")
    held = send.options(unique_key="k", meta={"pan": CANARY}, tags=[CANARY])

    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            for call in (
                lambda to: send.enqueue(to, CANARY),
                lambda to: held.enqueue(to, CANARY),
                lambda to: send.enqueue_many(to, [("good",), (CANARY,)]),
                lambda to: held.enqueue_many(to, [(CANARY,)]),
            ):
                with pytest.raises(Exception, match=r"constraint .own.") as raised:
                    await done(call(mine.connection))
                printed = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
                assert CANARY not in printed
                assert sqlstate(raised.value) == "23514"
                await mine.rollback()
                assert names(connection) == []

    asyncio.run(application())


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_stand_in_pg_stat_activity_only_where_psycopg2_writes_them_into_the_statement(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    seen = "select count(*)::int from pg_stat_activity where query like '%%' || %s || '%%' and pid <> pg_backend_pid()"

    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            for call in (lambda to: send.enqueue(to, CANARY), lambda to: send.enqueue_many(to, [(CANARY,)])):
                await done(call(mine.connection))
                assert connection.execute(seen, [CANARY]).fetchone() == (int("psycopg2" in kind),)

    asyncio.run(application())


# -- a connection that is lost --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_that_is_killed_under_the_caller_is_said_and_nothing_goes_through_another_connection_unseen(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            ((pid,),) = await mine.execute("select pg_backend_pid()")
            await done(send.enqueue(mine.connection, "lost with its transaction"))
            assert connection.execute("select pg_terminate_backend(%s, 10000)", [pid]).fetchone() == (True,)
            # The first to notice hears it from the driver, or from us where the driver has noticed already.
            with pytest.raises(Exception, match=r"terminat|closed") as lost:
                await done(send.enqueue(mine.connection, CANARY))
            assert CANARY not in str(lost.value)
            for call in (send.enqueue, lambda to, name: send.enqueue_many(to, [(name,)])):
                with pytest.raises(UnusableConnection, match=r"closed|released|roll back"):
                    await done(call(mine.connection, CANARY))
            assert names(connection) == []
            with suppress(Exception):  # says that it is lost, or nothing
                await mine.rollback()
            if kind in BACK_AFTER_A_ROLLBACK:
                await done(send.enqueue(mine.connection, "in a new transaction"))
                assert names(connection) == []
                await mine.commit()
            else:
                with pytest.raises(UnusableConnection, match=r"closed|released|roll back"):
                    await done(send.enqueue(mine.connection, CANARY))

    asyncio.run(application())
    assert names(connection) == (["in a new transaction"] if kind in BACK_AFTER_A_ROLLBACK else [])


def test_a_dead_connection_of_asyncpgs_does_not_go_back_into_sqlalchemys_pool(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        engine = create_async_engine(sqlalchemy_url(pgqueue_database, "asyncpg"), pool_size=1, max_overflow=0)
        async with AsyncSession(engine) as session:
            pid = (await session.execute(text("select pg_backend_pid()"))).scalar_one()
            assert connection.execute("select pg_terminate_backend(%s, 10000)", [pid]).fetchone() == (True,)
            with pytest.raises(asyncpg.PostgresConnectionError):
                await send.enqueue(session, "lost")
            with pytest.raises(UnusableConnection, match="roll back"):
                await send.enqueue(session, "lost")
        async with AsyncSession(engine) as session, session.begin():
            await send.enqueue(session, "on another")
        await engine.dispose()

    asyncio.run(application())
    assert names(connection) == ["on another"]


# SQLAlchemy and Django open another connection when the transaction that was lost has been rolled back.
BACK_AFTER_A_ROLLBACK = {kind for kind in KINDS if kind.startswith("django") or "ession" in kind or " on " in kind}
BACK_AFTER_A_ROLLBACK |= {"Connection", "AsyncConnection"}


# -- tables that are not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_enqueue_where_there_are_no_tables_or_another_versions_says_so_and_can_be_rolled_back(
    kind: str, app: PgQueue, send: Task[..., Any], pgqueue_database: str, connection: Look
) -> None:
    elsewhere = PgQueue(pgqueue_database, schema="elsewhere").task(name="t")(lambda: None)

    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            for task, says in (
                (elsewhere, "holds no pgqueue tables"),
                (send, f"another version's.*migration {head()}"),
            ):
                with pytest.raises(SchemaError, match=says) as caught:
                    await done(task.enqueue(mine.connection, *([CANARY] if task is send else [])))
                assert CANARY not in str(caught.value)
                assert str(caught.value).isprintable()
                await mine.rollback()
                assert await mine.execute("select 1") == [(1,)]

    connection.execute("alter table pgqueue.jobs rename column tags to labels")
    asyncio.run(application())
    assert connection.execute("select count(*) from pgqueue.jobs").fetchone() == (0,)
