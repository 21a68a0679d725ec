"""When which chore is due, for as long as a worker lives. An infrastructure error only delays them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg

from pgqueue import db
from pgqueue.events import Events
from pgqueue.link import INFRASTRUCTURE, Link
from pgqueue.maintenance.expire import expire, tell_expired
from pgqueue.maintenance.prune import prune
from pgqueue.maintenance.rescue import sweep, tell
from pgqueue.settings import WorkerSettings
from pgqueue.sql import Statements

log = logging.getLogger("pgqueue")

PRUNE_EVERY = 600.0  # seconds; an empty day costs one look at the catalogue


def chores(
    sql: Statements,
    settings: WorkerSettings,
    retention: float,
    uniform: Callable[[], float],
    *,
    tasks: list[str],
    on_suspects: Callable[[], None] | None,
) -> Callable[[Link, Events], Coroutine[Any, Any, None]]:
    """The chores of one worker: a coroutine function that never ends by itself.

    on_suspects: called by each sweep that finds jobs of these tasks waiting that must run alone; None: nobody asks.
    """

    async def look_after(link: Link, events: Events) -> None:
        next_prune = 0.0
        tries = 0
        while True:
            try:
                tell(await link.transaction(sweep(sql)), events)
                if on_suspects is not None and await link.perform(db.suspects(sql, tasks, settings.queues)):
                    on_suspects()
                if time.monotonic() >= next_prune:
                    await link.perform(prune(sql, retention))
                    next_prune = time.monotonic() + PRUNE_EVERY
                tell_expired(await link.perform(expire(sql)), events)  # after prune, which makes today's partition
                tries = 0
            except INFRASTRUCTURE as error:
                tries += 1
                await link.pause(tries, error)
                continue
            except psycopg.Error as error:  # a missing right, say: the worker can do without its chores
                log.error(
                    "a chore failed: %s",
                    error.diag.message_primary or type(error).__name__,
                    extra={"event": "chore_failed"},
                )
            # Jittered, or a fleet that was started together sweeps together for ever.
            await asyncio.sleep(settings.sweep_interval * (0.8 + 0.4 * uniform()))

    return look_after
