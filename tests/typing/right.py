"""Right uses: no type checker says a word. Nothing here is run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from pgqueue import AppState, Context, Job, Progress, RetryPolicy, Schedule, ScheduleStats, Task
from pgqueue.enqueue import NewJob
from pgqueue.events import Event
from tests.typing.tasks import (
    Line,
    anything,
    anything_with_options,
    app,
    bare,
    context_by_keyword,
    context_first,
    context_first_or_none,
    context_first_with_options,
    context_last,
    no_arguments,
    on_the_loop,
    on_the_loop_with_options,
    with_options,
)


def schedules(session: Session, connection: AsyncConnection) -> None:
    app.task(cron="0 2 * * *", timezone="Europe/Paris")(lambda: None)
    app.task(schedules=[Schedule(every=timedelta(hours=1), args=[7], name="hourly", missed="skip")])(lambda n: None)
    assert_type(app.schedules.add(name="s", task=bare, every=60, args={"user_id": 7}, priority=3), ScheduleStats)
    assert_type(app.schedules.add(connection=session, name="s", task="t", cron="0 2 * * *"), ScheduleStats)
    assert_type(app.schedules.add(connection=connection, name="s", task="t", every=60), Awaitable[ScheduleStats])
    assert_type(app.schedules.run_now("s"), Job)
    assert_type(app.schedules.run_now("s", connection=connection), Awaitable[Job])
    assert_type(app.schedules.pause("s", "t", connection=session), bool)
    assert_type(app.schedules.preview("0 2 * * *", after=datetime.now(UTC))[0], datetime)


def sync_connections(
    session: Session,
    scoped: scoped_session[Session],
    connection: sa.Connection,
    raw: psycopg.Connection[Any],
    dicts: psycopg.Connection[dict[str, Any]],
) -> None:
    assert_type(bare.enqueue(session, 7, "a@b"), Job)
    assert_type(bare.enqueue(scoped, 7), Job)
    assert_type(bare.enqueue(connection, user_id=7), Job)
    assert_type(bare.enqueue(raw, 7, email="a@b"), Job)
    assert_type(on_the_loop.enqueue(dicts, 7, note="x"), Job)
    assert_type(with_options.enqueue(session, [Line("A")], order=UUID(int=7)), Job)
    assert_type(no_arguments.enqueue(session), Job)
    assert_type(bare.enqueue_many(session, [(1, "a@b"), {"user_id": 2}]), list[int])
    assert_type(bare.enqueue_many(raw, ((n,) for n in range(9))), list[int])
    assert_type(app.enqueue_many(session, [bare.job(1), no_arguments.job()]), list[int])
    assert_type(bare.enqueue(session, 7).id, int)


async def async_connections(
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    connection: AsyncConnection,
    raw: psycopg.AsyncConnection[Any],
) -> None:
    assert_type(await bare.enqueue(session, 7, "a@b"), Job)
    assert_type(await bare.enqueue(scoped, 7), Job)
    assert_type(await on_the_loop.enqueue(connection, 7, note="x"), Job)
    assert_type(await with_options.enqueue(raw, []), Job)
    assert_type(await bare.enqueue_many(session, [(1, "a@b")]), list[int])
    assert_type(await app.enqueue_many(raw, [bare.job(1)]), list[int])
    later: Awaitable[Job] = bare.enqueue(session, 7)
    assert_type(await later, Job)
    assert_type(await bare.delay_async(7, "a@b"), Job)
    assert_type(await on_the_loop.delay_async(7, note="x"), Job)


def context(session: Session) -> None:
    context_first.enqueue(session, 7, "a@b")
    context_first.enqueue(session, user_id=7)
    context_first.delay(7)
    context_first.job(7)
    context_first.options(priority=3).enqueue(session, 7)
    context_first_with_options.enqueue(session, 7)
    context_first_or_none.enqueue(session, user_id=7)
    context_last.enqueue(session, 7)
    context_by_keyword.enqueue(session, 7)
    anything.enqueue(session, {"a": 1}, 2)
    anything.enqueue(session, {"a": 1}, times=2)
    anything_with_options.enqueue(session, {"a": 1}, 2)


async def progress(ctx: Context) -> None:
    assert_type(ctx.progress(0.4), None)
    ctx.progress(1, note="all of it")
    ctx.progress(0.5, None)
    assert_type(app.jobs.progress(7), Progress | None)
    assert_type(await app.jobs.progress_async(7), Progress | None)


async def calls() -> None:
    assert_type(bare(7, "a@b"), dict[str, int])
    assert_type(await on_the_loop(7, note="x"), str)
    assert_type(await on_the_loop_with_options(7), bool)
    assert_type(no_arguments(), int)
    assert_type(bare.delay(7), Job)
    assert_type(on_the_loop.delay(7, note="x"), Job)
    assert_type(bare.job(7, email="a@b"), NewJob)


def options(session: Session) -> None:
    urgent = bare.options(queue="vip", priority=10, unique_key="welcome:7", tags=["a"], meta={"k": [1]})
    assert_type(urgent.enqueue(session, 7, "a@b"), Job)
    assert_type(urgent(7), dict[str, int])
    bare.options(delay=30, expires_in=3600.5, timeout=timedelta(minutes=1), max_attempts=1).delay(7)
    bare.options(run_at=datetime.now(UTC), retry=RetryPolicy(delay=1), wake=False).options(delay=timedelta(1)).job(7)
    bare.options(unique=("user_id",), unique_until="claimed", on_conflict="debounce", debounce_for=60).delay(7)
    app.task(unique=True, unique_for=timedelta(days=1), on_conflict="raise", keep=3)(lambda: None)
    Schedule(every=60, missed="all", missed_limit=3, overlap="skip")
    every: dict[str, Task[..., Any]] = app.tasks
    every["bare"].enqueue(session, "whatever", it=1)


def events() -> None:
    @app.on("completed")
    def count(event: Event) -> None:
        assert_type(event.job, Job)

    @app.on("dead_lettered")
    async def tell(event: Event) -> None:
        assert_type(event.error, str | None)

    @app.on("failed")
    def anything_at_all(event: object) -> int:
        return 7

    assert_type(anything_at_all(7), int)


@app.lifespan
def opened(state: AppState) -> Iterator[None]:
    state.pool = [7]
    yield


@app.lifespan
async def opened_on_the_loop(state: AppState) -> AsyncIterator[None]:
    state.client = "client"
    yield


def resources(ctx: Context, state: AppState) -> None:
    assert_type(ctx.state, AppState)
    assert_type(app.state, AppState)
    print(ctx.state.pool.size, next(opened(state)))


@app.middleware
def around(ctx: Context) -> Generator[None, Any, None]:
    result = yield
    print(ctx.job.id, result)


@app.middleware
async def around_on_the_loop(ctx: Context) -> AsyncGenerator[None, Any]:
    print(ctx.state.pool, (yield))


@app.task(middleware=[around, around_on_the_loop])
def with_middleware(user_id: int) -> None: ...


def middleware(session: Session) -> None:
    assert_type(with_middleware.enqueue(session, 7), Job)


@app.before_enqueue
def hook(new: NewJob) -> NewJob | None:
    return new.replace(priority=5, meta={"trace": new.task}) if new.options.meta is None else None
