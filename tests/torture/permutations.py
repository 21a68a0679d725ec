"""Sessions stepped through an order, as PostgreSQL's own isolationtester does it: who waits for a lock is seen to wait,
and the next step is another's.

A step of a session that waits is put off until it waits no more: so every order comes to an end, unless all of them
wait, which is a deadlock that nobody saw.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import psycopg

Step = Callable[[psycopg.AsyncConnection[Any]], Awaitable[object]]

_GLANCE = 0.002  # seconds; a statement that takes longer may be waiting, and the server is asked
_PATIENCE = 20.0  # seconds until a step that does not end, and waits for nobody, is a failure of the test


class Stuck(AssertionError):
    """Every session waits for another."""


def orders(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every order in which sessions with so many steps can take their turns: 0 0 1 1, 0 1 0 1, …"""
    if not any(lengths):
        yield ()
        return
    for who, left in enumerate(lengths):
        if left:
            rest = [length - (place == who) for place, length in enumerate(lengths)]
            for order in orders(rest):
                yield (who, *order)


class Stage:
    """The sessions, and one connection that asks the server who waits."""

    def __init__(self, sessions: list[psycopg.AsyncConnection[Any]], watcher: psycopg.AsyncConnection[Any]) -> None:
        self._sessions = sessions
        self._watcher = watcher
        self.waits = 0  # how often one had to wait

    async def play(self, order: Iterable[int], scripts: Sequence[Sequence[Step]]) -> None:
        """Steps through the scripts in this order; raises what a step raises, Stuck when all wait."""
        left = [deque(script) for script in scripts]
        waiting: dict[int, asyncio.Task[object]] = {}
        put_off: deque[int] = deque()
        for who in order:
            if who in waiting or who in put_off:
                put_off.append(who)
            else:
                await self._step(who, left[who], waiting)
            await self._go_on(left, waiting, put_off)
        while waiting or put_off:
            if not waiting:
                await self._go_on(left, waiting, put_off)
                continue
            done, _ = await asyncio.wait(waiting.values(), return_when=asyncio.FIRST_COMPLETED, timeout=_PATIENCE)
            if not done:
                raise Stuck(f"sessions {sorted(waiting)} wait for ever")
            await self._go_on(left, waiting, put_off)

    async def _go_on(self, left: list[deque[Step]], waiting: dict[int, Any], put_off: deque[int]) -> None:
        """What was put off is done as soon as its session waits no more."""
        for who, task in list(waiting.items()):
            if task.done():
                del waiting[who]
                task.result()
        for _ in range(len(put_off)):
            who = put_off.popleft()
            if who in waiting:
                put_off.append(who)
            else:
                await self._step(who, left[who], waiting)

    async def _step(self, who: int, left: deque[Step], waiting: dict[int, asyncio.Task[object]]) -> None:
        session = self._sessions[who]
        task = asyncio.ensure_future(left.popleft()(session))
        until = asyncio.get_running_loop().time() + _PATIENCE
        while not (await asyncio.wait({task}, timeout=_GLANCE))[0]:
            cursor = await self._watcher.execute("select pg_blocking_pids(%s)", [session.info.backend_pid])
            if (row := await cursor.fetchone()) and row[0] and not task.done():
                self.waits += 1
                waiting[who] = task
                return
            if asyncio.get_running_loop().time() > until:
                raise Stuck(f"session {who} neither ends nor waits")
        task.result()
