"""How an idle worker learns of a job: LISTEN on a channel of its own, with the poll as the safety net.

The poll never depends on the listener: a lost notification, a pooler that swallows LISTEN, a failover all cost at most
one poll interval. Notifications carry no data; anybody may send one, and all it does is to make the worker look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

import psycopg
from psycopg import sql as psycopg_sql

from pgqueue.link import INFRASTRUCTURE, Link
from pgqueue.settings import PATIENCE

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
        self._patience = patience
        self._channel = channel(worker_id)
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

    async def listen(self) -> None:
        """Listens for ever; after a lost connection rings once, for what may have been missed."""
        tries = -1  # until it listens for the first time
        while True:
            try:
                raw = await self._link.open()
                if self._link.pooled:
                    log.warning(
                        "LISTEN does not work through a pooler; polling only. Give a direct URL with --listen-url",
                        extra={"event": "no_listener"},
                    )
                    await self._link.close()
                    return
                listen = psycopg_sql.SQL("listen {}").format(psycopg_sql.Identifier(self._channel))
                while True:
                    # Again and again: a connection that died silently has nothing to say, as one where nothing happens.
                    await raw.execute(listen)
                    self._link.answered()
                    if tries != 0:
                        tries = 0
                        self.ring()
                    async for _ in raw.notifies(timeout=self._patience):
                        self.ring()
            except INFRASTRUCTURE as error:
                tries = max(tries, 0) + 1
                await self._link.close()
                await self._link.pause(tries, error)
            except psycopg.Error as error:
                log.warning("cannot listen (%s); polling only", type(error).__name__, extra={"event": "no_listener"})
                await self._link.close()
                return

    async def close(self) -> None:
        await self._link.close()
