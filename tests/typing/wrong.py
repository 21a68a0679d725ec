"""Wrong uses: type checkers report each line that says `# wrong:`, and no other. Nothing here is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from pgqueue import AppState, Context, Job, NewJob, RetryPolicy, Schedule
from pgqueue.events import Event
from tests.typing.tasks import (
    Line,
    app,
    bare,
    context_by_keyword,
    context_demanded,
    context_first,
    context_first_with_options,
    no_arguments,
    on_the_loop,
    on_the_loop_with_options,
    with_options,
)


def schedules() -> None:
    app.task(cron=5)  # wrong: type
    app.schedules.add(name="s", every=60)  # wrong: no task
    app.schedules.add(name="s", task="t", every=60, colour="red")  # wrong: no such option
    app.schedules.run_now()  # wrong: no name
    app.schedules.add(name="s", task="t", every=60, missed="never")  # wrong: no such way
    app.schedules.add(name="s", task="t", every=60, overlap="queue")  # wrong: no such way
    Schedule(every=60, missed="never")  # wrong: no such way
    Schedule(every=60, overlap="queue")  # wrong: no such way


def arguments(session: Session, raw: psycopg.Connection[Any]) -> None:
    bare.enqueue(session, "7")  # wrong: type
    bare.enqueue(session, 7, email=7)  # wrong: type of a keyword argument
    bare.enqueue(session)  # wrong: missing
    bare.enqueue(session, 7, "a@b", 3)  # wrong: one too many
    bare.enqueue(session, 7, mail="a@b")  # wrong: name
    bare.enqueue(session, 7, user_id=7)  # wrong: twice
    bare.enqueue(raw, None)  # wrong: None
    no_arguments.enqueue(session, 7)  # wrong: takes none
    with_options.enqueue(session, [Line("A")], UUID=7)  # wrong: name
    with_options.enqueue(session, [Line("A"), "B"])  # wrong: type in a list
    with_options.enqueue(session, [Line("A")], order="6e1c2c9c")  # wrong: text for a UUID
    with_options.enqueue(session, Line("A"))  # wrong: not a list
    with_options.enqueue(session, [], None)  # wrong: by keyword only
    on_the_loop.enqueue(session, 7)  # wrong: missing keyword argument
    on_the_loop.enqueue(session, "7", note="x")  # wrong: type
    on_the_loop_with_options.enqueue(session, "7")  # wrong: type


async def elsewhere() -> None:
    bare.delay("7")  # wrong: type
    bare.delay()  # wrong: missing
    bare.delay(7, "a@b", 3)  # wrong: one too many
    bare.delay(7, mail="a@b")  # wrong: name
    await bare.delay_async("7")  # wrong: type
    await bare.delay_async(7, mail="a@b")  # wrong: name
    bare.job("7")  # wrong: type
    bare.job()  # wrong: missing
    bare.options(priority=3).job("7")  # wrong: type
    bare("7")  # wrong: type
    with_options.delay(order=None)  # wrong: missing


def options(session: Session) -> None:
    bare.options(priority=3).enqueue(session, "7")  # wrong: type
    bare.options(priority=3).enqueue(session)  # wrong: missing
    bare.options(priority=3).enqueue(session, 7, mail="a@b")  # wrong: name
    bare.options(qeue="vip")  # wrong: no such option
    bare.options(name="other")  # wrong: an option of the task alone
    bare.options(priority="high")  # wrong: type
    bare.options(delay="30s")  # wrong: type
    bare.options(run_at="tomorrow")  # wrong: type
    bare.options(retry=3)  # wrong: type
    bare.options(tags="a")  # wrong: text for a list
    bare.options("vip")  # wrong: by keyword only
    bare.options(unique=True, unique_until="started")  # wrong: no such moment
    bare.options(unique=True, on_conflict="ignore")  # wrong: no such way
    app.task(unique=True, unique_until="started")  # wrong: no such moment
    app.task(unique=True, on_conflict="ignore")  # wrong: no such way
    app.task(qeue="vip")  # wrong: no such option
    app.task(unique_key="k")  # wrong: an option of one call alone
    app.task(retry=RetryPolicy)  # wrong: a class
    app.task(timeout="30s")  # wrong: type
    app.task(7)  # wrong: not a function


def connections(engine: sa.Engine, async_engine: AsyncEngine, maker: sessionmaker[Session], session: Session) -> None:
    bare.enqueue(7)  # wrong: no connection
    bare.enqueue(None, 7)  # wrong: no connection
    bare.enqueue("postgresql://localhost/shop", 7)  # wrong: no connection
    bare.enqueue(engine, 7)  # wrong: no connection
    bare.enqueue(async_engine, 7)  # wrong: no connection
    bare.enqueue(maker, 7)  # wrong: no connection
    bare.enqueue(connection=session, user_id=7)  # wrong: the connection has no name
    bare.enqueue_many([(1, "a@b")])  # wrong: no connection
    bare.enqueue_many(session, [1, 2])  # wrong: calls are tuples or dicts
    app.enqueue_many(session, [(1, "a@b")])  # wrong: jobs of several tasks are made by job()
    app.enqueue_many(session, [bare.enqueue(session, 7)])  # wrong: enqueued already


async def awaiting(session: Session, async_session: AsyncSession) -> None:
    await bare.enqueue(session, 7)  # wrong: nothing to await
    await bare.delay(7)  # wrong: nothing to await
    await bare.enqueue_many(session, [(7,)])  # wrong: nothing to await
    await bare(7)  # wrong: nothing to await
    bare.enqueue(async_session, 7)  # wrong: never awaited
    bare.enqueue_many(async_session, [(7,)])  # wrong: never awaited
    bare.delay_async(7)  # wrong: never awaited
    bare.enqueue(async_session, 7).id  # wrong: not awaited yet
    job: Job = bare.enqueue(async_session, 7)  # wrong: not awaited yet
    ids: list[int] = bare.enqueue_many(async_session, [(7,)])  # wrong: not awaited yet
    more: list[int] = await app.enqueue_many(session, [])  # wrong: nothing to await
    text: list[str] = bare.enqueue_many(session, [(7,)])  # wrong: ids are whole numbers
    print(job, ids, more, text)


def context(session: Session) -> None:
    context_first.enqueue(session)  # wrong: missing
    context_first.enqueue(session, None, 7)  # wrong: the context is no argument of the call
    context_first.enqueue(session, "7")  # wrong: type
    context_first.enqueue(session, 7, ctx=None)  # wrong: the context is no argument of the call
    context_first_with_options.enqueue(session, "7")  # wrong: type
    context_first_with_options.delay(None, 7)  # wrong: the context is no argument of the call
    context_by_keyword.enqueue(session, "7")  # wrong: type
    context_demanded.enqueue(session, 7)  # wrong: so checkers say; give it a default, or put it first


async def progress(ctx: Context) -> None:
    ctx.progress()  # wrong: missing
    ctx.progress("40%")  # wrong: a number
    ctx.progress(0.4, 7)  # wrong: a note is text
    await ctx.progress(0.4)  # wrong: nothing to await
    app.jobs.progress(7).fraction  # wrong: it may have said nothing
    app.jobs.progress_async(7)  # wrong: never awaited


def events() -> None:
    app.on("complete")  # wrong: no such event

    @app.on("completed")  # wrong: the handler takes no event
    def nothing() -> None: ...

    @app.on("completed")  # wrong: the handler wants two
    def two(event: Event, other: int) -> None: ...

    @app.on("failed")  # wrong: a handler is given an Event
    def job(job: Job) -> None: ...


def lifespans() -> None:
    @app.lifespan  # wrong: the lifespan takes no state
    def nothing() -> Iterator[None]:
        yield

    @app.lifespan  # wrong: no generator
    def returns(state: AppState) -> None: ...

    @app.lifespan  # wrong: an async one is a generator, too
    async def awaited(state: AppState) -> None: ...

    print(app.state.pool)


def middleware() -> None:
    @app.middleware  # wrong: it is given a Context
    def of_a_job(job: Job) -> Iterator[None]:
        yield

    @app.middleware  # wrong: no generator
    def returns(ctx: Context) -> None: ...

    app.task(middleware=[bare])  # wrong: a task is none


def hooks() -> None:
    @app.before_enqueue  # wrong: it is given a NewJob
    def of_a_job(job: Job) -> None: ...

    @app.before_enqueue  # wrong: it gives a NewJob, or None
    def told(new: NewJob) -> str:
        return new.task

    @app.before_enqueue  # wrong: nobody could await it
    async def awaited(new: NewJob) -> None: ...
