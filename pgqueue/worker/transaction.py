"""A job's own transaction, `ctx.transaction()`: effects and completion are one commit, checked by owner and fence.

Between run.py, which ends with what this says, and settle.py, which then has nothing left to write. The completion is
the settle's statement, run on the job's own connection as the last one before COMMIT. No row back: the claim was lost,
and all of it is rolled back (ClaimLost). When COMMIT itself is not answered, the claim is looked up until the database
says what became of it. A block that ends because its connection has broken is no failure of the job's (`hindrance`). A
connection is opened when a job asks for one, kept for the next, and cleaned in between.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from pgqueue import db
from pgqueue.arguments import result_json
from pgqueue.drivers import Steps, perform, perform_async
from pgqueue.errors import Cancel, ClaimLost, TaskTimeout, TransactionRefused
from pgqueue.link import INFRASTRUCTURE, AsyncBounded, Bounded, Link, Trouble, backoff, connect, connect_async, for_jobs
from pgqueue.sql import Statements
from pgqueue.worker.claim import Attempt
from pgqueue.worker.lines import Keeper, Lines
from pgqueue.worker.progress import Mark, Marks, write

T = TypeVar("T")

Stage = Literal["none", "open", "ending", "completed", "lost", "over"]
"""none: no transaction, or one that was rolled back. open: the job is inside. ending: completed but for COMMIT.
completed, lost: as it ended. over: the run has ended, and what is still open is cut off."""

_NO_COMMIT = (
    "inside ctx.transaction() the job commits and rolls back nothing itself: effects and completion are one commit, at "
    "the end of the block; for a part use a savepoint (begin_nested() of a session, transaction() of a connection)"
)
_AWAY = (*INFRASTRUCTURE, sa.exc.OperationalError, sa.exc.InterfaceError)

_REFUSALS = {
    "open": "this job's ctx.transaction() is open already: a job has one; use a savepoint inside it",
    "ending": "this job's ctx.transaction() is open already: a job has one; use a savepoint inside it",
    "completed": "this job was completed by its ctx.transaction(): a second one is not possible",
    "lost": "this job's claim is lost: nothing it writes would be kept",
    "over": "the run of this job has ended, and its ctx.transaction() with it",
}


class Kind(NamedTuple):
    """A connection's. SQLAlchemy makes a connection read values its own way, so it does not serve the other kind."""

    is_async: bool
    driver: bool


@dataclass(eq=False, slots=True)
class Held:
    """A connection, or the place for one; engine: SQLAlchemy's, which has this one and no other."""

    kind: Kind
    raw: Any = None
    pooled: bool = False
    engine: Any = None

    def finish(self) -> None:
        """Closes it, from whatever thread or none; nobody may be using it."""
        if self.raw is not None:
            self.raw.pgconn.finish()


class Connections:
    """What the jobs of one worker write with: as many as ask at once, so `most` is the number of its slots."""

    def __init__(
        self, conninfo: str, *, most: int, lease: float, patience: float, uniform: Callable[[], float]
    ) -> None:
        self._conninfo = conninfo
        self._most = most
        self.patience = patience
        self.idle_limit = round(lease * 1000)  # milliseconds: a frozen worker keeps no lock for longer than its lease
        self._uniform = uniform
        self._trouble = Trouble("job", conninfo)
        self._idle: deque[Held] = deque()  # the one used last is at the right
        self._lent: set[Held] = set()
        self._closed = False
        self._lock = threading.Lock()

    def link(self) -> Link:
        """A connection for a question beside them."""
        return Link(self._conninfo, "job", self._uniform, self.patience)

    def close(self) -> None:
        """Closes those that nobody uses, and each other one when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, deque()
        for held in idle:
            held.finish()
        for held in list(self._lent):
            _cut(held)

    @contextmanager
    def lend(self, driver: bool, told: threading.Event) -> Iterator[Held]:
        """A connection for one transaction; waits for the database, unless `told` to end."""
        held = self._take(Kind(False, driver), told)
        try:
            yield held
        finally:
            self._give_back(held)

    @asynccontextmanager
    async def lend_async(self, driver: bool) -> AsyncIterator[Held]:
        held = await self._take_async(Kind(True, driver))
        try:
            yield held
        finally:
            await self._give_back_async(held)

    # -- taken and given back: twice, for the two kinds of psycopg's calls ---------------------------------------------

    def _take(self, kind: Kind, told: threading.Event) -> Held:
        while (held := self._pick(kind)).raw is not None:
            try:
                self._prepare(held)
                return held
            except psycopg.Error:  # the server was restarted, or ended an idle session
                self._drop(held)
        tries = 0
        try:
            while True:
                try:
                    self._open(held)
                except _AWAY as error:
                    tries += 1
                    self._trouble.begins(error)
                    if told.wait(backoff(tries, self._uniform)):
                        raise
                else:
                    self._trouble.ends()
                    return held
        except BaseException:
            self._drop(held)
            raise

    def _open(self, held: Held) -> None:
        held.finish()  # what an earlier try has left
        raw, held.pooled = connect(self._conninfo, "job", self.patience)
        held.raw = raw
        self._clean(held)
        self._set(held)  # what SQLAlchemy asks of a new connection it asks in a transaction
        raw.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        if held.kind.driver:
            held.raw.commit = held.raw.rollback = _refuse  # psycopg refuses them too, in words that no log may repeat
        else:
            raw.autocommit = False
            held.engine = _engine(raw)
            raw.autocommit = True
        self._prepare(held)

    def _prepare(self, held: Held) -> None:
        """Our settings; and a look whether the server is there."""
        raw: Bounded = held.raw
        self._set(held)
        raw.autocommit = held.kind.driver
        raw.patience = math.inf  # a job's own statement may take its time

    def _set(self, held: Held) -> None:
        if held.pooled:
            return  # it is done in each transaction
        raw, settings = held.raw, for_jobs(self.idle_limit)
        try:
            raw.execute(settings)
        except psycopg.errors.QueryCanceled:  # by a statement_timeout of the role's
            raw.stubborn("set statement_timeout = 0")
            raw.execute(settings)

    def _give_back(self, held: Held) -> None:
        try:
            if not held.raw.closed:
                held.raw.patience = self.patience
                held.raw.autocommit = True
                self._clean(held)
        except psycopg.Error:
            held.finish()
        except BaseException:
            held.finish()
            raise
        finally:
            self._returned(held)

    def _clean(self, held: Held) -> None:
        """What a job has changed must not reach the next: role, search_path, temporary tables, locks, LISTEN. Behind a
        pooler it is not our session: what is to be cleaned there is the pooler's to clean."""
        _reset(held.raw)
        if not held.pooled:
            held.raw.execute("discard all")

    async def _take_async(self, kind: Kind) -> Held:
        while (held := self._pick(kind)).raw is not None:
            try:
                await self._prepare_async(held)
                return held
            except psycopg.Error:
                self._drop(held)
            except BaseException:
                self._drop(held)
                raise
        tries = 0
        try:
            while True:
                try:
                    await self._open_async(held)
                except _AWAY as error:
                    tries += 1
                    self._trouble.begins(error)
                    await asyncio.sleep(backoff(tries, self._uniform))
                else:
                    self._trouble.ends()
                    return held
        except BaseException:
            self._drop(held)
            raise

    async def _open_async(self, held: Held) -> None:
        held.finish()
        raw, held.pooled = await connect_async(self._conninfo, "job", self.patience)
        held.raw = raw
        await self._clean_async(held)
        await self._set_async(held)
        await raw.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        if held.kind.driver:
            held.raw.commit = held.raw.rollback = _refuse_async
        else:
            await raw.set_autocommit(False)
            held.engine = await _async_engine(raw)
            await raw.set_autocommit(True)
        await self._prepare_async(held)

    async def _prepare_async(self, held: Held) -> None:
        raw: AsyncBounded = held.raw
        await self._set_async(held)
        await raw.set_autocommit(held.kind.driver)
        raw.patience = math.inf

    async def _set_async(self, held: Held) -> None:
        if held.pooled:
            return
        raw, settings = held.raw, for_jobs(self.idle_limit)
        try:
            await raw.execute(settings)
        except psycopg.errors.QueryCanceled:
            await raw.stubborn("set statement_timeout = 0")
            await raw.execute(settings)

    async def _give_back_async(self, held: Held) -> None:
        try:
            if not held.raw.closed:
                held.raw.patience = self.patience
                await held.raw.set_autocommit(True)
                await self._clean_async(held)
        except psycopg.Error:
            held.finish()
        except BaseException:  # cancelled meanwhile
            held.finish()
            raise
        finally:
            self._returned(held)

    async def _clean_async(self, held: Held) -> None:
        _reset(held.raw)
        if not held.pooled:
            await held.raw.execute("discard all")

    # -- what is there ------------------------------------------------------------------------------------------------

    def _pick(self, kind: Kind) -> Held:
        """One that was used before, or a place for a new one: one of another kind may have to make room for it."""
        spare = None
        with self._lock:
            held = next((one for one in reversed(self._idle) if one.kind == kind), None)
            if held is not None:
                self._idle.remove(held)
            else:
                held = Held(kind)
                if self._idle and len(self._idle) + len(self._lent) >= self._most:
                    spare = self._idle.popleft()
            self._lent.add(held)
        if spare is not None:
            spare.finish()
        return held

    def _drop(self, held: Held) -> None:
        held.finish()
        self._returned(held)

    def _returned(self, held: Held) -> None:
        with self._lock:
            self._lent.discard(held)
            keep = not self._closed and held.raw is not None and not held.raw.closed
            if keep:
                self._idle.append(held)
        if not keep:
            held.finish()


def _reset(raw: Any) -> None:
    """What a job may have set on psycopg's side."""
    raw.row_factory = tuple_row
    raw.cursor_factory = psycopg.AsyncCursor if isinstance(raw, AsyncBounded) else psycopg.Cursor
    raw.prepare_threshold = None


def _engine(raw: Bounded) -> sa.Engine:
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: raw, poolclass=StaticPool)
    with engine.connect():
        pass  # SQLAlchemy asks a new server who it is, and rolls back
    return engine


def _refuse(*_: Any) -> NoReturn:
    raise TransactionRefused(_NO_COMMIT)


async def _refuse_async(*_: Any) -> NoReturn:
    raise TransactionRefused(_NO_COMMIT)


async def _async_engine(raw: AsyncBounded) -> Any:
    from sqlalchemy.ext.asyncio import create_async_engine

    async def creator() -> AsyncBounded:
        return raw

    engine = create_async_engine("postgresql+psycopg://", async_creator=creator, poolclass=StaticPool)
    async with engine.connect():
        pass
    return engine


def _cut(held: Held) -> None:
    """Ends a connection that somebody else may be using, in another thread even: libpq may not be touched there, but
    the socket beneath can be shut. The server rolls back, and whoever waits for an answer hears that there is none."""
    with suppress(OSError, psycopg.Error, ValueError), socket.socket(fileno=os.dup(held.raw.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


def _is_away(raw: Any, error: BaseException, *, ours: bool) -> bool:
    """Whether a block was ended by the server or the network: not where the job has closed its connection, or where we
    dropped it because the job was cancelled while it waited. ours: a deadlock, say, is the job's own but here."""
    if raw.closed:
        return raw.broken and not raw.dropped
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return isinstance(cause, INFRASTRUCTURE if ours else psycopg.errors.ReadOnlySqlTransaction)


class Fenced:
    """One attempt, and what it may settle by itself."""

    def __init__(
        self,
        sql: Statements,
        connections: Connections,
        complete: Callable[[Attempt, str | None], Steps[set[int]]],
        worker_id: UUID,
        marks: Marks,
        lines: Lines,
        attempt: Attempt,
        told: threading.Event,
    ) -> None:
        """complete: the settle's steps, for this attempt alone. told: set when the job should end."""
        self._sql = sql
        self._connections = connections
        self._completion = complete
        self._worker_id = worker_id
        self._marks = marks
        self._lines = lines
        self._keeper: Keeper | None = None
        self._attempt = attempt
        self._told = told
        self.loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._held: Held | None = None
        self._block: Block | None = None  # kept while it is open, or it would be closed as garbage under the job
        self.stage: Stage = "none"
        self.result: str | None = None
        self._said: Mark | None = None  # written in the transaction that is open
        self.late = False  # the attempt's time is up
        self.cancelled: str | None = None  # why somebody asked it to end
        self.hindrance: BaseException | None = (
            None  # what the last block ended with, where that was not the job's doing
        )
        self._ours = False  # the job is through with the block, and what runs on its connection is ours

    def transaction(self, *, driver: bool) -> Block:
        return Block(self, driver)

    def complete(self, result: Any) -> None:
        if self.stage != "open":
            raise TransactionRefused(
                "ctx.complete(result) belongs inside `with ctx.transaction()`; else return the result"
            )
        self.result = result_json(result)

    def progress(self, fraction: float, note: str | None) -> None:
        if self.stage in ("none", "open"):  # what a thread of the job's says after its end is nobody's business
            claim = self._attempt.claim
            self._marks.put(Mark(claim.id, claim.fence, fraction, note, time.monotonic_ns(), self._told), self.loop)

    def keeper(self) -> Keeper:
        """What keeps the lines that the job says."""
        self._keeper = Keeper(self._lines, self._attempt.claim, self.loop)
        return self._keeper

    def over(self) -> Stage:
        """The run has ended: how its transaction did. One that is still open is cut off; the server rolls it back."""
        if self._keeper is not None:
            self._keeper.close()
        with self._lock:
            ended = self.stage
            if ended in ("none", "open"):
                self.stage = "over"
        if ended == "open" and self._held is not None:
            _cut(self._held)
        return ended

    # -- the block ----------------------------------------------------------------------------------------------------

    def begin(self, block: Block) -> None:
        with self._lock:
            if self.stage != "none":
                raise TransactionRefused(_REFUSALS[self.stage])
            self.stage, self.result, self._block = "open", None, block
            self.hindrance, self._ours = None, False

    @contextmanager
    def sync(self, driver: bool) -> Iterator[Any]:
        """The block of a sync job: what it gives is a psycopg Connection or a Session."""
        try:
            with self._connections.lend(driver, self._told) as held:
                self._held = held
                with self._watched(held), self._raw(held) if driver else self._session(held) as given:
                    yield given
        except BaseException as error:
            if self.stage != "ending":
                self._rolled_back()
                raise
            self._judge(asyncio.run(self._look_up()), error)
        self._ended()

    @asynccontextmanager
    async def asynchronous(self, driver: bool) -> AsyncIterator[Any]:
        """The block of an async job: a psycopg AsyncConnection or an AsyncSession."""
        try:
            async with self._connections.lend_async(driver) as held:
                self._held = held
                with self._watched(held):
                    async with self._raw_async(held) if driver else self._session_async(held) as given:
                        yield given
        except BaseException as error:
            if self.stage != "ending":
                self._rolled_back()
                raise
            self._judge(await _surely(self._look_up()), error)
        self._ended()

    @contextmanager
    def _watched(self, held: Held) -> Iterator[None]:
        """Sees whether it is the database that ends the block: before its connection is given back, and closed."""
        try:
            yield
        except BaseException as error:
            if _is_away(held.raw, error, ours=self._ours):
                self.hindrance = error
            raise

    @contextmanager
    def _raw(self, held: Held) -> Iterator[Any]:
        raw: Bounded = held.raw
        with raw.transaction():  # inside it psycopg refuses commit() and rollback()
            if held.pooled:
                raw.execute(for_jobs(self._connections.idle_limit, local=True))
            yield raw
            self._check(held)
            perform(raw, self._complete())

    @asynccontextmanager
    async def _raw_async(self, held: Held) -> AsyncIterator[Any]:
        raw: AsyncBounded = held.raw
        async with raw.transaction():
            if held.pooled:
                await raw.execute(for_jobs(self._connections.idle_limit, local=True))
            yield raw
            self._check(held)
            await perform_async(raw, self._complete())

    @contextmanager
    def _session(self, held: Held) -> Iterator[Any]:
        if held.pooled:
            held.raw.execute(for_jobs(self._connections.idle_limit, local=True))
        session = Session(held.engine, expire_on_commit=False)
        sa.event.listen(session, "before_commit", self._guard)
        try:
            yield session
            session.flush()
            held.raw.patience = self._connections.patience
            perform(session, self._complete())
            session.commit()
        finally:
            with suppress(psycopg.Error, sa.exc.SQLAlchemyError):  # it broke: there is nothing to roll back
                session.close()

    @asynccontextmanager
    async def _session_async(self, held: Held) -> AsyncIterator[Any]:
        from sqlalchemy.ext.asyncio import AsyncSession  # needs greenlet, which a user of psycopg alone does not

        if held.pooled:
            await held.raw.execute(for_jobs(self._connections.idle_limit, local=True))
        session = AsyncSession(held.engine, expire_on_commit=False)
        sa.event.listen(session.sync_session, "before_commit", self._guard)
        try:
            yield session
            await session.flush()
            held.raw.patience = self._connections.patience
            await perform_async(session, self._complete())
            await session.commit()
        finally:
            with suppress(psycopg.Error, sa.exc.SQLAlchemyError):
                await session.close()

    def _guard(self, session: Session) -> None:
        if self.stage != "ending" and not session.in_nested_transaction():
            raise TransactionRefused(_NO_COMMIT)

    def _check(self, held: Held) -> None:
        if held.raw.pgconn.transaction_status == TransactionStatus.IDLE:
            raise TransactionRefused("the transaction was ended by a COMMIT or ROLLBACK of the job's own")
        held.raw.patience = self._connections.patience  # from here on it is ours, and has a bound again

    def _complete(self) -> Steps[None]:
        self._ours = True
        if self.cancelled is not None:
            raise Cancel(self.cancelled)
        if self.late:
            raise TaskTimeout(f"the attempt ran longer than its {self._attempt.limit}")
        if self._marks:
            yield from self._last_word()
        if self._attempt.claim.id not in (yield from self._completion(self._attempt, self.result)):
            self._lose()
        with self._lock:
            if self.stage != "open":
                raise TransactionRefused(_REFUSALS[self.stage])
            self.stage = "ending"

    def _last_word(self) -> Steps[None]:
        """What the job said last, in its own transaction: afterwards it is completed, and nothing more is written."""
        self._said = self._marks.pop(self._attempt.claim.id)
        if self._said is not None:
            yield from write(self._sql, self._worker_id, [self._said])

    def _unsaid(self) -> None:
        """It was rolled back with the rest."""
        if self._said is not None:
            self._marks.restore([self._said], self.loop)
            self._said = None

    def _lose(self, cause: BaseException | None = None) -> NoReturn:
        self.stage = "lost"
        self._told.set()
        claim = self._attempt.claim
        raise ClaimLost(
            f"job {claim.id}, attempt {claim.attempt}, was rescued or cancelled while this run went on (fence "
            f"{claim.fence}); its transaction is rolled back"
        ) from cause

    def _rolled_back(self) -> None:
        with self._lock:
            self._held = self._block = None
            if self.stage == "open":
                self.stage = "none"
        self._unsaid()

    def _ended(self) -> None:
        with self._lock:
            self._held = self._block = None
            # Otherwise psycopg.Rollback was raised, which ends its block and nothing else.
            self.stage = "completed" if self.stage == "ending" else "none"
        if self.stage == "none":
            self._unsaid()

    async def _look_up(self) -> db.Standing:
        claim = self._attempt.claim
        link = self._connections.link()
        try:
            return await link.insist(partial(db.standing, self._sql, self._worker_id, claim.id, claim.fence))
        finally:
            await link.close()

    def _judge(self, standing: db.Standing, error: BaseException) -> None:
        """COMMIT raised: the connection broke, the job was cancelled in it, or a deferred constraint had its say."""
        if standing == "lost":
            self._lose(error)
        if standing == "held":
            self.stage = "open"
            self._rolled_back()
            raise error
        if not isinstance(error, Exception):
            self._ended()
            raise error


async def _surely(asked: Coroutine[Any, Any, T]) -> T:
    """The answer, also when we are cancelled meanwhile; the cancellation is passed on once it is there."""
    task, cancelled = asyncio.ensure_future(asked), False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        current = asyncio.current_task()
        if current is not None:
            asyncio.get_running_loop().call_soon(current.cancel)
    return task.result()


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Block:
    """`with` for a sync job, `async with` for an async one."""

    def __init__(self, fenced: Fenced, driver: bool) -> None:
        self._fenced = fenced
        self._driver = driver
        self._sync: AbstractContextManager[Any] | None = None
        self._async: AbstractAsyncContextManager[Any] | None = None

    def __enter__(self) -> Any:
        if _on_a_loop():
            raise TransactionRefused(
                "an async job writes `async with ctx.transaction()`: `with` would block its event loop"
            )
        self._fenced.begin(self)
        self._sync = self._fenced.sync(self._driver)
        return self._sync.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> Any:
        assert self._sync is not None
        return self._sync.__exit__(kind, error, trace)

    async def __aenter__(self) -> Any:
        if asyncio.get_running_loop() is not self._fenced.loop:
            raise TransactionRefused("a job that is a plain `def` writes `with ctx.transaction()`, without async")
        self._fenced.begin(self)
        self._async = self._fenced.asynchronous(self._driver)
        return await self._async.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any, /) -> Any:
        assert self._async is not None
        return await self._async.__aexit__(kind, error, trace)
