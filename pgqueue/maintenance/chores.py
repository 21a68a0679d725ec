"""When which chore is due, for as long as a worker lives. An infrastructure error only delays them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import psycopg

from pgqueue import db
from pgqueue.counts import Counts
from pgqueue.drivers import Steps
from pgqueue.events import Events
from pgqueue.link import INFRASTRUCTURE, Link
from pgqueue.maintenance import tick
from pgqueue.maintenance.expire import expire, tell_expired
from pgqueue.maintenance.prune import (
    prune,
    prune_jobs,
    prune_logs,
    prune_periods,
    prune_progress,
    prune_waiters,
    retain,
)
from pgqueue.maintenance.rescue import sweep, tell
from pgqueue.retention import Retention
from pgqueue.settings import WorkerSettings
from pgqueue.sql import Statements

T = TypeVar("T")

log = logging.getLogger("pgqueue")

_SUSPECTS = 100  # counted at most: more than any supervisor starts processes for
PRUNE_EVERY = 600.0  # seconds; an empty day costs one look at the catalogue
PRUNE_JOBS_EVERY = 60.0  # seconds between prunes of the tasks that have a policy, by whichever worker
_SHARE = 20.0  # of the time at most one part goes into them: they scan all of finished_jobs
FORGET_EVERY = 600.0  # seconds between looks for schedules that have been nobody's for days


def chores(
    sql: Statements,
    settings: WorkerSettings,
    retention: float,
    uniform: Callable[[], float],
    *,
    tasks: Mapping[str, Retention],
    on_suspects: Callable[[int], None] | None,
    schedules: Sequence[Mapping[str, Any]] | None,
    on_declared: Callable[[], None] | None,
) -> Callable[[Link, Events, Callable[[], Counts]], Coroutine[Any, Any, None]]:
    """The chores of one worker: a coroutine function that never ends by itself.

    tasks: what each keeps of its ended jobs. on_suspects: called by each sweep that finds jobs of these tasks waiting
    that must run alone, with their number; None: nobody asks. schedules: the rows of those that its code declares,
    None to leave what is written as it is; on_declared: called once they are.
    """

    async def look_after(link: _Shared, events: Events, counts: Callable[[], Counts]) -> None:
        next_prune = next_turn = began = 0.0
        turn: dict[str, bool] = {}  # tasks that we are pruning, a part between two sweeps: rescue must not wait for it
        pause = PRUNE_JOBS_EVERY
        retained = more = False
        logs: int | None = None  # how far we are through what jobs said in their logs
        tries = 0
        while True:
            try:
                tell(await link.transaction(sweep(sql)), events, counts())
                if on_suspects is not None:
                    waiting = await link.perform(db.suspects(sql, sorted(tasks), settings.queues, _SUSPECTS))
                    if waiting:
                        on_suspects(waiting)
                if not retained and time.monotonic() >= next_turn:  # before prune: a day may be kept from now on
                    next_turn = time.monotonic() + pause  # should a right be missing
                    await link.perform(retain(sql, tasks))
                    retained, next_turn = True, 0.0
                if time.monotonic() >= next_prune:
                    next_prune = time.monotonic() + PRUNE_EVERY
                    await link.perform(prune(sql, retention))
                    await link.perform(prune_periods(sql))
                    await link.perform(prune_waiters(sql))
                    more, logs = True, logs or 0
                if more:
                    more = await link.perform(prune_progress(sql))
                if logs is not None:
                    logs = await link.perform(prune_logs(sql, logs))
                late = await link.perform(expire(sql))  # after prune, which makes today's partition
                tell_expired(late, events, counts())
                if retained and not turn and time.monotonic() >= next_turn:
                    began = time.monotonic()
                    next_turn = began + pause
                    turn = await link.perform(db.to_prune(sql, pause))
                if turn and not await link.perform(prune_jobs(sql, turn, retention)):
                    turn = {}
                    pause = min(PRUNE_EVERY, max(PRUNE_JOBS_EVERY, _SHARE * (time.monotonic() - began)))
                    next_turn = time.monotonic() + pause
                tries = 0
            except INFRASTRUCTURE as error:
                tries += 1
                next_prune = 0.0
                turn = {}  # by then it is somebody else's
                if not retained:
                    next_turn = 0.0
                await link.pause(tries, error)
                continue
            except psycopg.Error as error:
                _failed(error)
                turn = {}
            if turn:
                continue
            await asyncio.sleep(until_next(settings.sweep_interval, uniform))

    async def fire_ticks(link: _Shared) -> None:
        known = sorted(tasks)
        declared = schedules is None
        next_forget = 0.0
        tries = 0
        while True:
            pause: float | None = None
            try:
                if schedules is not None and not declared:
                    await link.transaction(tick.declare(sql, schedules, known))
                    declared = True
                    if on_declared is not None:
                        on_declared()
                if time.monotonic() >= next_forget:
                    next_forget = time.monotonic() + FORGET_EVERY
                    await link.perform(tick.forget(sql))
                pause = await link.perform(tick.look(sql, known))
                tries = 0
            except INFRASTRUCTURE as error:
                tries += 1
                await link.pause(tries, error)
                continue
            except psycopg.Error as error:
                _failed(error)
            # At the tick, and now and then for what was added since.
            most = until_next(settings.sweep_interval, uniform)
            await asyncio.sleep(most if pause is None else min(most, pause))

    async def both(link: Link, events: Events, counts: Callable[[], Counts]) -> None:
        shared = _Shared(link)
        async with asyncio.TaskGroup() as group:
            group.create_task(look_after(shared, events, counts))
            group.create_task(fire_ticks(shared))

    return both


def until_next(interval: float, uniform: Callable[[], float]) -> float:
    """Seconds. Jittered, or a fleet that was started together sweeps together for ever; but never longer than the
    interval: a lease and one interval are the time within which the jobs of a dead machine are rescued."""
    return interval * (0.6 + 0.4 * uniform())


class _Shared:
    """A link for two who take turns: a tick waits for one statement of the other chores, not for a round of them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._turn = asyncio.Lock()
        self.pause = link.pause

    async def perform(self, steps: Steps[T]) -> T:
        async with self._turn:
            return await self._link.perform(steps)

    async def transaction(self, steps: Steps[T]) -> T:
        async with self._turn:
            return await self._link.transaction(steps)


def _failed(error: psycopg.Error) -> None:
    """A missing right, say: the worker can do without its chores."""
    log.error(
        "a chore failed: %s",
        error.diag.message_primary or type(error).__name__,
        extra={"event": "chore_failed"},
    )
