"""A worker's connection to the database: opened when needed, and again after it breaks.

An infrastructure error (the server away, a timeout somebody set on the role, a deadlock) is never a job's failure: the
callers of this module wait and repeat. Statements run in READ COMMITTED whatever the role's default is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from pgqueue.drivers import Steps, perform_raw_async

T = TypeVar("T")

INFRASTRUCTURE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,  # a failover under way, a full disk at some providers: it passes
)
CONNECT_TIMEOUT = 10  # seconds; a stalled server must not hold a worker up for libpq's two minutes

# What a role or database may have set against applications; for us each of them would only be a reason to repeat.
# No sequential scans: a generic plan is made while few jobs wait and kept when many do, until the table is analysed
# (measured: with 100,000 jobs 13 ms a claim and 7 ms a settle, instead of 1 and 0.3). No jit: a scan that cannot be
# avoided looks expensive then, and would be compiled.
# A worker that is frozen in the midst of a transaction must not keep its locks: rescue passes locked rows by.
SESSION = (
    "select set_config('default_transaction_isolation', 'read committed', false),"
    " set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false),"
    " set_config('idle_session_timeout', '0', false), set_config('client_min_messages', 'warning', false),"
    " set_config('enable_seqscan', 'off', false), set_config('jit', 'off', false),"
    " set_config('idle_in_transaction_session_timeout', '5000', false)"
)

log = logging.getLogger("pgqueue")


class Link:
    """One autocommitting connection; not shared between tasks at the same time."""

    def __init__(self, conninfo: str, role: str, uniform: Callable[[], float]) -> None:
        self._conninfo = conninfo
        self._role = role
        self._uniform = uniform
        self._raw: psycopg.AsyncConnection[Any] | None = None
        self.pooled = False

    async def open(self) -> psycopg.AsyncConnection[Any]:
        """The live connection. Raises an INFRASTRUCTURE error when there is none to be had."""
        if self._raw is None or self._raw.closed:
            raw = await psycopg.AsyncConnection.connect(
                self._conninfo,
                autocommit=True,
                application_name=f"pgqueue {self._role}",
                connect_timeout=CONNECT_TIMEOUT,
                prepare_threshold=1,
            )
            try:
                cursor = await raw.execute("select pg_backend_pid()")
                row = await cursor.fetchone()
                # A pooler answers with a process id of its own; behind it, neither SET nor prepared statements hold.
                self.pooled = row is None or row[0] != raw.info.backend_pid
                if self.pooled:
                    raw.prepare_threshold = None
                else:
                    await raw.execute(SESSION)
            except BaseException:
                await raw.close()
                raise
            self._raw = raw
        return self._raw

    async def perform(self, steps: Steps[T]) -> T:
        """Runs the steps once. After an INFRASTRUCTURE error the connection is gone; the next call opens another."""
        try:
            return await perform_raw_async(await self.open(), steps)
        except INFRASTRUCTURE:
            await self.close()
            raise

    async def transaction(self, steps: Steps[T]) -> T:
        """Runs the steps in one transaction."""
        try:
            raw = await self.open()
            async with raw.transaction():
                return await perform_raw_async(raw, steps)
        except INFRASTRUCTURE:
            await self.close()
            raise

    async def insist(self, steps: Callable[[], Steps[T]]) -> T:
        """Runs the steps until they have run, however long the database is away. `steps` makes them anew each time."""
        tries = 0
        while True:
            try:
                return await self.perform(steps())
            except INFRASTRUCTURE as error:
                tries += 1
                await self.pause(tries, error)

    async def pause(self, tries: int, error: BaseException) -> None:
        """Waits before another try: 0.1 s doubled up to 5 s, jittered, so that a fleet does not come back as one."""
        if tries == 1:
            log.warning("%s: the database is away, will try again (%s)", self._role, type(error).__name__)
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
