"""A worker inside the application's own process: `app.worker(...).run()`.

Weaker than `pgqueue worker`, which keeps a supervisor above the process that works: here the heartbeat is a thread of
the same process, so a job that holds the GIL for longer than the lease costs the worker its jobs, and a job that kills
the process takes the heartbeat along (the jobs are rescued when the lease ends).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from pgqueue.errors import ConfigurationError, LifespanFailed
from pgqueue.maintenance import rescue
from pgqueue.settings import WorkerSettings
from pgqueue.worker.heartbeat import Heart, now
from pgqueue.worker.lifespan import Held
from pgqueue.worker.loop import Loop

log = logging.getLogger("pgqueue")


class Worker:
    """One worker in this process: `run()` blocks, `run_async()` runs on a loop, `stop()` may come from any thread."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        heart: Callable[[WorkerSettings], Heart],
        loop: Callable[[WorkerSettings, UUID], Loop],
        held: Callable[[], Held],
        row: dict[str, Any],
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        if settings.processes != 1:
            raise ConfigurationError("processes must be 1 for a worker inside an application; use `pgqueue worker`")
        if settings.metrics_port is not None:
            raise ConfigurationError(
                "metrics_port is served by the supervisor of `pgqueue worker`, not in an application"
            )
        if settings.recycles:
            raise ConfigurationError(f"{settings.recycles[0]} needs a process to replace; use `pgqueue worker`")
        self.settings = settings
        self._make_heart = heart
        self._make_loop = loop
        self._make_held = held
        self._row = row
        self._new_id = new_id
        self._stop = threading.Event()
        self._ring: Callable[[], object] = lambda: None

    def run(self) -> None:
        """Works until `stop()`, SIGTERM or SIGINT (in the main thread), or, draining, until nothing is left to run.

        Raises SchemaError or psycopg.OperationalError when the database cannot be used at the start; later it waits.
        Raises LifespanFailed when what an @app.lifespan opens cannot be opened or closed.
        """
        asyncio.run(self._run(signals=threading.current_thread() is threading.main_thread()))

    async def run_async(self) -> None:
        """`run` on the running event loop; leaves signals to the application."""
        await self._run(signals=False)

    def stop(self) -> None:
        """Claims no more; `run` returns when the running jobs have ended, or the grace period has."""
        self._stop.set()
        self._ring()

    async def _run(self, *, signals: bool) -> None:
        """Holds open, around all of its lives, what the app's lifespans open."""
        held, self._left = self._make_held(), self.settings.grace
        await held.open(self.stop)
        try:
            await self._live(signals=signals)
        except BaseException:
            with suppress(LifespanFailed):  # it has been logged, and the other one came first
                await held.close(self._left)
            raise
        await held.close(self._left)

    async def _live(self, *, signals: bool) -> None:
        running = asyncio.get_running_loop()
        heart = await asyncio.to_thread(self._make_heart, self.settings)
        heart.start()
        if signals:
            for one in (signal.SIGTERM, signal.SIGINT):
                running.add_signal_handler(one, self.stop)
        try:
            while await self._one_life(heart):
                pass
        finally:
            self._ring = lambda: None
            self._stop.clear()  # here, not at the start: a stop() that comes early counts
            if signals:
                for one in (signal.SIGTERM, signal.SIGINT):
                    running.remove_signal_handler(one)
            await asyncio.to_thread(heart.end, 5.0)

    async def _one_life(self, heart: Heart) -> bool:
        """A row, a loop, and the row's end; True when the lease ended under it and another life is wanted."""
        running, awake, registered = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        worker_id = self._new_id()

        def wake() -> None:
            with suppress(RuntimeError):  # the application's loop is closed
                running.call_soon_threadsafe(awake.set)

        def done() -> None:  # in the heart's thread
            registered.set()
            wake()

        self._ring = wake
        if self._stop.is_set():
            return False
        heart.register(
            worker_id,
            done,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self.settings.queues,
            concurrency=self.settings.concurrency,
            **self._row,
        )
        try:
            await awake.wait()  # the database may be away, and stop() come before it is back
            if not registered.is_set():
                return False
            loop = self._make_loop(self.settings, worker_id)
            self._ring = partial(running.call_soon_threadsafe, loop.stop)
            if self._stop.is_set():
                loop.stop()
            try:
                return await self._work(loop, heart, worker_id) and not self._stop.is_set()
            finally:
                self._left = loop.left
        finally:
            heart.forget(worker_id)
            heart.send(partial(rescue.bury, heart.sql, [worker_id], "the worker stopped", crashed=False))

    async def _work(self, loop: Loop, heart: Heart, worker_id: UUID) -> bool:
        """Runs the loop; True when its lease ended under it and its attempts were interrupted."""
        work = asyncio.create_task(loop.run())
        try:
            while not work.done():
                await asyncio.wait((work,), timeout=min(0.2, self.settings.lease / 10))
                margin = 0.2 * self.settings.lease
                if heart.has_lost(worker_id) or now() > heart.deadline(worker_id) - margin:
                    log.error("the lease could not be renewed: interrupting what runs", extra={"event": "lease_lost"})
                    loop.abandon()
                    await asyncio.wait((work,))
                    return True
            return False
        finally:
            if not work.done():  # run_async() itself is cancelled: no job may go on without a heartbeat
                loop.abandon()
                await asyncio.wait((work,))
            work.result()
