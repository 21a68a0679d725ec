"""PgQueue: where database, tasks, events and the rooms below meet. An application makes one and keeps it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, cast, overload
from zoneinfo import ZoneInfo

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from pgqueue import control, db, enqueue, environment, hooks, monitor, versions
from pgqueue.context import AppState, Context
from pgqueue.control import DeadFilter
from pgqueue.drivers import (
    AsyncConnection,
    Steps,
    SyncConnection,
    look,
    perform,
    perform_async,
    perform_either,
    perform_raw,
)
from pgqueue.enqueue import NewJob, Sender
from pgqueue.errors import ConfigurationError, DuplicateTask, InvalidOption, JobNotFound, SchemaError
from pgqueue.events import EventName, Events, Handler, redriven
from pgqueue.hooks import Hook
from pgqueue.job import Job, LogLine, Progress, at_home
from pgqueue.link import ENCODING
from pgqueue.maintenance.chores import chores
from pgqueue.middleware import Middleware, unfit
from pgqueue.retention import Retention
from pgqueue.retry import Backoff, RetryPolicy
from pgqueue.schedule import Schedule
from pgqueue.schedules import Schedules
from pgqueue.settings import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_QUEUE,
    DEFAULT_SCHEMA,
    RETENTION,
    VERSION,
    WorkerSettings,
    conninfo_from_url,
    database_url,
    positive_seconds,
    schema_name,
)
from pgqueue.sql import Statements, source, statements
from pgqueue.steering import Queues, Steered, Tasks, act, say_jobs, seen
from pgqueue.task import RunIn, Task, make
from pgqueue.unique import OnConflict, Until
from pgqueue.waiting import Waiting
from pgqueue.worker.heartbeat import Heart
from pgqueue.worker.lifespan import Held, Lifespan, Lifespans
from pgqueue.worker.loop import Loop, Suspects
from pgqueue.worker.solo import Worker

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
H = TypeVar("H", bound=Handler)
L = TypeVar("L", bound=Lifespan)
M = TypeVar("M", bound=Middleware)
K = TypeVar("K", bound=Hook)

log = logging.getLogger("pgqueue")

CONNECT_TIMEOUT = 10  # seconds; a stalled server must not hold an application up for libpq's two minutes
_OF_THE_APP: dict[str, Any] = {
    "application_name": "pgqueue",
    "connect_timeout": CONNECT_TIMEOUT,
    "client_encoding": ENCODING,
}


class PgQueue:
    """A job queue in one schema of one PostgreSQL database.

    database: a URL (`postgresql://…`, also as SQLAlchemy writes it), an SQLAlchemy Engine on psycopg, or nothing:
    PGQUEUE_DATABASE_URL, looked up at first use. schema: the schema of the tables; "pgqueue". retention: seconds that a
    finished job is kept at least; one day. keep, keep_dead, keep_dead_for: what tasks keep that do not say; no limit.
    Making one connects to nothing. Raises ConfigurationError.
    """

    def __init__(
        self,
        database: str | sa.Engine | None = None,
        *,
        schema: str = DEFAULT_SCHEMA,
        retention: float = RETENTION,
        keep: int | None = None,
        keep_dead: int | None = None,
        keep_dead_for: float | timedelta | None = None,
    ) -> None:
        if isinstance(database, sa.Engine):
            if database.dialect.driver != "psycopg":
                raise ConfigurationError(
                    f"the engine runs on {database.dialect.driver}; pgqueue needs one made from postgresql+psycopg://"
                )
        elif database is not None and not isinstance(database, str):
            raise ConfigurationError(
                f"database must be a URL or an SQLAlchemy Engine, not {type(database).__qualname__}"
            )
        elif database is not None:
            conninfo_from_url(database)
        environment.warn(log.warning)
        self._database = database
        self.schema = schema_name(schema)
        self.retention = positive_seconds("retention", retention)
        try:
            self.kept = Retention(keep=keep, keep_dead=keep_dead, keep_dead_for=keep_dead_for)
        except InvalidOption as error:
            raise ConfigurationError(str(error)) from None
        self.tasks = Tasks(self)
        self.queues = Queues(self)
        self.events = Events()
        self.state = AppState()
        self.lifespans = Lifespans(self.state)
        self.around: list[Middleware] = []
        self.hooks: list[Hook] = []
        self.sender = Sender()
        self.jobs = Jobs(self)
        self.dead = Dead(self)
        self.schedules = Schedules(self)
        self._engine_conninfo: str | None = None
        self._engine: tuple[int, sa.Engine] | None = None
        self._async_engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncEngine] = (
            weakref.WeakKeyDictionary()
        )

    # -- tasks and events ----------------------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[Concatenate[_Anything, P], R], /) -> Task[Concatenate[Any, P], R]: ...
    @overload
    def task(self, function: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: int = 0,
        delay: float | timedelta = 0.0,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        retry: RetryPolicy | Backoff | None = None,
        timeout: float | timedelta | None = None,
        hard_timeout: float | timedelta | None = None,
        run_in: RunIn = "auto",
        keep_log: bool = False,
        keep_result: bool = True,
        expires_in: float | timedelta | None = None,
        keep: int | None = None,
        keep_for: float | timedelta | None = None,
        keep_dead: int | None = None,
        keep_dead_for: float | timedelta | None = None,
        middleware: Sequence[Middleware] = (),
        unique: bool | tuple[str, ...] | list[str] = False,
        unique_until: Until = "finished",
        unique_for: float | timedelta | None = None,
        on_conflict: OnConflict = "keep",
        debounce_for: float | timedelta | None = None,
        tags: tuple[str, ...] | list[str] = (),
        meta: Mapping[str, Any] | None = None,
        wake: bool = True,
        cron: str | None = None,
        every: float | timedelta | None = None,
        timezone: str | ZoneInfo | None = None,
        schedules: Sequence[Schedule] = (),
    ) -> Decorator: ...
    def task(self, *function: Any, **options: Any) -> Any:
        """Registers a plain function, sync or async, as a task. Bare or with options:

            @app.task(queue="email", max_attempts=4, retry=RetryPolicy(delay=2), timeout=30)
            def send_welcome_email(user_id: int, email: str) -> dict: ...

        name: what rows call it; `module.function`. retry: a RetryPolicy, or a function of (attempt, error) that returns
        seconds or None for no further attempt. timeout: seconds an attempt may run, then it is told to end; no limit.
        hard_timeout: seconds after which it is killed in a process, and called stuck elsewhere. run_in: auto (an async
        def on the loop, a def in a thread), loop, thread, or process: one of its own. keep_log: what its jobs say by
        `ctx.log` is kept with them, see `app.jobs.log`. keep_result: whether what it returns is stored. keep, keep_for,
        keep_dead, keep_dead_for: how many of its finished and dead jobs stay, and how many seconds; as its app says.
        middleware: generator functions around each of its attempts, inside the app's; see `middleware`.
        cron="0 2 * * *" in a timezone, or every=60: enqueued by itself at these times; several, and arguments:
        schedules=[Schedule(...)]. The other options are the defaults of its jobs, see `Options`. Raises InvalidTask,
        DuplicateTask, InvalidOption.
        """
        if not function:
            return partial(self._register, **options)
        return self._register(*function, **options)

    def _register(self, function: Callable[..., Any], **options: Any) -> Task[..., Any]:
        made = make(self, function, **options)
        known = self.tasks.get(made.name)
        if known is not None and _where(known.function) != _where(made.function):
            raise DuplicateTask(f"task {made.name} is defined twice: give one of them another name=")
        names = [one.name or made.name for one in made.schedules]
        taken = {
            one.name or task.name for task in self.tasks.values() if task.name != made.name for one in task.schedules
        }
        twice = sorted({name for name in names if name in taken or names.count(name) > 1})
        if twice:
            raise InvalidOption(f"two schedules are called {twice[0]}: give one of them another name=")
        self.tasks[made.name] = made
        return made

    def on(self, event: EventName) -> Callable[[H], H]:
        """Calls the decorated function, sync or async, with each such Event, in the process where it happened.

        In workers: started · completed · failed · retried · snoozed · released · dead_lettered · cancelled · rescued ·
        expired · claim_lost. Where `app.dead.redrive` is called: redriven; where `app.jobs.cancel` is: cancelled, of
        what nobody ran.
        """

        def add(handler: H) -> H:
            self.events.add(event, handler)
            return handler

        return add

    def lifespan(self, function: L) -> L:
        """Opens something before a worker's first job and closes it after the last, in each process that works:

            @app.lifespan
            async def clients(state: AppState) -> AsyncIterator[None]:
                async with httpx.AsyncClient() as state.http:
                    yield

        A sync or async generator function with one `yield`. Tasks find it in `ctx.state`. Raises ConfigurationError.
        """
        self.lifespans.add(function)
        return function

    def middleware(self, function: M) -> M:
        """Runs around each attempt of every task, sync or async; see pgqueue/middleware.py:

            @app.middleware
            def timed(ctx: Context) -> Iterator[None]:
                began = time.monotonic()
                try:
                    yield
                finally:
                    ctx.log.info("took %.3f s", time.monotonic() - began)

        A sync or async generator function with one `yield`, which gives the result, or raises the task's error. What it
        raises itself is the attempt's error. Raises ConfigurationError.
        """
        if why := unfit(function):
            raise ConfigurationError(why)
        self.around.append(function)
        for task in self.tasks.values():
            task.forget_body()
        return function

    def before_enqueue(self, function: K) -> K:
        """Shows the decorated function each job before it is enqueued, before any SQL; see pgqueue/hooks.py:

            @app.before_enqueue
            def traced(new: NewJob) -> NewJob | None:
                return new.replace(meta={**(new.options.meta or {}), "trace": "..."})

        It returns the job with other options, or None to leave it as it is; or raises, and the job is refused. Not for
        enqueues in SQL, which know no Python. Raises ConfigurationError.
        """
        if why := hooks.unfit(function):
            raise ConfigurationError(why)
        self.hooks.append(function)
        return function

    # -- enqueue -------------------------------------------------------------------------------------------------------

    @overload
    def enqueue_many(self, connection: SyncConnection, jobs: Iterable[NewJob], /) -> list[int]: ...
    @overload
    def enqueue_many(
        self, connection: AsyncConnection, jobs: Iterable[NewJob], /
    ) -> Coroutine[Any, Any, list[int]]: ...
    def enqueue_many(
        self, connection: SyncConnection | AsyncConnection, jobs: Iterable[NewJob], /
    ) -> list[int] | Awaitable[list[int]]:
        """Enqueues jobs of any tasks, made by `task.job(...)`; all or none. The ids, in input order."""
        hooked = map(partial(hooks.apply, self.hooks), jobs) if self.hooks else jobs
        return enqueue.enqueue_many(self.sender, self.statements, connection, hooked)

    @property
    def statements(self) -> Statements:
        """The statements of this schema."""
        return statements(self.schema)

    def enqueue_alone(self, new: NewJob) -> Job:
        """`task.delay`: a short transaction of its own."""
        return self.perform(self.sender.one(self.statements, new, self.jobs))

    async def enqueue_alone_async(self, new: NewJob) -> Job:
        """`task.delay_async`: the same on the running event loop."""
        async with self.async_engine.begin() as connection:
            return await perform_async(connection, self.sender.one(self.statements, new, self.jobs))

    def move(self, database: str | None, schema: str | None) -> None:
        """Works elsewhere from now on, where given: what a worker's command line says holds in its jobs too."""
        if database is not None:
            conninfo_from_url(database)
            self.close()
            self._database = database
        if schema is not None:
            self.schema = schema_name(schema)

    # -- connections of the app's own ----------------------------------------------------------------------------------

    def perform(self, steps: Steps[T]) -> T:
        """Runs the steps in one transaction of their own."""
        with self.engine.begin() as connection:
            return perform(connection, steps)

    def look(self, steps: Steps[T]) -> T:
        """`perform` for steps that only read: on a standby, too."""
        with self.engine.begin() as connection:
            return look(cast("psycopg.Connection[Any]", connection.connection.driver_connection), steps)

    @property
    def conninfo(self) -> str:
        """What psycopg connects with. Raises ConfigurationError without a database, sqlalchemy.exc.OperationalError
        when an Engine was given, which is asked once, and its database cannot be reached."""
        if isinstance(self._database, sa.Engine):
            return self._conninfo_of(self._database)
        return conninfo_from_url(database_url(self._database))

    def _conninfo_of(self, engine: sa.Engine) -> str:
        """Asked of a connection: an engine's URL knows nothing of its connect_args, its creator or its events."""
        if self._engine_conninfo is None:
            with engine.connect() as connection:
                info = cast("psycopg.Connection[Any]", connection.connection.driver_connection).info
                self._engine_conninfo = make_conninfo(**info.get_parameters(), password=info.password or None)
        return self._engine_conninfo

    @property
    def engine(self) -> sa.Engine:
        """The Engine given, or one of our own, with a pool for each process: a fork must not share its connections."""
        if isinstance(self._database, sa.Engine):
            return self._database
        if self._engine is None or self._engine[0] != os.getpid():
            connect = partial(psycopg.connect, self.conninfo, **_OF_THE_APP)
            self._engine = (os.getpid(), sa.create_engine("postgresql+psycopg://", creator=connect))
        return self._engine[1]

    @property
    def async_engine(self) -> AsyncEngine:
        """An AsyncEngine of our own for the running event loop; its connections cannot leave that loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._async_engines:
            connect = partial(psycopg.AsyncConnection.connect, self.conninfo, **_OF_THE_APP)
            self._async_engines[loop] = create_async_engine("postgresql+psycopg://", async_creator=connect)
        return self._async_engines[loop]

    def close(self) -> None:
        """Closes the connections that `delay`, `jobs` and `dead` opened. A later call opens new ones. Who waits for a
        job goes on, and that connection is closed after the last of them."""
        self.jobs.waiting.close()
        if self._engine is not None and self._engine[0] == os.getpid():
            self._engine[1].dispose()
        self._engine = None

    async def close_async(self) -> None:
        """Closes what `delay_async` opened on the running event loop."""
        engine = self._async_engines.pop(asyncio.get_running_loop(), None)
        if engine is not None:
            await engine.dispose()

    # -- work ----------------------------------------------------------------------------------------------------------

    def worker(self, **settings: Any) -> Worker:
        """A worker for this process: `app.worker(queues=["email"], concurrency=20).run()`; see WorkerSettings.

        Raises ConfigurationError for a setting that cannot work, InvalidTask for a task whose annotations cannot be
        read. `pgqueue worker` is the stronger way to run one.
        """
        for task in self.tasks.values():
            task.check()
        if isinstance(settings.get("queues"), list):
            settings["queues"] = tuple(settings["queues"])
        try:
            made = WorkerSettings(**settings)
        except TypeError as error:
            raise ConfigurationError(f"app.worker(): {str(error).partition('__init__() ')[2] or error}") from None
        row = {"tasks": sorted(self.tasks), "version": VERSION}
        return Worker(made, heart=self._heart, loop=self.loop, held=partial(Held, self.lifespans), row=row)

    def loop(
        self,
        settings: WorkerSettings,
        worker_id: Any,
        conninfo: str | None = None,
        *,
        suspects: Suspects = "when idle",
        on_suspects: Callable[[int], None] | None = None,
        declares: bool = True,
        on_declared: Callable[[], None] | None = None,
    ) -> Loop:
        """The heart of one worker of this app; its row must have been written. on_suspects: told by its sweep how
        many jobs wait that must run alone, if any do. declares: it writes down what schedules its code declares, and
        then tells on_declared."""
        return Loop(
            conninfo=conninfo or self.conninfo,
            listen_conninfo=None if settings.listen_url is None else conninfo_from_url(settings.listen_url),
            sql=self.statements,
            tasks=self.tasks,
            events=self.events,
            settings=settings,
            worker_id=worker_id,
            suspects=suspects,
            chores=chores(
                self.statements,
                settings,
                self.retention,
                random.random,
                tasks={name: task.retention for name, task in self.tasks.items()},
                on_suspects=on_suspects,
                schedules=[row for task in self.tasks.values() for row in task.scheduled()] if declares else None,
                on_declared=on_declared,
            ),
        )

    def _heart(self, settings: WorkerSettings) -> Heart:
        heart = Heart(self.conninfo, self.statements, settings.lease)
        try:
            check(heart)
        except BaseException:
            heart.close()
            raise
        return heart


# Not what applications and operators do: their roles may have other rights.
_OF_OTHERS = {
    "enqueue",
    "enqueue_many",
    "enqueue_alike",
    "enqueue_queued",
    "enqueue_periods",
    "holder",
    "holders",
    "holders_queued",
    "holders_periods",
    "replace",
    "cancel",
    "hold",
    "change",
    "retry_now",
    "redrive",
    "purge",
    "taken",
    "pause",
    "run_now",
    "remove",
}
OF_A_WORKER = tuple(verb for verb, _ in source("job", "schedule", "worker") if verb not in _OF_OTHERS)


def check(heart: Heart) -> None:
    """Raises psycopg.OperationalError or SchemaError when a worker could not work on this database."""
    # Not on the heart's connection, whose first words an older server would not understand.
    with psycopg.connect(heart.conninfo, autocommit=True, connect_timeout=CONNECT_TIMEOUT) as raw:
        perform_raw(raw, monitor.check_server(heart.sql))
    try:
        heart.perform(monitor.check_schema(heart.sql, versions.head()))
        heart.perform(monitor.check_statements(heart.sql, OF_A_WORKER))
    except psycopg.errors.UndefinedTable:
        raise SchemaError(f'schema "{heart.sql.schema}" holds no pgqueue tables: run `pgqueue migrate`') from None
    except psycopg.errors.InsufficientPrivilege as error:  # not even the version
        raise heart.perform(monitor.refusal(heart.sql, ("schema_version", *OF_A_WORKER), error)) from None


class Jobs(Steered):
    """`app.jobs`: look at jobs, wait for them; cancel them, change them, run them sooner."""

    def __init__(self, app: PgQueue) -> None:
        super().__init__(app)
        self._app = app
        self.waiting = Waiting(lambda: app.statements, lambda: app.conninfo)

    @overload
    def get(self, job_id: int, *, connection: SyncConnection | None = None) -> Job: ...
    @overload
    def get(self, job_id: int, *, connection: AsyncConnection) -> Coroutine[Any, Any, Job]: ...
    def get(self, job_id: int, *, connection: SyncConnection | AsyncConnection | None = None) -> Any:
        """The job, in whatever state. Raises JobNotFound."""
        if connection is not None:
            return perform_either(connection, _one_to_wait_for(self._app, job_id))
        found = _find(self._app, ids=[job_id])
        if not found:
            raise JobNotFound(f"there is no job {job_id}")
        return found[0]

    def wait(self, job_id: int, timeout: float | timedelta | None = None) -> Any:
        """What the job's task returned, as JSON keeps it, once it has; of a result that was dropped the marker.

        timeout: seconds, or a timedelta; None waits for ever. Raises JobFailed when the job is dead, cancelled or
        expired, WaitTimeout, ResultGone when nothing of it is kept, JobNotFound. A job that waits keeps its slot.
        """
        return self.waiting.wait(job_id, timeout)

    async def wait_async(self, job_id: int, timeout: float | timedelta | None = None) -> Any:  # noqa: ASYNC109
        """`wait` for the running event loop."""
        return await self.waiting.wait_async(job_id, timeout)

    @overload
    def why(self, job_id: int, *, connection: SyncConnection | None = None) -> list[monitor.Cause]: ...
    @overload
    def why(self, job_id: int, *, connection: AsyncConnection) -> Coroutine[Any, Any, list[monitor.Cause]]: ...
    def why(self, job_id: int, *, connection: SyncConnection | AsyncConnection | None = None) -> Any:
        """Why the job is not running: each cause as (cause, detail, since), the weightiest first, whose detail is a
        sentence that stands by itself. `unknown` of a job that never was; ended and running ones are told of, too."""
        return seen(self._app, connection, monitor.why(self._app.statements, job_id))

    def progress(self, job_id: int) -> Progress | None:
        """How far the job is, as it said by `ctx.progress()`; None if it said nothing, or ended over an hour ago."""
        return self._app.look(monitor.progress(self._app.statements, job_id))

    async def progress_async(self, job_id: int) -> Progress | None:
        """`progress` for the running event loop."""
        async with self._app.async_engine.begin() as connection:
            return await perform_async(connection, monitor.progress(self._app.statements, job_id))

    def log(self, job_id: int, *, attempt: int | None = None, limit: int = 10_000) -> list[LogLine]:
        """What the job said by `ctx.log`, where its task keeps that (`keep_log=True`): the last `limit` lines (up to
        100,000), oldest first; of one attempt, or of all."""
        return self._app.look(monitor.log_of(self._app.statements, job_id, attempt=attempt, limit=limit))

    @overload
    def list(
        self,
        *,
        state: str | None = None,
        task: str | None = None,
        queue: str | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: SyncConnection | None = None,
    ) -> list[Job]: ...
    @overload
    def list(
        self,
        *,
        state: str | None = None,
        task: str | None = None,
        queue: str | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: AsyncConnection,
    ) -> Coroutine[Any, Any, list[Job]]: ...
    def list(
        self,
        *,
        state: str | None = None,
        task: str | None = None,
        queue: str | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: SyncConnection | AsyncConnection | None = None,
    ) -> Any:
        """Jobs in any state, newest first; up to `limit` (1 to 1,000), with ids below `before`."""
        which: dict[str, Any] = {"state": state, "task": task, "queue": queue, "before": before, "limit": limit}
        if connection is not None:
            return perform_either(connection, _to_wait_for(self._app, **which))
        return _find(self._app, **which)


class Dead:
    """`app.dead`: the dead-letter table. Each call is a short transaction of its own, or part of the caller's, where a
    connection is given (an async one makes it an awaitable). Filters: see DeadFilter."""

    def __init__(self, app: PgQueue) -> None:
        self._app = app

    @overload
    def redrive(
        self,
        job_id: int | None = None,
        /,
        *,
        args: Any = None,
        dry_run: bool = False,
        connection: SyncConnection | None = None,
        **which: Unpack[DeadFilter],
    ) -> list[int]: ...
    @overload
    def redrive(
        self,
        job_id: int | None = None,
        /,
        *,
        args: Any = None,
        dry_run: bool = False,
        connection: AsyncConnection,
        **which: Unpack[DeadFilter],
    ) -> Coroutine[Any, Any, list[int]]: ...
    def redrive(
        self,
        job_id: int | None = None,
        /,
        *,
        args: Any = None,
        dry_run: bool = False,
        connection: SyncConnection | AsyncConnection | None = None,
        **which: Unpack[DeadFilter],
    ) -> Any:
        """Sends dead jobs back to their queues, by id or by filter; the ids that were (with dry_run: would be) sent.

        args: corrected arguments, a dict or a list. Atomic, and twice gives one job. Raises UniqueKeyTaken.
        Handlers of `redriven` hear of it in this process, after the commit; not with a connection=, whose transaction
        may yet be rolled back.
        """
        if job_id is not None:
            which["ids"] = [job_id]
        heard: list[db.Redriven] = []
        events, sql = self._app.events, self._app.statements
        steps = control.redrive(sql, args=args, dry_run=dry_run, heard=heard.extend, **which)
        return act(
            self._app,
            connection,
            steps,
            lambda done: say_jobs([] if dry_run else done, "jobs_redriven", "redriven"),
            lambda: events.tell([redriven(*job) for job in heard]),
        )

    @overload
    def purge(
        self,
        job_id: int | None = None,
        /,
        *,
        dry_run: bool = False,
        connection: SyncConnection | None = None,
        **which: Unpack[DeadFilter],
    ) -> list[int]: ...
    @overload
    def purge(
        self,
        job_id: int | None = None,
        /,
        *,
        dry_run: bool = False,
        connection: AsyncConnection,
        **which: Unpack[DeadFilter],
    ) -> Coroutine[Any, Any, list[int]]: ...
    def purge(
        self,
        job_id: int | None = None,
        /,
        *,
        dry_run: bool = False,
        connection: SyncConnection | AsyncConnection | None = None,
        **which: Unpack[DeadFilter],
    ) -> Any:
        """Removes dead jobs for good, by id or by filter; their ids."""
        if job_id is not None:
            which["ids"] = [job_id]
        steps = control.purge(self._app.statements, dry_run=dry_run, **which)
        said = "jobs_purged", "removed from the dead-letter table"
        return act(self._app, connection, steps, lambda done: say_jobs([] if dry_run else done, *said))

    @overload
    def list(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: SyncConnection | None = None,
    ) -> list[Job]: ...
    @overload
    def list(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: AsyncConnection,
    ) -> Coroutine[Any, Any, list[Job]]: ...
    def list(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: SyncConnection | AsyncConnection | None = None,
    ) -> Any:
        """Dead jobs, newest first, with reason and every attempt's error."""
        which: dict[str, Any] = {"state": "dead", "task": task, "queue": queue, "before": before, "limit": limit}
        if connection is not None:
            return perform_either(connection, _to_wait_for(self._app, **which))
        return _find(self._app, **which)


def _one_to_wait_for(app: PgQueue, job_id: int) -> Steps[Job]:
    return at_home((yield from monitor.one(app.statements, job_id)), app.jobs)


def _to_wait_for(app: PgQueue, **which: Any) -> Steps[list[Job]]:
    return [at_home(job, app.jobs) for job in (yield from monitor.find(app.statements, **which))]


def _find(app: PgQueue, **which: Any) -> list[Job]:
    """The jobs; each by itself when one of them holds JSON of which the server cannot make text: it hides no other."""
    try:
        found = app.look(monitor.find(app.statements, **which))
    except psycopg.errors.ProgramLimitExceeded:
        found = [_alone(app, job) for job in app.look(monitor.find(app.statements, **which, bare=True))]
    return [at_home(job, app.jobs) for job in found]


def _alone(app: PgQueue, job: Job) -> Job:
    try:
        return next(iter(app.look(monitor.find(app.statements, ids=[job.id]))), job)
    except psycopg.errors.ProgramLimitExceeded:
        return job


class _Anything:
    """For type checkers: only a parameter annotated Any takes it. Such a parameter would take a Context as well, and
    must not be taken for one when it stands first."""


class Decorator(Protocol):
    """What `app.task(...)` with options returns, for type checkers: it keeps the function's own signature."""

    @overload
    def __call__(self, function: Callable[Concatenate[_Anything, P], R], /) -> Task[Concatenate[Any, P], R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


def _where(function: Callable[..., Any]) -> tuple[str, int]:
    """File and line: a module that is imported twice, as __main__ and by name, defines its tasks twice."""
    code = function.__code__
    return code.co_filename, code.co_firstlineno
