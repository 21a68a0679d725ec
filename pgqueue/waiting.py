"""Results to wait for: `app.jobs.wait(id)`, `job.wait()`, and both for asyncio.

However many wait in a process, one thread waits for them, with one connection and an event loop of its own: it writes
into `waiters` which jobs that is, and looks when whoever ends one notifies it, or each second. The look does not depend
on that: behind a pooler, without the right to write there, or when every notification is lost, the second holds. The
thread starts with the first who waits, and ends a while after the last.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql as psycopg_sql

from pgqueue import db, rights
from pgqueue.db import Outcome
from pgqueue.drivers import Call
from pgqueue.drivers.psycopg import role
from pgqueue.drivers.steps import explaining
from pgqueue.errors import JobFailed, JobNotFound, OperationError, ResultGone, WaitTimeout, checked_id
from pgqueue.errors import seconds as in_seconds
from pgqueue.job import State
from pgqueue.link import INFRASTRUCTURE, AsyncBounded, Link
from pgqueue.logs import one_line
from pgqueue.monitor import TOO_LARGE, read
from pgqueue.settings import PATIENCE
from pgqueue.sql import Statements

log = logging.getLogger("pgqueue")

POLL = 1.0  # seconds between looks at all; the safety net only, NOTIFY normally comes first
_LOOKS = (0.005, 0.05)  # seconds after the first look: for settles that were under way and did not see our row
_BELIEVED = 60.0  # seconds for which a row is: so long a process that was killed is notified for nothing
_RENEW = 20.0  # seconds after which all of them are written again
_KNOWN = 8.0  # seconds for which workers know that somebody waits; they believe it for 10
_IDLE = 10.0  # seconds without anybody who waits, after which thread and connection go
_LATE = 0.25  # seconds after which a time is up, whatever the database does
_FIRST = PATIENCE  # but the first look is waited for so long: with a timeout of 0, say, it is the only one
_LONGEST = 0.1  # seconds between two looks that notifications asked for, at most
_LAST_CLOSE = 2.0  # seconds that close() waits for the thread


def channel(waiter: UUID) -> str:
    """On which a process hears that a job has ended for which it waits."""
    return f"pgqueue_waiter_{waiter.hex}"


@dataclass(eq=False, slots=True)
class Waiter:
    """One call of wait(). Times are those of time.monotonic().

    looks: how often we looked, next at look_at. seen: the job was there. horizon: the number of the transaction below
    which its enqueue must be, if it is not committed yet.
    """

    job_id: int
    timeout: float | None
    until: float
    future: Future[Any] = field(default_factory=Future)
    written: bool = False
    looks: int = 0
    look_at: float = 0.0
    seen: bool = False
    horizon: float | None = None

    @property
    def unsure(self) -> bool:
        """Whether it was found nowhere, and it is to be found out whether that will stay so."""
        return self.looks > 0 and not self.seen and self.horizon is None and not self.future.done()

    def told(self, outcome: Outcome | None) -> None:
        """Takes in what a look has shown of the job; None: it is live."""
        self.looks += 1
        if outcome is None:
            self.seen = True
        elif outcome.state == State.COMPLETED:
            self.give(read(outcome.result))
        elif outcome.state is not None:
            self.fail(failed(outcome))
        elif outcome.id > outcome.last_id:
            self.fail(JobNotFound(f"there is no job {outcome.id}"))
        elif self.seen or (self.horizon is not None and outcome.oldest >= self.horizon):
            what = "it has ended and is not kept, or its enqueue was rolled back"
            self.fail(ResultGone(f"job {outcome.id} is nowhere any more: {what}"))

    def give(self, result: Any) -> None:
        with suppress(InvalidStateError):  # nobody waits for it any more
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def time_out(self, trouble: str | None = None) -> None:
        """The time is up. trouble: why the database does not answer."""
        if trouble is not None:
            what = f"it is not known whether it has ended: the database is away ({trouble})"
        elif not self.looks:
            what = "it is not known whether it has ended: the database has not answered"
        elif not self.seen:
            what = "it is nowhere to be seen: is its enqueue committed?"
        else:
            what = "it has not ended"
        self.fail(WaitTimeout(f"job {self.job_id}: after {self.timeout:g} s {what}"))


def failed(outcome: Outcome) -> JobFailed:
    """The error for a job that has not ended well."""
    assert outcome.state is not None
    what = f"{outcome.state} ({outcome.reason})" if outcome.reason else outcome.state
    said = f": {one_line(outcome.error)[:500]}" if outcome.error else ""
    return JobFailed(
        f"job {outcome.id} is {what}{said}",
        job_id=outcome.id,
        state=State(outcome.state),
        reason=outcome.reason,
        error=outcome.error,
    )


class Waiting:
    """What the jobs of one app are waited for with: a hub for each process, as no thread outlives a fork."""

    def __init__(self, statements: Callable[[], Statements], conninfo: Callable[[], str]) -> None:
        self._statements = statements
        self._conninfo = conninfo
        self._hubs: dict[int, Hub] = {}

    def wait(self, job_id: int, timeout: float | timedelta | None) -> Any:
        """See app.jobs.wait."""
        waiter = _waiter(job_id, timeout)
        if _on_a_loop():
            raise OperationError("wait() would hold up this event loop and all that runs on it: await wait_async()")
        hub = self._begin(waiter)
        try:
            return waiter.future.result()
        finally:
            hub.end(waiter)

    async def wait_async(self, job_id: int, timeout: float | timedelta | None) -> Any:  # noqa: ASYNC109
        """See app.jobs.wait_async."""
        waiter = _waiter(job_id, timeout)
        hub = self._begin(waiter)
        try:
            return await asyncio.wrap_future(waiter.future)
        finally:
            hub.end(waiter)

    def close(self) -> None:
        """Ends the thread in this process; while somebody waits, when nobody does any more."""
        hub = self._hubs.get(os.getpid())
        if hub is not None:
            hub.close()

    def _begin(self, waiter: Waiter) -> Hub:
        pid = os.getpid()
        hub = self._hubs.get(pid) or self._hubs.setdefault(pid, Hub())  # the first one, of two that are made at once
        hub.begin(waiter, self._statements(), self._conninfo())
        return hub


def _waiter(job_id: int, timeout: float | timedelta | None) -> Waiter:
    checked_id(job_id)
    limit = None if timeout is None else in_seconds("timeout", timeout)
    return Waiter(job_id, limit, math.inf if limit is None else time.monotonic() + limit)


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Hub:
    """The thread that waits for everybody in its process; who comes and goes. The lock is for what both sides write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived: list[Waiter] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()  # somebody has come or gone
        self._waiting: list[Waiter] = []
        self.closing = False

    def begin(self, waiter: Waiter, sql: Statements, conninfo: str) -> None:
        """From now on this one waits."""
        with self._lock:
            self._arrived.append(waiter)
            self.closing = False
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, args=(sql, conninfo), name="pgqueue waiting", daemon=True
                )
                self._thread.start()
        self._tell()

    def end(self, waiter: Waiter) -> None:
        """It waits no more; it may have been interrupted."""
        if waiter.future.cancel():
            self._tell()

    def close(self) -> None:
        with self._lock:
            thread, self.closing = self._thread, True
            alone = not any(not waiter.future.done() for waiter in (*self._waiting, *self._arrived))
        self._tell()
        if thread is not None and alone and thread is not threading.current_thread():
            thread.join(_LAST_CLOSE)

    def _tell(self) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has just been closed, and nobody waited there any more
                loop.call_soon_threadsafe(self._news.set)

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _run(self, sql: Statements, conninfo: str) -> None:
        try:
            asyncio.run(self._serve(sql, conninfo))
        except BaseException as error:  # nobody may wait for ever because of a mistake of ours
            log.exception("waiting for jobs has failed", extra={"event": "waiting_failed"})
            with self._lock:
                left, self._arrived, self._waiting = [*self._waiting, *self._arrived], [], []
                self._thread = self._loop = None
            for waiter in left:
                waiter.fail(error)

    async def _serve(self, sql: Statements, conninfo: str) -> None:
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        link = Link(conninfo, "waiting", random.random, quiet=True)
        clock = asyncio.create_task(self._clock(link))
        try:
            while not self._over():
                await Watch(self, sql, link).run()
                await link.close()
        finally:
            clock.cancel()

    def _over(self) -> bool:
        """Whether the thread ends; asked once nobody waits. Who comes from then on starts another."""
        with self._lock:
            if self._arrived:
                return False
            self._thread = self._loop = None
            return True

    async def _clock(self, link: Link) -> None:
        """Keeps the times of those who wait, also while a statement is under way that is not answered."""
        while True:
            now = time.monotonic()
            for waiter in (*self._waiting, *self._arrived):
                if waiter.until <= now - (_LATE if waiter.looks or link.trouble else _FIRST):
                    waiter.time_out(link.trouble)
            await asyncio.sleep(_LATE)

    def take(self) -> list[Waiter]:
        """Who waits now."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
        self._news.clear()
        self._waiting = [waiter for waiter in self._waiting if not waiter.future.done()] + arrived
        return self._waiting

    async def news(self, limit: float) -> None:
        """Returns when somebody has come or gone, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, limit)):
                await self._news.wait()


class Watch:
    """From the first who waits to a while after the last, on one connection."""

    def __init__(self, hub: Hub, sql: Statements, link: Link) -> None:
        self._hub = hub
        self._sql = sql
        self._link = link
        self._id = uuid4()
        self._listens: AsyncBounded | None = None  # on this connection
        self._only_looks = False
        self._rows: set[int] = set()  # the jobs that stand in `waiters` for us
        self._renew_at = 0.0
        self._known_until = -math.inf  # so long workers know that somebody waits
        self._look_at = 0.0  # at all of them
        self._took = 0.0  # seconds, for the last look

    async def run(self) -> None:
        """Returns when nobody has waited for a while; or when nothing can be asked, and who waited was told so."""
        raw: AsyncBounded | None = None
        tries, idle_since = 0, math.inf
        while True:
            waiting = self._hub.take()
            idle_since = math.inf if waiting else min(idle_since, time.monotonic())
            left = idle_since + _IDLE - time.monotonic()
            if not waiting and (self._hub.closing or left <= 0):
                return
            try:
                raw = await self._link.open()
                await self._be_known(waiting, raw)
                await self._look(waiting)
                await self._forget(waiting)
                tries = 0
                await self._rest(waiting, left)
            except INFRASTRUCTURE as error:
                if raw is None:  # as whatever else asks a database that is not there
                    _give_up(waiting, error)
                    return
                await self._link.lose(error)
                if waiting:
                    tries += 1
                    await self._link.pause(tries, error)
            except psycopg.Error as error:
                explain = explaining(partial(role, raw))  # type: ignore[arg-type]
                _give_up(waiting, explain(error, Call(self._sql["outcomes"])))
                return

    # -- to be notified ------------------------------------------------------------------------------------------------

    async def _be_known(self, waiting: list[Waiter], raw: AsyncBounded) -> None:
        """Has whoever ends one of these jobs notify us, where that can be."""
        if not waiting or self._only_looks:
            return
        if self._link.pooled:
            self._only_look("LISTEN does not work through a pooler")
            return
        try:
            if self._listens is not raw:
                await raw.execute(psycopg_sql.SQL("listen {}").format(psycopg_sql.Identifier(channel(self._id))))
                self._listens, self._renew_at = raw, 0.0
            await self._write(waiting)
        except psycopg.errors.InsufficientPrivilege as error:
            wanted = [right for verb in ("wait", "desist", "tell") for right in rights.of(self._sql[verb])]
            self._only_look(str(rights.refused(str(error).splitlines()[0], wanted, role(raw) or "")))
        except psycopg.errors.UndefinedTable:
            self._only_look("the schema is an older version's")
        except psycopg.errors.ReadOnlySqlTransaction:
            self._only_look("the server is a standby, or may not write")

    async def _write(self, waiting: list[Waiter]) -> None:
        now = time.monotonic()
        if now >= self._renew_at:
            new, self._renew_at, self._rows = waiting, now + _RENEW, set()
        else:
            new = [waiter for waiter in waiting if not waiter.written]
        ids = sorted({waiter.job_id for waiter in new} - self._rows)
        if not ids:
            return
        alone = await self._link.perform(db.wait(self._sql, self._id, ids, _BELIEVED))
        self._rows |= set(ids)
        for waiter in new:
            waiter.written = True
        if alone and now >= self._known_until:
            await self._link.perform(db.tell(self._sql))
        self._known_until = now + _KNOWN

    def _only_look(self, why: str) -> None:
        self._only_looks, self._listens = True, None
        log.info("who waits for jobs looks each second: %s", why, extra={"event": "waiting_by_polling"})

    async def _forget(self, waiting: list[Waiter]) -> None:
        """Nobody needs to notify us of what nobody waits for any more."""
        over = self._rows - {waiter.job_id for waiter in waiting if not waiter.future.done()}
        if over and not self._only_looks:
            await self._link.perform(db.desist(self._sql, self._id, sorted(over)))
            self._rows -= over

    # -- looking -------------------------------------------------------------------------------------------------------

    async def _look(self, waiting: list[Waiter]) -> None:
        """At the jobs of those whose time it is; and once more at what is nowhere."""
        now = time.monotonic()
        if now >= self._look_at:
            due, self._look_at = waiting, now + POLL
        else:
            due = [waiter for waiter in waiting if min(waiter.look_at, waiter.until) <= now]
        await self._ask(due)
        for waiter in due:
            waiter.look_at = now + _LOOKS[waiter.looks - 1] if waiter.looks <= len(_LOOKS) else math.inf
        unsure = [waiter for waiter in due if waiter.unsure]
        if unsure:
            horizon = await self._horizon()
            for waiter in unsure:
                waiter.horizon = horizon
            await self._ask(unsure)
        for waiter in due:
            if waiter.until <= now:
                waiter.time_out()

    async def _ask(self, due: Iterable[Waiter]) -> None:
        ids = sorted({waiter.job_id for waiter in due})
        if not ids:
            return
        began = time.monotonic()
        try:
            found = await self._link.perform(db.outcomes(self._sql, ids))
        except psycopg.errors.ProgramLimitExceeded:  # of one result, which hides no other
            found = {}
            for job_id in ids:
                found |= await self._alone(job_id)
        self._took = time.monotonic() - began
        for waiter in due:
            waiter.told(found.get(waiter.job_id))

    async def _alone(self, job_id: int) -> dict[int, Outcome]:
        try:
            return await self._link.perform(db.outcomes(self._sql, [job_id]))
        except psycopg.errors.ProgramLimitExceeded:
            found = await self._link.perform(db.outcomes(self._sql, [job_id], bare=True))
            return {one.id: one._replace(result=json.dumps(TOO_LARGE)) for one in found.values()}

    async def _horizon(self) -> float:
        """The number of a transaction that begins now; on a standby, where none does, what is nowhere may yet come."""
        try:
            return await self._link.perform(db.horizon(self._sql))
        except psycopg.errors.ReadOnlySqlTransaction:
            return math.inf

    # -- until the next look -------------------------------------------------------------------------------------------

    async def _rest(self, waiting: list[Waiter], left: float) -> None:
        """Until somebody comes or goes, a notification arrives, or it is time to look; or for as long as is `left`."""
        open_ = [waiter for waiter in waiting if not waiter.future.done()]
        if open_:
            next_look = min(self._look_at, *(min(waiter.look_at, waiter.until) for waiter in open_))
            left = max(0.0, next_look - time.monotonic())
        elif waiting:  # they are to be forgotten
            return
        if not open_ or self._listens is None:
            await self._hub.news(left)
            return
        news, heard = asyncio.create_task(self._hub.news(left)), asyncio.create_task(self._hear(left))
        try:
            await asyncio.wait((news, heard), return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            heard.cancel()
            await asyncio.wait((news, heard))
        if not heard.cancelled() and heard.result():
            self._look_at = 0.0
            await asyncio.sleep(min(self._took, _LONGEST))  # many that end one after the other are seen in one look

    async def _hear(self, seconds: float) -> bool:
        """Whether we were notified. What arrives while it is cut short is heard the next time."""
        assert self._listens is not None
        async with aclosing(self._listens.notifies(timeout=seconds, stop_after=1)) as notices:
            async for _ in notices:
                return True
        return False


def _give_up(waiting: Iterable[Waiter], error: BaseException) -> None:
    for waiter in waiting:
        waiter.fail(error)
