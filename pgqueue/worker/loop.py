"""The heart of a worker, start here: wake, claim, run, settle, until told to stop.

    while not stopping: start(claim(free slots)); when nothing is due: lie down until a NOTIFY, a due time or the poll

Claiming the next batch overlaps running and settling the last. A slot is free as soon as its attempt has an outcome;
what is not settled yet is still held, so that nothing is run or given back twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from pgqueue import db
from pgqueue.counts import Counts
from pgqueue.events import Event, Events
from pgqueue.link import INFRASTRUCTURE, Link
from pgqueue.settings import WorkerSettings
from pgqueue.sql import Statements
from pgqueue.task import Task
from pgqueue.worker.claim import Attempt, Claimer
from pgqueue.worker.run import Failed, Run, describe, trace
from pgqueue.worker.settle import Settlement, Settler, decide
from pgqueue.worker.threads import Threads
from pgqueue.worker.wake import Wake

log = logging.getLogger("pgqueue")

# Looks at the table after having lain down: for jobs whose transaction did not see the sleeper yet. Seconds.
_LOOKS = (0.0, 0.005, 0.05)
_UNSETTLED = 10  # times the concurrency: ended jobs that may wait for their settle before claiming pauses
_AGAIN = 0.005  # seconds before another look for a job that came due while we looked
_GHOSTS_EVERY = 5.0  # seconds between comparisons of what we hold with what the table says we hold
_LAST_WORDS = 1.0  # seconds for cancelled jobs to clean up, and for event handlers to end

Chores = Callable[[Link, Events], Coroutine[Any, Any, None]]
"""Looks after everybody's jobs for as long as the worker lives; see maintenance/."""


Suspects = Literal["elsewhere", "when idle", "alone"]
"""What a worker does with jobs under which a process died: leaves them to a process of their own; runs one when nothing
else runs; or is that process, runs nothing else, one at a time, and ends when none is left."""


class Loop:
    """One worker: `concurrency` slots, three connections (claim, settle, listen) and one for chores.

    suspects: what it does with jobs under which a process died; by default what a worker without a supervisor does.
    """

    def __init__(
        self,
        *,
        conninfo: str,
        sql: Statements,
        tasks: Mapping[str, Task[..., Any]],
        events: Events,
        settings: WorkerSettings,
        worker_id: UUID,
        chores: Chores,
        listen_conninfo: str | None = None,
        suspects: Suspects = "when idle",
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._sql = sql
        self._tasks = tasks
        self._events = events
        self._settings = settings
        self._worker_id = worker_id
        self._chores = chores
        self._suspects = suspects
        self._uniform = uniform
        self._claim_link = Link(conninfo, "claim", uniform)
        self._settle_link = Link(conninfo, "settle", uniform)
        self._chore_link = Link(conninfo, "chores", uniform)
        self._claimer = Claimer(sql, self._claim_link, worker_id, tasks, settings.queues)
        self._wake = Wake(listen_conninfo or conninfo, worker_id, uniform)
        self._settler = Settler(sql, self._settle_link, worker_id, events, self._wake.ring)
        self._runs: dict[asyncio.Task[None], Run] = {}
        self._hurry = asyncio.Event()
        self._stopping = asyncio.Event()
        self._looks = 0  # how often we looked since we lay down; 0: awake
        self._renew_at = 0.0  # when our row in `sleepers` is to be renewed, should we still lie down
        self._known_asleep = False  # our row in `sleepers` may still be believed
        self._next_ghosts = 0.0
        self.left_for_later = 0
        self.stuck: list[Attempt] = []

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Claims no more; run() returns when what runs has ended, or the grace period has."""
        self._stopping.set()
        self._wake.ring()

    def take_counts(self) -> Counts:
        """What was counted since the last time this was asked."""
        taken, self._settler.counts = self._settler.counts, Counts()
        return taken

    def abandon(self) -> None:
        """The lease has ended: interrupts what runs, at once; nothing is settled that others may have taken."""
        self._hurry.set()
        self.stop()

    async def run(self) -> None:
        """Works until stop(), or, draining, until nothing is left. What is `stuck` then did not end when asked to."""
        self._threads = Threads(self._settings.concurrency)
        background = [
            asyncio.create_task(self._settler.run()),
            asyncio.create_task(self._wake.listen()),
            asyncio.create_task(self._chores(self._chore_link, self._events)),
        ]
        watch = asyncio.create_task(_first_failure(background))
        work = asyncio.create_task(self._work())
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await watch  # a background task broke: not to be hidden behind a worker that seems to run
            await work
            await self._finish()
        finally:
            for task in (work, watch, *background):
                task.cancel()
            await asyncio.gather(work, watch, *background, return_exceptions=True)
            for link in (self._claim_link, self._settle_link, self._chore_link, self._wake):
                await link.close()
            self._threads.close()

    # -- claim -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        tries = 0
        while not self._stopping.is_set():
            free = self._free()
            if free <= 0:
                await self._wake.wait(self._settings.poll_interval)
                continue
            try:
                await self._release_ghosts()
                attempts = await self._claim(free)
                tries = 0
                for attempt in attempts:
                    self._start(attempt)
                if attempts:
                    await self._rise(sorted({attempt.claim.queue for attempt in attempts}), full=len(attempts) == free)
                elif self._suspects == "alone" or (self._settings.drain and await self._drained()):
                    return
                else:
                    await self._lie_down()
            except INFRASTRUCTURE as error:
                tries += 1
                self._next_ghosts = 0.0  # a claim may have been committed and its answer lost
                await self._claim_link.pause(tries, error)

    async def _claim(self, free: int) -> list[Attempt]:
        attempts = [] if self._suspects == "alone" else await self._claimer.claim(free)
        if not attempts and not self._runs and self._suspects != "elsewhere":
            await self._settler.flushed()  # it may take the process along, and what is not written yet with it
            return await self._claimer.claim_suspect()
        return attempts

    def _free(self) -> int:
        """Slots to claim for; none while settles wait for a lock, or a worker would run on and settle nothing of it,
        and none beside a job under which a process died."""
        first = next(iter(self._runs.values()), None)
        if first is not None and first.attempt.claim.crashes:
            return 0
        unsettled = _UNSETTLED * self._settings.concurrency - len(self._settler.held)
        return min(self._settings.concurrency - len(self._runs), unsettled)

    async def _release_ghosts(self) -> None:
        if time.monotonic() < self._next_ghosts:
            return
        held = [run.attempt.claim.id for run in self._runs.values()] + self._settler.held
        ghosts = await self._claim_link.perform(db.release_ghosts(self._sql, self._worker_id, held))
        for job_id, task, number in ghosts:
            log.warning(
                "released a job that was claimed without our knowing",
                extra={"event": "ghost", "job_id": job_id, "task": task, "attempt": number},
            )
        self._next_ghosts = time.monotonic() + _GHOSTS_EVERY

    async def _rise(self, queues: list[str], *, full: bool) -> None:
        """Awake again. With no slot left, nobody shall wake us, and somebody else gets what we could not take."""
        self._looks = 0
        if full:
            await self._pass_on(queues)

    async def _pass_on(self, queues: Sequence[str]) -> None:
        if self._known_asleep:
            self._known_asleep = False
            await self._claim_link.perform(db.rise(self._sql, self._worker_id))
            await self._claim_link.perform(db.wake(self._sql, queues, self._worker_id))

    @property
    def _queues(self) -> tuple[str, ...]:
        return self._settings.queues or ("*",)

    async def _lie_down(self) -> None:
        """Nothing is due: be known as a sleeper, look again for what was under way, sleep until something rings."""
        poll = self._settings.poll_interval
        if self._looks == 0:
            await self._sleep()
        if self._looks < len(_LOOKS):
            pause, self._looks = _LOOKS[self._looks], self._looks + 1
            if pause:
                await self._wake.wait(min(pause, poll))
            return
        due = await self._claimer.next_due()
        await self._wake.wait(poll if due is None else max(_AGAIN, min(poll, due)))
        if time.monotonic() >= self._renew_at:
            await self._sleep()

    async def _sleep(self) -> None:
        self._known_asleep = True
        self._renew_at = time.monotonic() + 0.9 * self._settings.poll_interval
        seconds = 1.5 * self._settings.poll_interval
        await self._claim_link.perform(db.sleep(self._sql, self._worker_id, self._settings.queues, seconds))

    async def _drained(self) -> bool:
        if self._runs:
            return False
        await self._settler.flushed()
        waiting, later = await self._claim_link.perform(
            db.left_to_run(self._sql, sorted(self._tasks), self._settings.queues)
        )
        self.left_for_later = later
        return waiting == 0

    # -- run and settle ----------------------------------------------------------------------------------------------

    def _start(self, attempt: Attempt) -> None:
        run = Run(attempt, self._threads)
        task = asyncio.create_task(self._attempt(run))
        self._runs[task] = run
        task.add_done_callback(self._ended)

    async def _attempt(self, run: Run) -> None:
        attempt = run.attempt
        log.debug("started", extra={"event": "job_started", **attempt.log_fields})
        if self._events.wanted("started"):
            self._events.emit(Event("started", attempt.job))
        began = time.monotonic()
        outcome = await run.outcome()
        policy = attempt.policy or attempt.task.retry
        number, most = attempt.claim.attempt, attempt.claim.max_attempts
        try:
            verdict = decide(outcome, number, most, policy, self._uniform)
        except Exception as error:  # the job's own code again: a Steer with a broken __str__, say
            verdict = decide(Failed(error, describe(error), trace(error)), number, most, policy, self._uniform)
        self._settler.add(Settlement(attempt, verdict, time.monotonic() - began))

    def _ended(self, task: asyncio.Task[None]) -> None:
        run = self._runs.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a run broke", exc_info=error, extra={"event": "run_broken", **run.attempt.log_fields})
        self._wake.ring()

    # -- stop ----------------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Lets jobs finish within the grace period, then interrupts them; what can be released is."""
        if not self._hurry.is_set():
            try:
                async with asyncio.timeout(_LAST_WORDS):
                    await self._pass_on(self._queues)
            except (*INFRASTRUCTURE, TimeoutError):
                pass  # then we may be woken in vain for 1.5 poll intervals
        await self._until_ended_or_hurried()
        for run in list(self._runs.values()):
            run.interrupt()
        if self._runs:
            await asyncio.wait(self._runs, timeout=_LAST_WORDS)
        self.stuck = [run.attempt for run in self._runs.values()]
        for attempt in self.stuck:
            log.error("did not end within the grace period", extra={"event": "job_stuck", **attempt.log_fields})
        try:
            async with asyncio.timeout(_LAST_WORDS if self._hurry.is_set() else self._settings.grace + _LAST_WORDS):
                await self._settler.flushed()
        except TimeoutError:
            log.error("the database is away: %d jobs end unsettled and will be rescued", len(self._settler.held))
        await self._events.finish(_LAST_WORDS)

    async def _until_ended_or_hurried(self) -> None:
        ended, hurried = asyncio.create_task(self._all_ended()), asyncio.create_task(self._hurry.wait())
        await asyncio.wait((ended, hurried), timeout=self._settings.grace, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        hurried.cancel()

    async def _all_ended(self) -> None:
        while self._runs:
            await asyncio.wait(self._runs)


async def _first_failure(tasks: list[asyncio.Task[None]]) -> None:
    """Raises what the first of the tasks to fail raised; a task that simply ends is let go."""
    waiting = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    await asyncio.Event().wait()
