"""Step 1, enqueue: a job is a row in the caller's own transaction, whatever kind of connection that is."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pgqueue import (
    ArgsNotJSON,
    EnqueueError,
    InvalidArguments,
    InvalidOption,
    Job,
    PgQueue,
    RetryPolicy,
    State,
    Task,
    UniqueKeyTaken,
    UnusableConnection,
)
from pgqueue.enqueue import NewJob, Options
from tests.life.callers import AUTOCOMMIT, KINDS, Undo, caller, done, sqlalchemy_url
from tests.life.workbench import Ears, names

Look = psycopg.Connection[Any]
loop: list[Any] = []
loop.append(loop)


# -- the transaction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_is_seen_by_its_own_transaction_at_once_and_by_others_when_that_commits(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            job = await done(send.enqueue(mine.connection, "a"))
            assert await mine.execute("select id, state from pgqueue.jobs") == [(job.id, "queued")]
            assert names(connection) == []
            await mine.commit()
            assert names(connection) == ["a"]
            assert (job.task, job.queue, job.state, job.existing) == ("send", "default", State.QUEUED, False)

    asyncio.run(application())


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_enqueued_in_a_rolled_back_transaction_is_never_run(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str, drain: Callable[..., None]
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            await done(send.enqueue(mine.connection, "rolled back"))
            await done(send.enqueue_many(mine.connection, [("rolled back, too",)]))
            await mine.rollback()
            await done(send.enqueue(mine.connection, "committed"))
            await mine.commit()
            await done(send.enqueue(mine.connection, "left open when the connection was closed"))

    asyncio.run(application())
    drain()
    assert connection.execute("select result #>> '{}' from pgqueue.all_jobs").fetchall() == [("committed",)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rolled_back_savepoint_takes_its_own_jobs_along_and_no_others(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            await done(send.enqueue(mine.connection, "before"))
            async with mine.savepoint():
                await done(send.enqueue(mine.connection, "undone"))
                async with mine.savepoint():
                    await done(send.enqueue(mine.connection, "undone with the savepoint around it"))
                raise Undo
            async with mine.savepoint():
                await done(send.enqueue(mine.connection, "inside"))
                async with mine.savepoint():
                    await done(send.enqueue(mine.connection, "undone alone"))
                    raise Undo
            await done(send.enqueue(mine.connection, "after"))
            await mine.commit()

    asyncio.run(application())
    assert names(connection) == ["before", "inside", "after"]


@pytest.mark.parametrize("kind", KINDS)
def test_enqueue_opens_no_connection_and_leaves_the_transaction_alone(
    kind: str, app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    me = "select pg_backend_pid(), pg_current_xact_id()::text"

    def backends() -> set[int]:
        sql = "select pid from pg_stat_activity where datname = current_database() and backend_type = 'client backend'"
        return {row[0] for row in connection.execute(sql)}

    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            before = await mine.execute(me)
            pids = backends()
            await done(send.enqueue(mine.connection, "one"))
            await done(send.enqueue_many(mine.connection, [("two",), ("three",)]))
            await done(app.enqueue_many(mine.connection, [send.job("four")]))
            # The same backend, still in the same transaction, and that is the one that inserted the rows.
            assert await mine.execute(me) == before
            assert backends() == pids
            writers = await mine.execute("select distinct xmin::text from pgqueue.jobs")
            assert writers == [(str(int(before[0][1]) % 2**32),)]

    asyncio.run(application())
    assert names(connection) == []


@pytest.mark.parametrize("kind", KINDS)
def test_on_an_autocommitting_connection_a_job_is_there_at_once(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database, AUTOCOMMIT) as mine:
            await done(send.enqueue(mine.connection, "a"))
            assert names(connection) == ["a"]
            await done(send.enqueue_many(mine.connection, [("b",), ("c",)]))
            assert names(connection) == ["a", "b", "c"]
            await mine.rollback()
            await done(send.enqueue(mine.connection, "d"))

    asyncio.run(application())
    assert names(connection) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("kind", KINDS)
def test_enqueue_works_in_every_isolation_level(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application(isolation: str) -> None:
        async with caller(kind, pgqueue_database, isolation) as mine:
            assert await mine.execute("show transaction_isolation") == [(isolation.lower(),)]
            send.delay("committed after the snapshot was taken")
            unique = send.options(unique_key=isolation)
            first = await done(unique.enqueue(mine.connection, "mine"))
            again = await done(unique.enqueue(mine.connection, "mine again"))
            assert (again.id, again.existing) == (first.id, True)
            await done(send.enqueue_many(mine.connection, [("many",)]))
            await mine.commit()

    for isolation in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
        asyncio.run(application(isolation))
    assert names(connection) == ["committed after the snapshot was taken", "mine", "many"] * 3


@pytest.mark.parametrize(
    ("mode", "before_the_outer_commit"),
    [("create_savepoint", []), ("rollback_only", []), ("control_fully", ["kept"])],
)
def test_sessions_that_share_a_connection_commit_as_their_join_mode_says(
    mode: Any, before_the_outer_commit: list[str], send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    engine = create_engine(sqlalchemy_url(pgqueue_database))
    try:
        with engine.connect() as shared:
            outer = shared.begin()
            with Session(shared, join_transaction_mode=mode) as first:
                send.enqueue(first, "kept")
                first.commit()
            assert names(connection) == before_the_outer_commit
            if outer.is_active:
                with Session(shared, join_transaction_mode=mode) as second, second.begin_nested() as savepoint:
                    send.enqueue(second, "dropped")
                    savepoint.rollback()
                outer.commit()
        assert names(connection) == ["kept"]
    finally:
        engine.dispose()


def test_a_session_that_rolls_back_inside_anothers_transaction_takes_only_its_own_jobs_along(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    engine = create_engine(sqlalchemy_url(pgqueue_database))
    try:
        with engine.begin() as shared:
            send.enqueue(shared, "outer")
            with Session(shared, join_transaction_mode="create_savepoint") as inner:
                send.enqueue(inner, "inner")
                inner.rollback()
        assert names(connection) == ["outer"]
    finally:
        engine.dispose()


# -- whose connection it is -----------------------------------------------------------------------------------------


class BinaryCursor(psycopg.Cursor[Any]):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.format = psycopg.pq.Format.BINARY


class BinaryAsyncCursor(psycopg.AsyncCursor[Any]):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.format = psycopg.pq.Format.BINARY


@pytest.mark.parametrize(
    "settings",
    [
        {"row_factory": dict_row},
        {"cursor_factory": (psycopg.ClientCursor, psycopg.AsyncClientCursor)},
        {"cursor_factory": (psycopg.RawCursor, psycopg.AsyncRawCursor)},
        {"cursor_factory": (BinaryCursor, BinaryAsyncCursor)},
        {"prepare_threshold": 0},
    ],
    ids=["dict_row", "ClientCursor", "RawCursor", "binary", "prepares everything"],
)
def test_how_an_application_reads_its_own_rows_does_not_matter(
    settings: dict[str, Any], send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    sync = {name: value[0] if isinstance(value, tuple) else value for name, value in settings.items()}
    awaited = {name: value[1] if isinstance(value, tuple) else value for name, value in settings.items()}
    unique = send.options(unique_key="k", delay=60, tags=["t"], meta={"a": 1})
    with psycopg.connect(pgqueue_database, **sync) as mine:
        first = unique.enqueue(mine, "a")
        assert send.enqueue_many(mine, [("b",)]) == [first.id + 1]
        assert unique.enqueue(mine, "again").id == first.id
        assert isinstance(first.run_at, datetime)

    async def application() -> None:
        async with await psycopg.AsyncConnection.connect(pgqueue_database, **awaited) as mine:
            assert (await unique.enqueue(mine, "again")).id == first.id
            await send.enqueue_many(mine, [("c",)])

    asyncio.run(application())
    assert names(connection) == ["a", "b", "c"]


def test_an_engine_that_streams_its_results_does_not_matter(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    engine = create_engine(sqlalchemy_url(pgqueue_database), execution_options={"stream_results": True})
    try:
        with engine.begin() as mine, mine.execute(text("select generate_series(1, 1000)")) as still_reading:
            assert still_reading.fetchone() == (1,)
            send.enqueue(mine, "a")
            assert still_reading.fetchone() == (2,)
    finally:
        engine.dispose()
    assert names(connection) == ["a"]


# -- connections that cannot take a job -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_aborted_transaction_is_named_and_can_still_be_rolled_back(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            with pytest.raises(Exception, match="division by zero"):
                await mine.execute("select 1 / 0")
            with pytest.raises(UnusableConnection, match="aborted"):
                await done(send.enqueue(mine.connection, "a"))
            with pytest.raises(UnusableConnection, match="aborted"):
                await done(send.enqueue_many(mine.connection, [("a",)]))
            await mine.rollback()
            await done(send.enqueue(mine.connection, "after the rollback"))
            await mine.commit()

    asyncio.run(application())
    assert names(connection) == ["after the rollback"]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "ession" not in kind and kind[:6] not in ("django", "asyncp")]
)
def test_a_closed_connection_is_named(kind: str, send: Task[..., Any], pgqueue_database: str) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            await done(mine.connection.close())
            with pytest.raises(UnusableConnection, match="closed"):
                await done(send.enqueue(mine.connection, "a"))

    asyncio.run(application())


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    card: Mapped[str] = mapped_column(unique=True)


def test_a_session_whose_flush_failed_is_named_without_what_failed_and_can_still_be_rolled_back(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    engine = create_engine(sqlalchemy_url(pgqueue_database))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Order(card="4111"), Order(card="4111")])
        with pytest.raises(IntegrityError):
            session.flush()
        with pytest.raises(UnusableConnection, match=r"PendingRollbackError.*roll back") as refused:
            send.enqueue(session, "a")
        assert "4111" not in str(refused.value)
        session.rollback()
        session.add(Order(card="4111"))
        send.enqueue(session, "after the rollback")
        session.commit()
    engine.dispose()
    assert names(connection) == ["after the rollback"]


@pytest.mark.parametrize(
    ("unusable", "remedy"),
    [
        (lambda engine: Session(engine, autobegin=False), r"autobegin=False.*call its begin\(\) first"),
        (lambda engine: Session(), r"bound to no engine: make it with Session\(engine\)"),
        (lambda engine: Session(binds={Order: engine}), r"bound to no engine.*beside binds="),
        (lambda engine: _closed(Session(engine, close_resets_only=False)), "closed for good.*make another"),
    ],
    ids=["not begun", "bound to nothing", "bound by table", "closed for good"],
)
def test_a_session_that_takes_no_statements_is_refused_with_what_to_do(
    unusable: Callable[[Engine], Session],
    remedy: str,
    send: Task[..., Any],
    connection: Look,
    pgqueue_database: str,
) -> None:
    engine = create_engine(sqlalchemy_url(pgqueue_database))
    session = unusable(engine)
    with pytest.raises(UnusableConnection, match=f"SQLAlchemy takes no statement.*{remedy}"):
        send.enqueue(session, "a")
    with pytest.raises(UnusableConnection, match=f"SQLAlchemy takes no statement.*{remedy}"):
        asyncio.run(done(send.enqueue(AsyncSession(sync_session_class=lambda **_: session), "a")))
    session.close()
    engine.dispose()
    assert names(connection) == []


def _closed(session: Session) -> Session:
    session.close()
    return session


def test_what_is_no_connection_is_refused_and_named_before_anything_happens(
    send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    engine, async_engine = create_engine(sqlalchemy_url(pgqueue_database)), create_async_engine("postgresql+psycopg://")
    things = [
        *(engine, async_engine, sessionmaker(engine), async_sessionmaker(async_engine)),
        *(None, 7, pgqueue_database, object(), Session, connection.cursor()),
    ]
    for thing in things:
        for enqueue in (send.enqueue, send.options(priority=1).enqueue):
            with pytest.raises(UnusableConnection, match=type(thing).__name__):
                enqueue(thing, "a")
        with pytest.raises(UnusableConnection, match="connection"):
            send.enqueue_many(thing, [("a",)])
    for thing in things[:4]:
        with pytest.raises(UnusableConnection, match="pass a Session or Connection"):
            send.enqueue(thing, "a")
    assert names(connection) == []
    engine.dispose()


def test_a_connection_to_another_kind_of_database_is_refused(send: Task[..., Any]) -> None:
    engine = create_engine("sqlite://")
    try:
        with engine.connect() as other, pytest.raises(UnusableConnection, match=r"to sqlite.*postgresql\+psycopg"):
            send.enqueue(other, "a")
    finally:
        engine.dispose()


# -- options --------------------------------------------------------------------------------------------------------

IN_AN_HOUR = datetime.now(UTC) + timedelta(hours=1)
OPTIONS: list[tuple[dict[str, Any], str, Any]] = [
    ({"queue": "vip"}, "queue", "vip"),
    ({"priority": -100}, "priority", -100),
    ({"delay": 30}, "run_at - created_at", timedelta(seconds=30)),
    ({"delay": timedelta(days=1)}, "run_at - created_at", timedelta(days=1)),
    ({"run_at": IN_AN_HOUR}, "run_at", IN_AN_HOUR),
    ({"run_at": datetime(2001, 1, 1, tzinfo=UTC)}, "run_at - created_at", timedelta(0)),
    ({"max_attempts": 1}, "max_attempts", 1),
    ({"timeout": 1.5}, "timeout", 1.5),
    ({"timeout": timedelta(minutes=1)}, "timeout", 60.0),
    ({"expires_in": 10, "delay": 5}, "expires_at - run_at", timedelta(seconds=10)),
    ({"unique_key": "welcome:7"}, "unique_key", "welcome:7"),
    ({"unique": True}, "unique_key like 'send#%'", True),
    ({"unique": ("name",), "unique_until": "claimed"}, "unique_key is null and queued_key like 'send#%'", True),
    (
        {"unique": ["name"], "unique_for": 60},
        "(select ends_at - created_at from pgqueue.unique_periods where job_id = jobs.id)",
        timedelta(minutes=1),
    ),
    ({"tags": ["a", 'q"{},\\', "ü"]}, "tags", ["a", 'q"{},\\', "ü"]),
    ({"meta": {"trace": {"id": [1, None]}}}, "meta", {"trace": {"id": [1, None]}}),
    (
        {"retry": RetryPolicy(delay=1, factor=3, max_delay=9, jitter=0, on=OSError, never=(TimeoutError, KeyError))},
        "retry",
        {
            "delay": 1.0,
            "factor": 3,
            "max_delay": 9.0,
            "jitter": 0,
            "on": ["builtins.OSError"],
            "never": ["builtins.TimeoutError", "builtins.KeyError"],
        },
    ),
]
OF_NO_COLUMN = {"wake", "on_conflict", "debounce_for"}  # they have a test of their own
WAYS: dict[str, Callable[[PgQueue, Task[..., Any], Look], object]] = {
    "enqueue": lambda app, task, connection: task.enqueue(connection, "a"),
    "delay": lambda app, task, connection: task.delay("a"),
    "delay_async": lambda app, task, connection: asyncio.run(_delayed(app, task)),
    "enqueue_many": lambda app, task, connection: task.enqueue_many(connection, [("a",)]),
    "job": lambda app, task, connection: app.enqueue_many(connection, [task.job("a")]),
}


async def _delayed(app: PgQueue, task: Task[..., Any]) -> Job:
    try:
        return await task.delay_async("a")
    finally:
        await app.close_async()


def test_these_are_all_options() -> None:
    assert {name for options, *_ in OPTIONS for name in options} == {one.name for one in fields(Options)} - OF_NO_COLUMN
    assert {name for field, _ in BAD_OPTIONS for name in bad_option(field, None)} >= {*Options.__slots__}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_lands_in_its_column_whatever_the_connection(
    kind: str, app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            for options, column, expected in OPTIONS:
                task = send.options(**options)
                await done(task.enqueue(mine.connection, "a"))
                if "unique_key" in options:
                    again = await done(task.enqueue(mine.connection, "again"))
                    assert again.existing
                    assert again.created_at is not None
                    assert again.created_at.tzinfo is not None
                    task = send.options(unique_key="of many")
                await done(app.enqueue_many(mine.connection, [task.job("b"), send.job("c")]))
                await mine.commit()
                deleted = connection.execute(f"delete from pgqueue.jobs returning args ->> 'name', {column}")
                found = sorted(deleted.fetchall(), key=lambda row: row[0])
                if "unique_key" in options:
                    assert found == [("a", expected), ("b", "of many"), ("c", None)]
                else:
                    assert found[:2] == [("a", expected), ("b", expected)], options
                    assert [name for name, _ in found] == ["a", "b", "c"]

    asyncio.run(application())


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_land_in_no_column_do_what_they_say_whatever_the_connection(
    kind: str, app: PgQueue, send: Task[..., Any], connection: Look, ears: Ears, pgqueue_database: str
) -> None:
    ears.asleep("one", "default")

    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            to, keyed = mine.connection, send.options(unique_key="k", wake=False)
            first = await done(keyed.options(delay=60).enqueue(to, "a"))
            await done(send.options(wake=False).enqueue_many(to, [("b",)]))
            await mine.commit()
            assert ears.heard() == []
            await done(send.enqueue(to, "c"))
            await mine.commit()
            assert ears.heard() == ["one"]
            replaced = await done(keyed.options(on_conflict="replace", delay=5).enqueue(to, "replaced"))
            assert replaced.run_at - replaced.created_at < timedelta(seconds=60) == first.run_at - first.created_at
            bounded = keyed.options(on_conflict="debounce", debounce_for=300, delay=3600)
            debounced = await done(bounded.enqueue(to, "debounced"))
            assert debounced.run_at - debounced.created_at == timedelta(minutes=5)
            many = bounded.options(debounce_for=600)
            assert await done(app.enqueue_many(to, [many.job("many"), send.job("d")]))
            with pytest.raises(UniqueKeyTaken, match=f"job {first.id} "):
                await done(keyed.options(on_conflict="raise").enqueue(to, "e"))
            with pytest.raises(UniqueKeyTaken, match=f"job {first.id} "):
                await done(app.enqueue_many(to, [send.job("e"), keyed.options(on_conflict="raise").job("e")]))
            await mine.commit()

    asyncio.run(application())
    assert names(connection) == ["many", "b", "c", "d"]
    moved = "select run_at - created_at from pgqueue.jobs where unique_key = 'k'"
    assert connection.execute(moved).fetchall() == [(timedelta(minutes=10),)]


@pytest.mark.parametrize("way", WAYS)
def test_every_option_lands_in_its_column_and_does_not_leak_into_the_task(
    way: str, app: PgQueue, send: Task[..., Any], connection: Look
) -> None:
    for options, column, expected in OPTIONS:
        WAYS[way](app, send.options(**options), connection)
        (found,) = connection.execute(f"delete from pgqueue.jobs returning {column}").fetchall()
        assert found == (expected,), options
    WAYS[way](app, send, connection)
    plain = (
        "select task, queue, priority, run_at - created_at, attempt, max_attempts, fence, expires_at, timeout, args,"
        " retry, unique_key, tags, meta from pgqueue.jobs"
    )
    assert connection.execute(plain).fetchall() == [
        ("send", "default", 0, timedelta(0), 0, 4, 0, None, None, {"name": "a"}, None, None, None, None)
    ]


def test_the_decorators_options_are_the_defaults_and_the_calls_override_them(app: PgQueue, connection: Look) -> None:
    @app.task(queue="email", priority=5, max_attempts=2, timeout=9, tags=["nightly"], delay=60)
    def task() -> None: ...

    one = task.enqueue(connection)
    other = task.options(priority=7).options(queue="vip", run_at=IN_AN_HOUR).enqueue(connection)
    # The task's own timeout is not written down: a new deployment may change it for jobs that are waiting.
    sql = "select queue, priority, max_attempts, timeout, tags from pgqueue.jobs order by id"
    assert connection.execute(sql).fetchall() == [
        ("email", 5, 2, None, ["nightly"]),
        ("vip", 7, 2, None, ["nightly"]),
    ]
    assert one.run_at is not None
    assert one.created_at is not None
    assert (one.queue, one.priority, one.run_at - one.created_at) == ("email", 5, timedelta(minutes=1))
    assert (other.queue, other.priority, other.run_at) == ("vip", 7, IN_AN_HOUR)


BAD_OPTIONS: list[tuple[str, list[Any]]] = [
    ("queue", ["", " ", "a b", "x" * 129, "../etc", "a\n", "ä", "a\u202eb", "%", None, 7, b"a"]),
    ("priority", [-101, 101, True, "3", 1.0, None]),
    ("delay", [-1, float("nan"), float("inf"), timedelta.max, "30", True, None]),
    (
        "run_at",
        [
            datetime(2030, 1, 1),
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(9999, 1, 1, tzinfo=UTC),
            *("tomorrow", 7, timedelta(1)),
        ],
    ),
    ("max_attempts", [0, -1, 2**31, True, "3", 1.0, None]),
    ("retry", [3, "always", lambda attempt, error: 1]),
    ("retry.backoff", [RetryPolicy(backoff=lambda attempt, error: 1)]),
    ("timeout", [0, -1, float("inf"), float("nan"), "5", True]),
    ("expires_in", [0, -1, float("inf"), "5", True]),
    ("unique_key", ["", "  \t", "a\0b", "x" * 513, "\ud800", 7, b"a"]),
    ("tag", ["abc", 7, ["a"] * 33, [""], ["a\0"], [7]]),
    ("meta", ["abc", 7, ["a"], [("a", 1)]]),
    ("unique", ["name", (), ("nome",), ("name", "name"), 7, None, (7,)]),
    ("unique_until", ["started", "", None, 7]),
    ("unique_for", [0, -1, float("nan"), float("inf"), "5", True]),
    ("on_conflict", ["ignore", "", None, 7]),
    ("debounce_for", [0, -1, float("nan"), float("inf"), "5", True]),
    ("wake", [None, 0, "no"]),
    ("colour", ["red"]),
]


def bad_option(field: str, value: Any) -> dict[str, Any]:
    return {{"tag": "tags", "retry.backoff": "retry"}.get(field, field): value}


@pytest.mark.parametrize(("field", "values"), BAD_OPTIONS)
def test_an_option_that_cannot_be_is_refused_by_name_before_any_sql(
    field: str, values: list[Any], send: Task[..., Any], pgqueue_database: str
) -> None:
    with psycopg.connect(pgqueue_database) as mine:
        for value in values:
            with pytest.raises(InvalidOption, match=field):
                send.options(**bad_option(field, value)).enqueue(mine, "a")
        assert mine.info.transaction_status == TransactionStatus.IDLE
    with pytest.raises(InvalidOption, match="either delay or run_at"):
        send.options(delay=1, run_at=IN_AN_HOUR)


CANNOT_BE_STORED: list[tuple[type[Exception], Callable[[Task[..., Any], Any], Any]]] = [
    (InvalidArguments, lambda task, to: task.enqueue(to)),
    (InvalidArguments, lambda task, to: task.enqueue(to, "a", "b")),
    (InvalidArguments, lambda task, to: task.enqueue(to, nome="a")),
    (InvalidArguments, lambda task, to: task.enqueue(to, 7)),
    (ArgsNotJSON, lambda task, to: task.enqueue(to, "a\0b")),
    (ArgsNotJSON, lambda task, to: task.enqueue(to, "\ud800")),
    (ArgsNotJSON, lambda task, to: task.enqueue(to, "x" * 300_000)),
    (ArgsNotJSON, lambda task, to: task.options(meta={"a": {1, 2}}).enqueue(to, "a")),
    (InvalidOption, lambda task, to: task.options(priority=101).enqueue(to, "a")),
    (InvalidArguments, lambda task, to: task.enqueue_many(to, [("a",), 7])),
    (ArgsNotJSON, lambda task, to: task.enqueue_many(to, [("a",), {"name": "\0"}])),
]
BAD_VALUES: dict[str, tuple[str, Any]] = {  # what stands in the message, value of a parameter that takes JSON
    "NUL": (r"args\.value\.name\[3\]", {"name": ["a", "b", "c", "d\0"]}),
    "NUL in a key": (r"args\.value", {"\0": 1}),
    "surrogate": (r"args\.value", "\ud800"),
    "NaN": (r"args\.value\[0\]", [float("nan")]),
    "infinity": (r"args\.value\.price", {"price": float("inf")}),
    "-infinity": (r"args\.value", float("-inf")),
    "4,001 digits": (r"args\.value", 10**4_000),
    "-4,001 digits": (r"args\.value\[1\]", [0, -(10**4_000)]),
    "1e5000": (r"args\.value", Decimal("1e5000")),
    "101 deep": ("100", functools.reduce(lambda inside, _: [inside], range(101), None)),
    "itself": ("100", loop),
    "256 KB": (r"300,0\d\d|300.\d+ KB|29\d KB", "x" * 300_000),
    "bytes": (r"args\.value.*bytes", b"a"),
    "bytearray": (r"args\.value\[0\].*bytearray", [bytearray(b"a")]),
    "set": (r"args\.value.*set", {1, 2}),
    "generator": (r"args\.value.*generator", (one for one in "ab")),
    "lambda": (r"args\.value.*function", lambda: None),
    "object": (r"args\.value\.a\[0\].*object", {"a": [object()]}),
    "key of a number": (r"args\.value", {7: "a"}),
    "key of bytes": (r"args\.value", {b"a": 1}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_cannot_be_stored_leaves_the_callers_transaction_usable(
    kind: str, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            await mine.execute("create table own_work (id int)")
            for error, call in CANNOT_BE_STORED:
                with pytest.raises(error):
                    await done(call(send, mine.connection))
                await done(send.enqueue(mine.connection, "good"))
            await mine.commit()

    asyncio.run(application())
    assert connection.execute("select to_regclass('own_work') is not null").fetchone() == (True,)
    assert names(connection) == ["good"] * len(CANNOT_BE_STORED)


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_and_no_option_that_cannot_be_stored_reaches_the_database_through_any_connection(
    kind: str, app: PgQueue, send: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    @app.task(name="anything")
    def anything(value: Any) -> None: ...

    calls: list[tuple[str, Callable[[Any], Any]]] = []
    for says, value in BAD_VALUES.values():
        calls += [
            (says, lambda to, value=value: anything.enqueue(to, value)),
            (says, lambda to, value=value: anything.enqueue_many(to, iter([("good",), (value,)]))),
        ]
    for field, values in BAD_OPTIONS:
        for option in (bad_option(field, value) for value in values):
            calls += [
                (field, lambda to, option=option: send.options(**option).enqueue(to, "a")),
                (field, lambda to, option=option: send.options(**option).enqueue_many(to, [("a",)])),
                (
                    field,
                    lambda to, option=option: app.enqueue_many(
                        to, (send.options(**one).job("a") for one in ({}, option))
                    ),
                ),
            ]

    async def application() -> None:
        async with caller(kind, pgqueue_database) as mine:
            await mine.execute("create table own_work (id int)")
            for says, call in calls:
                with pytest.raises(EnqueueError, match=says) as refused:
                    await done(call(mine.connection))
                assert len(str(refused.value)) < 500, says
                assert await mine.execute("select count(*)::int from pgqueue.jobs") == [(0,)], says
            await done(anything.enqueue_many(mine.connection, [([1.5, None, {"a": "ü"}],)]))
            await mine.commit()

    asyncio.run(application())
    assert connection.execute("select to_regclass('own_work') is not null").fetchone() == (True,)
    assert connection.execute("select args from pgqueue.jobs").fetchall() == [({"value": [1.5, None, {"a": "ü"}]},)]


@pytest.mark.parametrize("moment", ["infinity", "-infinity"])
def test_an_insert_by_hand_of_a_moment_that_never_comes_is_refused_by_the_table(moment: str, connection: Look) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="jobs_run_at"):
        connection.execute("insert into pgqueue.jobs (task, run_at) values ('t', %s)", [moment])
    connection.execute("insert into pgqueue.jobs (task) values ('t')")
    with pytest.raises(psycopg.errors.CheckViolation, match="jobs_run_at"):
        connection.execute("update pgqueue.jobs set run_at = %s", [moment])


def test_a_task_may_have_parameters_called_session_queue_self_and_connection(
    app: PgQueue, connection: Look, drain: Callable[..., None]
) -> None:
    @app.task(name="odd", queue="own")
    def odd(self: int, session: int, queue: int, connection: int, options: int, args: int, name: int) -> list[int]:
        return [self, session, queue, connection, options, args, name]

    named = {"self": 1, "session": 2, "queue": 3, "connection": 4, "options": 5, "args": 6, "name": 7}
    odd.enqueue(connection, **named)
    odd.delay(**named)
    odd.enqueue_many(connection, [named, tuple(named.values())])
    app.enqueue_many(connection, [odd.job(**named)])
    asyncio.run(_delay_async(app, odd, named))
    drain()
    sql = "select queue, result, count(*) from pgqueue.finished_jobs group by queue, result"
    assert connection.execute(sql).fetchall() == [("own", [1, 2, 3, 4, 5, 6, 7], 6)]


async def _delay_async(app: PgQueue, task: Task[..., Any], arguments: dict[str, Any]) -> None:
    await task.delay_async(**arguments)
    await app.close_async()


# -- the wake-up ----------------------------------------------------------------------------------------------------


ENQUEUES: dict[str, Callable[[PgQueue, Look, str, float], object]] = {
    "enqueue": lambda app, to, queue, delay: app.tasks["send"].options(queue=queue, delay=delay).enqueue(to, "a"),
    "enqueue_many": lambda app, to, queue, delay: (
        app.tasks["send"].options(queue=queue, delay=delay).enqueue_many(to, [("a",)] * 3)
    ),
    "sql": lambda app, to, queue, delay: to.execute(
        "select pgqueue.enqueue('send', '{\"name\": \"a\"}', queue => %s, run_at => now() + %s * interval '1 second')",
        [queue, delay],
    ),
}


@pytest.mark.parametrize("way", ENQUEUES)
@pytest.mark.usefixtures("send")
def test_an_enqueue_wakes_exactly_one_sleeper_that_could_take_the_job(
    way: str, app: PgQueue, connection: Look, ears: Ears, pgqueue_database: str
) -> None:
    enqueue = ENQUEUES[way]
    enqueue(app, connection, "default", 0)
    assert ears.heard() == []  # nobody sleeps

    ears.asleep("mail", "mail")
    enqueue(app, connection, "default", 0)
    assert ears.heard() == []  # nobody sleeps on this queue

    ears.asleep("one", "default", "other")
    ears.asleep("two", "default", "*")
    enqueue(app, connection, "default", 0)
    (woken,) = ears.heard()
    assert woken in ("one", "two")

    enqueue(app, connection, "unheard", 0)
    assert ears.heard() == ["two"]  # it sleeps on every queue

    enqueue(app, connection, "mail", 59)
    (woken,) = ears.heard()  # due before the sleeper would look again
    assert woken in ("mail", "two")
    enqueue(app, connection, "mail", 3600)
    assert ears.heard() == []  # it will have looked long before

    with psycopg.connect(pgqueue_database) as mine:
        enqueue(app, mine, "mail", 0)
        assert ears.heard() == []  # not before the commit
        mine.rollback()
        assert ears.heard() == []  # nor after a rollback
        enqueue(app, mine, "mail", 0)
        mine.commit()
        assert len(ears.heard()) == 1


def test_a_job_that_forgoes_the_wake_up_notifies_nobody(
    app: PgQueue, send: Task[..., Any], connection: Look, ears: Ears
) -> None:
    @app.task(name="quiet", wake=False)
    def quiet() -> None: ...

    ears.asleep("a", "a")
    ears.asleep("b", "b")
    silent = send.options(queue="a", wake=False)
    silent.enqueue(connection, "x")
    silent.enqueue_many(connection, [("x",), ("y",)])
    quiet.options(queue="a").enqueue(connection)
    assert ears.heard() == []
    app.enqueue_many(connection, [silent.job("x"), send.options(queue="b").job("y")])
    assert ears.heard() == ["b"]
    quiet.options(queue="a", wake=True).enqueue(connection)
    assert ears.heard() == ["a"]


def test_a_sleeper_that_has_overslept_is_not_notified(
    app: PgQueue, send: Task[..., Any], connection: Look, ears: Ears
) -> None:
    ears.asleep("frozen", "default", seconds=-1)
    send.enqueue(connection, "a")
    assert ears.heard() == []


def test_a_bulk_enqueue_wakes_one_sleeper_for_each_queue(
    app: PgQueue, send: Task[..., Any], connection: Look, ears: Ears
) -> None:
    ears.asleep("a", "a")
    ears.asleep("b", "b")
    ears.asleep("c", "c")
    app.enqueue_many(connection, [send.options(queue=queue).job("x") for queue in "aabab"])
    assert ears.heard() == ["a", "b"]
    app.enqueue_alone(NewJob("send", "{}", Options(queue="c")))
    assert ears.heard() == ["c"]
