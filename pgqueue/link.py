"""A worker's connection to the database: opened when needed, and again after it breaks.

An infrastructure error (the server away, a timeout somebody set on the role, a deadlock) is never a job's failure: the
callers of this module wait and repeat. Statements run in READ COMMITTED whatever the role's default is.

Nothing here waits without a bound, its `patience`. A server that is there but slow cancels the statement itself at 0.8
of it (statement_timeout); one that does not answer at all loses us: the connection is dropped, never cancelled, since
psycopg's cancel goes to the same server and waits there too (measured: 11 s against a server that was frozen).

Behind a pooler that hands out a server connection for each transaction, session settings would reach other clients,
and prepared statements would not be found: there each statement has a transaction of its own and settings local to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import cache
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import waiting
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.sql import SQL, Composable, Composed

from pgqueue.drivers import Call, Rows, Steps, perform_raw_async
from pgqueue.drivers.psycopg import run_raw, run_raw_async
from pgqueue.drivers.steps import play, play_async
from pgqueue.settings import MOST_PATIENCE, PATIENCE, scrub

T = TypeVar("T")
Conversation = Generator[Any, Any, T]

log = logging.getLogger("pgqueue")

INFRASTRUCTURE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,  # a failover under way, a full disk at some providers: it passes
    # Set on the role, and met before our own settings hold. psycopg calls both InternalError.
    psycopg.errors.IdleInTransactionSessionTimeout,
    getattr(psycopg.errors, "TransactionTimeout", psycopg.OperationalError),  # PostgreSQL 17
)
_INTERVAL = 0.1  # seconds between looks at the clock while an answer is waited for
# Whatever PGCLIENTENCODING says: in another encoding one job's text that it lacks would fail the batch around it.
ENCODING = "utf8"

# What a role or database may have set against applications; for us each of them would only be a reason to repeat.
# No sequential scans: a generic plan is made while few jobs wait and kept when many do, until the table is analysed
# (measured: with 100,000 jobs 13 ms a claim and 7 ms a settle, instead of 1 and 0.3). No jit: a scan that cannot be
# avoided looks expensive then, and would be compiled.
# A worker that is frozen in the midst of a transaction must not keep its locks: rescue passes locked rows by.
# The statements name our tables in full; a search_path that somebody set might still put functions before the server's.
_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "default_transaction_isolation": "read committed",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "client_min_messages": "warning",
    "enable_seqscan": "off",
    "jit": "off",
    "idle_in_transaction_session_timeout": "5000",
}


_SET = SQL("pg_catalog.set_config({}, {}, {})")
# From PostgreSQL 17 on; naming it to an older server would be an error.
_NEWER = SQL("case when pg_catalog.current_setting('transaction_timeout', true) is not null then {} end")
_ALL = SQL("select pg_catalog.concat({})")
_BEGIN = SQL("begin isolation level read committed; {}")


@cache
def session(milliseconds: int, *, local: bool = False) -> Composed:
    """The statement that makes a session ours, or one transaction; `milliseconds` is its statement_timeout, 0: none."""
    settings = {"statement_timeout": str(milliseconds), **_SETTINGS}
    if local:
        del settings["default_transaction_isolation"]  # BEGIN says it
    calls: list[Composable] = [_SET.format(name, value, local) for name, value in settings.items()]
    newer = _NEWER.format(_SET.format("transaction_timeout", "0", local))
    return _ALL.format(SQL(", ").join([*calls, newer]))


@cache
def for_jobs(idle: int, *, local: bool = False) -> Composed:
    """The same for a job's own transaction. idle: milliseconds that it may be idle, 0: none. How its statements are
    planned stays as the database has it."""
    settings = {
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": str(idle),
    }
    calls: list[Composable] = [_SET.format(name, value, local) for name, value in settings.items()]
    newer = _NEWER.format(_SET.format("transaction_timeout", "0", local))
    return _ALL.format(SQL(", ").join([*calls, newer]))


def reach(conninfo: str, patience: float) -> dict[str, Any]:
    """What a worker adds to the URL so that a dead peer is noticed by the operating system too, and a standby is not
    taken for the primary. Whatever the URL says itself stands."""
    known = conninfo_to_dict(conninfo)
    seconds = max(2, round(patience))  # libpq's least for connect_timeout
    wanted: dict[str, Any] = {
        "connect_timeout": seconds,
        "keepalives": 1,
        "keepalives_idle": seconds,
        "keepalives_interval": max(1, seconds // 3),
        "keepalives_count": 3,
        "tcp_user_timeout": seconds * 1000,
    }
    if "," in str(known.get("host") or known.get("hostaddr") or ""):
        wanted["target_session_attrs"] = "read-write"
    if "PGCONNECT_TIMEOUT" in os.environ:
        del wanted["connect_timeout"]
    return {name: value for name, value in wanted.items() if known.get(name) is None}


def bounded(gen: Conversation[T], seconds: float) -> Conversation[T]:
    """psycopg's conversation with the server, which must end within `seconds`: OperationalError if it does not."""
    until = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if time.monotonic() > until:  # also when something came: a byte a second is no answer
                raise psycopg.OperationalError(f"no answer within {seconds:g} s")
            wanted = gen.send(ready)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


class Bounded(psycopg.Connection[Any]):
    """Every wait for the server has an end. After that error it is of no use any more."""

    patience = PATIENCE
    dropped = False  # as AsyncBounded may be

    def wait(self, gen: Conversation[T], interval: float = _INTERVAL, timeout: float | None = None) -> T:
        # timeout: of a wait for notifications, who has one of its own; psycopg 3.2 does not know it
        more = {} if timeout is None else {"timeout": timeout}
        return super().wait(gen if more else bounded(gen, self.patience), interval, **more)

    def stubborn(self, statement: LiteralString) -> psycopg.Cursor[Any]:
        """Runs a short statement under a statement_timeout that is not ours: tried again when it was not short enough.
        A new backend fills its caches while the first ones run (with 1 ms set on the role, many took longer)."""
        for _ in range(_STUBBORN):
            with suppress(psycopg.errors.QueryCanceled):
                return self.execute(statement)
        return self.execute(statement)


class AsyncBounded(psycopg.AsyncConnection[Any]):
    """Bounded for asyncio; a task that is cancelled while it waits drops the connection and waits for nothing."""

    patience = PATIENCE
    dropped = False  # by us, not by the server or the network

    async def wait(  # psycopg's own parameters
        self,
        gen: Conversation[T],
        interval: float = _INTERVAL,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> T:
        more = {} if timeout is None else {"timeout": timeout}
        gen = gen if more else bounded(gen, self.patience)
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval, **more)
        except asyncio.CancelledError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.dropped = True
                self.pgconn.finish()
            raise

    async def stubborn(self, statement: LiteralString) -> psycopg.AsyncCursor[Any]:
        """Bounded.stubborn for asyncio."""
        for _ in range(_STUBBORN):
            with suppress(psycopg.errors.QueryCanceled):
                return await self.execute(statement)
        return await self.execute(statement)


_STUBBORN = 20
_WHO = "select pg_catalog.pg_backend_pid()"


def connect(conninfo: str, role: str, patience: float) -> tuple[Bounded, bool]:
    """A connection of a worker, ready for statements, and whether it leads through a pooler."""
    raw = Bounded.connect(conninfo, autocommit=True, prepare_threshold=None, **_named(conninfo, role, patience))
    raw.patience = patience
    try:
        # A pooler answers with a process id of its own.
        who = raw.stubborn(_WHO).fetchone()
        pooled = who is None or who[0] != raw.info.backend_pid
        if pooled:
            raw.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        else:
            raw.stubborn("set statement_timeout = 0")
            raw.execute(session(server_side(patience)))
    except BaseException:
        raw.close()
        raise
    return raw, pooled


async def connect_async(conninfo: str, role: str, patience: float) -> tuple[AsyncBounded, bool]:
    """`connect` for asyncio."""
    raw = await AsyncBounded.connect(conninfo, autocommit=True, prepare_threshold=1, **_named(conninfo, role, patience))
    raw.patience = patience
    try:
        who = await (await raw.stubborn(_WHO)).fetchone()
        pooled = who is None or who[0] != raw.info.backend_pid
        if pooled:
            raw.prepare_threshold = None
            await raw.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        else:
            await raw.stubborn("set statement_timeout = 0")
            await raw.execute(session(server_side(patience)))
    except BaseException:
        await raw.close()
        raise
    return raw, pooled


def _named(conninfo: str, role: str, patience: float) -> dict[str, Any]:
    return {"application_name": f"pgqueue {role}", "client_encoding": ENCODING, **reach(conninfo, patience)}


def server_side(patience: float) -> int:
    """Milliseconds after which the server gives a statement up, so that we hear of it before we give up the server."""
    return max(1, round(patience * 800))


def perform_pooled(raw: Bounded, steps: Steps[T]) -> T:
    """Runs the steps behind a pooler, each statement in a transaction with our settings; or in the one that is open."""

    def run(call: Call) -> Rows:
        if raw.info.transaction_status != TransactionStatus.IDLE:
            return run_raw(raw, call)
        try:
            raw.execute(begin(raw.patience))
            rows = run_raw(raw, call)
            raw.execute("commit")
        except BaseException:
            with suppress(psycopg.Error):
                raw.execute("rollback")
            raise
        return rows

    return play(run, steps)


async def perform_pooled_async(raw: AsyncBounded, steps: Steps[T]) -> T:
    """`perform_pooled` for asyncio."""

    async def run(call: Call) -> Rows:
        if raw.info.transaction_status != TransactionStatus.IDLE:
            return await run_raw_async(raw, call)
        try:
            await raw.execute(begin(raw.patience))
            rows = await run_raw_async(raw, call)
            await raw.execute("commit")
        except BaseException:
            with suppress(psycopg.Error):
                await raw.execute("rollback")
            raise
        return rows

    return await play_async(run, steps)


@cache
def begin(patience: float) -> Composed:
    """The beginning of a transaction that is ours alone, in one round trip."""
    return _BEGIN.format(session(server_side(patience), local=True))


class Trouble:
    """What a connection has to say about an outage: that it begins, each reason once, and that it is over."""

    def __init__(self, role: str, conninfo: str, *, quiet: bool = False) -> None:
        self._role = role
        self._conninfo = conninfo
        self._quiet = quiet  # a first loss is no news: something on the way ends idle connections now and then
        self._since: float | None = None
        self._told: set[str] = set()
        self.why: str | None = None  # while it lasts

    def begins(self, error: BaseException) -> None:
        """Another error; the first of an outage is told, or the second, and then each that is new."""
        first, self.why = self._since is None, reason(error, self._conninfo)
        if self._since is None:
            self._since = time.monotonic()
        if self.why not in self._told and len(self._told) < 10 and not (first and self._quiet):
            self._told.add(self.why)
            fields = {"event": "database_away", "connection": self._role}
            log.warning("%s: the database is away, will try again (%s)", self._role, self.why, extra=fields)

    def ends(self) -> None:
        """A statement has been answered."""
        if self._since is None:
            return
        seconds = time.monotonic() - self._since
        if self._told:
            fields = {"event": "database_back", "connection": self._role}
            log.info("%s: the database is back after %.1f s", self._role, seconds, extra=fields)
        self._since, self._told, self.why = None, set(), None


def reason(error: BaseException, conninfo: str) -> str:
    """One line, without any password: the kind of error and what the server said, or libpq first (hints follow)."""
    diag = getattr(error, "diag", None)
    text = (diag and diag.message_primary) or next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {scrub(' '.join(text.split())[:300], conninfo)}"


class Link:
    """One autocommitting connection; not shared between tasks at the same time."""

    def __init__(
        self, conninfo: str, role: str, uniform: Callable[[], float], patience: float = PATIENCE, *, quiet: bool = False
    ) -> None:
        self._conninfo = conninfo
        self._role = role
        self._uniform = uniform
        self._patience = patience
        self._raw: AsyncBounded | None = None
        self._trouble = Trouble(role, conninfo, quiet=quiet)
        self.pooled = False

    @property
    def trouble(self) -> str | None:
        """Why the database does not answer; None while it does."""
        return self._trouble.why

    async def open(self) -> AsyncBounded:
        """The live connection. Raises an INFRASTRUCTURE error when there is none to be had."""
        if self._raw is None or self._raw.closed:
            self._raw, self.pooled = await connect_async(self._conninfo, self._role, self._patience)
        return self._raw

    async def perform(self, steps: Steps[T]) -> T:
        """Runs the steps once. After an INFRASTRUCTURE error the connection is gone; the next call opens another."""
        try:
            raw = await self.open()
            answer = await (perform_pooled_async(raw, steps) if self.pooled else perform_raw_async(raw, steps))
        except psycopg.errors.ProgramLimitExceeded:  # an OperationalError of the statement's own
            raise
        except INFRASTRUCTURE as error:
            await self.lose(error)
            raise
        self._trouble.ends()
        return answer

    async def transaction(self, steps: Steps[T]) -> T:
        """Runs the steps in one transaction."""
        try:
            raw = await self.open()
            async with raw.transaction():
                if self.pooled:
                    await raw.execute(session(server_side(raw.patience), local=True))
                answer = await perform_raw_async(raw, steps)
        except INFRASTRUCTURE as error:
            await self.lose(error)
            raise
        self._trouble.ends()
        return answer

    async def insist(self, steps: Callable[[], Steps[T]]) -> T:
        """Runs the steps until they have run, however long the database is away. `steps` makes them anew each time."""
        tries = 0
        while True:
            try:
                return await self.perform(steps())
            except INFRASTRUCTURE as error:
                tries += 1
                await self.pause(tries, error)

    def answered(self) -> None:
        """For who talks to the connection itself."""
        self._trouble.ends()

    async def lose(self, error: BaseException) -> None:
        """Closes it after an error. A server that says a statement takes too long is there: the next may take twice
        as long, or a sick table would never be claimed from again."""
        if isinstance(error, psycopg.errors.QueryCanceled):
            self._patience = max(self._patience, min(self._patience * 2, MOST_PATIENCE))
        await self.close()

    async def pause(self, tries: int, error: BaseException) -> None:
        """Waits before another try: 0.1 s doubled up to 5 s, jittered, so that a fleet does not come back as one."""
        self._trouble.begins(error)
        await asyncio.sleep(backoff(tries, self._uniform))

    async def close(self) -> None:
        """Closes the connection, if there is one; never raises."""
        raw, self._raw = self._raw, None
        if raw is not None:
            try:
                await raw.close()
            except psycopg.Error:
                pass


def backoff(tries: int, uniform: Callable[[], float]) -> float:
    """Seconds before reconnecting for the `tries`-th time: 0.1 doubled up to 5, of which a random half to whole."""
    return min(5.0, 0.1 * 2.0 ** min(tries - 1, 10)) * (0.5 + uniform() / 2)
