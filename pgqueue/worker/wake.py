"""How an idle worker learns of a job: LISTEN on a channel of its own, with the poll as the safety net.

The poll never depends on the listener: a lost notification, a pooler that swallows LISTEN, a failover all cost at most
one poll interval. Notifications carry no data; anybody may send one, and all it does is to make the worker look.

The same connection asks for orders, each second and when it is told that there are some: see orders.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql as psycopg_sql

from pgqueue.link import INFRASTRUCTURE, Link
from pgqueue.settings import PATIENCE
from pgqueue.worker import orders

log = logging.getLogger("pgqueue")


def channel(worker_id: UUID) -> str:
    """40 characters, whatever the schema is called: LISTEN would cut a long name short, NOTIFY refuse it."""
    return f"pgqueue_{worker_id.hex}"


class Wake:
    """Set by a notification, by a slot that came free, or by stop(); waited for with a time limit."""

    def __init__(
        self, conninfo: str, worker_id: UUID, uniform: Callable[[], float], patience: float = PATIENCE
    ) -> None:
        self._link = Link(conninfo, "listener", uniform, patience, quiet=True)
        self._channel, self._orders = channel(worker_id), orders.channel(worker_id)
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, seconds: float) -> bool:
        """True when it was rung, now or since the last wait; False when the time ran out."""
        if not self._rung.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._rung.wait()
            except TimeoutError:
                return False
        self._rung.clear()
        return True

    async def listen(self, ask: Callable[[Link], Awaitable[float]]) -> None:
        """Listens for ever; after a lost connection rings once, for what may have been missed. ask: asks for orders and
        obeys them; seconds until it wants to be called again."""
        tries = -1  # until it listens for the first time
        listening = True
        while True:
            try:
                raw = await self._link.open()
                if listening and self._link.pooled:
                    listening = False
                    log.warning(
                        "LISTEN does not work through a pooler; polling only. Give a direct URL with --listen-url",
                        extra={"event": "no_listener"},
                    )
                for name in (self._channel, self._orders) if listening else ():
                    await raw.execute(psycopg_sql.SQL("listen {}").format(psycopg_sql.Identifier(name)))
                while True:
                    # Also a connection that died silently answers nothing, as one where nothing happens says nothing.
                    seconds = await ask(self._link)
                    if tries != 0:
                        tries = 0
                        self.ring()
                    await (self._hear(raw, seconds) if listening else asyncio.sleep(seconds))
            except INFRASTRUCTURE as error:
                tries = max(tries, 0) + 1
                await self._link.close()
                await self._link.pause(tries, error)
            except psycopg.Error as error:
                await self._link.close()
                if not listening:
                    raise
                listening = False
                log.warning("cannot listen (%s); polling only", type(error).__name__, extra={"event": "no_listener"})

    async def _hear(self, raw: psycopg.AsyncConnection[Any], seconds: float) -> None:
        """Rings for each notification, for so long, or until one says that there are orders."""
        until, told = time.monotonic() + seconds, False
        while not told and (left := until - time.monotonic()) > 0:
            # Not left in the midst of what has arrived: the rest of it would be lost.
            async for notice in raw.notifies(timeout=left, stop_after=1):
                if notice.channel == self._orders:
                    told = True
                else:
                    self.ring()

    async def close(self) -> None:
        await self._link.close()
