"""The heart of a worker, start here: wake, claim, run, settle, until told to stop.

    while not stopping: start(claim(free slots)); when nothing is due: lie down until a NOTIFY, a due time or the poll

Claiming the next batch overlaps running and settling the last. A slot is free as soon as its attempt has an outcome;
what is not settled yet is still held, so that nothing is run or given back twice. Jobs that end within milliseconds are
claimed ahead of their slots (ahead.py says how many): a claim for each free slot would cost more than the jobs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Literal
from uuid import UUID

from pgqueue import db
from pgqueue.counts import Counts
from pgqueue.db import Claim, Order
from pgqueue.events import FAILURES, Event, Events, cancelled
from pgqueue.failure import describe, trace
from pgqueue.link import INFRASTRUCTURE, Link
from pgqueue.settings import CHORE_PATIENCE, WorkerSettings
from pgqueue.sql import Statements
from pgqueue.task import Task
from pgqueue.worker.ahead import PATIENCE, Ahead
from pgqueue.worker.claim import Attempt, Claimer
from pgqueue.worker.coroutines import Coroutines
from pgqueue.worker.orders import Orders
from pgqueue.worker.processes import Processes, ProcessRun
from pgqueue.worker.run import SUCCEEDED, Completed, End, Failed, Lost, Outcome, Run, Stage, raised
from pgqueue.worker.settle import (
    COMPLETE,
    Settlement,
    Settler,
    ToCancelled,
    ToDead,
    ToGiveBack,
    ToHinder,
    ToRetry,
    Verdict,
    complete_one,
    decide,
)
from pgqueue.worker.threads import Threads
from pgqueue.worker.transaction import Connections, Fenced
from pgqueue.worker.wake import Wake

log = logging.getLogger("pgqueue")

# Looks at the table after having lain down: for jobs whose transaction did not see the sleeper yet. Seconds.
_LOOKS = (0.0, 0.005, 0.05)
# A worker that finds something that often stays on the lookout: else each enqueue of a steady stream would notify it,
# and the application's commits would wait for each other (0.10 of the rate at a 1 ms flush). Seconds.
_SOON = 0.01
_GLANCE = 0.003  # seconds between the looks of a lookout
_BELIEVED = 0.03  # seconds for which its row is; renewed while it looks
_UNSETTLED = 10  # times the concurrency: ended jobs that may wait for their settle before claiming pauses
_AGAIN = 0.005  # seconds before another look for a job that came due while we looked
_GHOSTS_EVERY = 5.0  # seconds between comparisons of what we hold with what the table says we hold
_NAMED = 20  # jobs named in one line of the log
_LAST_CLOSE = 3.0  # seconds beyond the grace period; the loop's own end may take as long
_LAST_WORDS = 1.0  # seconds for cancelled jobs to clean up, and for event handlers to end

Chores = Callable[[Link, Events, Callable[[], Counts]], Coroutine[Any, Any, None]]
"""Looks after everybody's jobs for as long as the worker lives, and counts what became of them; see maintenance/."""


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
        self._claim_link = Link(conninfo, "claim", uniform, settings.patience)
        self._settle_link = Link(conninfo, "settle", uniform, settings.patience)
        self._chore_link = Link(conninfo, "chores", uniform, CHORE_PATIENCE)
        self._claimer = Claimer(sql, self._claim_link, worker_id, tasks, settings.queues)
        self._orders = Orders(time.monotonic)
        self._strays: dict[int, int] = {}  # job -> fence, to be cancelled, and unknown to us
        self._wake = Wake(listen_conninfo or conninfo, worker_id, uniform, settings.patience)
        self._settler = Settler(
            sql,
            self._settle_link,
            worker_id,
            events,
            given_back=self._given_back,
            written=self._written,
            busy=lambda: bool(self._ready),
            awaited=lambda: self._orders.awaited,
        )
        self._connections = Connections(
            conninfo,
            most=settings.concurrency,
            lease=settings.lease,
            patience=settings.patience,
            uniform=uniform,
        )
        said = self._settler.marks, self._settler.lines
        self._fence = partial(Fenced, sql, self._connections, partial(complete_one, sql, worker_id), worker_id, *said)
        self._processes = Processes(
            conninfo=conninfo,
            schema=sql.schema,
            lease=settings.lease,
            patience=settings.patience,
            marks=self._settler.marks,
            lines=self._settler.lines,
        )
        self._runs: set[Run | ProcessRun] = set()
        self._ready: deque[Attempt] = deque()  # claimed, and waiting for a slot
        self._ahead = Ahead(time.monotonic)
        self._held_up = False  # by settles that wait
        self._few = settings.concurrency  # so many under way, or fewer: time to claim again
        self._hurry = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stop_at = math.inf  # when we were told to, in time.monotonic() seconds
        self._retiring = False
        self._looks = 0  # how often we looked since we lay down; 0: awake
        self._renew_at = 0.0  # when our row in `sleepers` is to be renewed, should we still lie down
        self._found_at = -math.inf  # when a claim last brought something, in time.monotonic() seconds
        self._found_after = math.inf  # and how long after the one before
        self._lookout_until = -math.inf  # for how long our row in `sleepers` says that we look by ourselves
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
        if not self._stopping.is_set():
            self._stop_at = time.monotonic()
        self._stopping.set()
        self._wake.ring()

    def retire(self) -> None:
        """Claims no more; run() returns when what runs has ended, however long that takes."""
        self._retiring = True
        self._wake.ring()

    @property
    def trouble(self) -> str | None:
        """Why the database does not answer what claims or what settles; None while it does."""
        return self._claim_link.trouble or self._settle_link.trouble

    @property
    def left(self) -> float:
        """Seconds that are left of the stop for what else is to be closed; our supervisor kills us 2 s later."""
        end = min(self._stop_at, time.monotonic()) + self._settings.grace + _LAST_CLOSE
        return max(1.0, 0.0 if self._hurry.is_set() else end - time.monotonic())

    @property
    def overdue(self) -> Attempt | None:
        """One that runs longer than its hard_timeout, and that nobody here can end."""
        return next((run.attempt for run in self._runs if run.attempt.overdue), None)

    @property
    def busy(self) -> int:
        """Slots in which something runs."""
        return len(self._runs)

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
        self._stage = Stage(self._threads, Coroutines(), self._ended, self._fence)
        background = [
            asyncio.create_task(self._settler.run()),
            asyncio.create_task(self._wake.listen(self._ask)),
            asyncio.create_task(self._chores(self._chore_link, self._events, lambda: self._settler.counts)),
        ]
        watch = asyncio.create_task(_first_failure(background))
        work = asyncio.create_task(self._work())
        try:
            await self._until_done_or_stopped(work, watch)
            await self._finish()
        finally:
            for task in (work, watch, *background):
                task.cancel()
            await asyncio.gather(work, watch, *background, return_exceptions=True)
            for link in (self._claim_link, self._settle_link, self._chore_link, self._wake):
                await link.close()
            await self._processes.close()
            self._threads.close()
            self._connections.close()

    async def _until_done_or_stopped(self, work: asyncio.Task[None], watch: asyncio.Task[None]) -> None:
        """A claim whose answer does not come takes no time from what runs; should it be done, its jobs are rescued."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((work, watch, stopping), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not work.done():
                await asyncio.wait((work, watch), timeout=_LAST_WORDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if watch.done():
            await watch  # a background task broke: not to be hidden behind a worker that seems to run
        if work.done():
            await work
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    # -- claim -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        tries = 0
        while not self._stopping.is_set():
            if self._retiring and not self._runs and not self._ready:
                return
            wanted = self._wanted()
            try:
                if self._orders.stale:
                    await self._ask(self._claim_link)
                if wanted <= 0:
                    await self._pass_on(self._queues)
                    await self._release_ghosts()  # what we hold may run for hours
                    await self._wait_for_slots()
                    continue
                await self._release_ghosts()
                attempts = self._new(await self._claim(wanted))
                tries = 0
                self._ready.extend(attempts)
                self._give_back_paused()
                self._start_ready()
                if attempts:
                    await self._rise(
                        sorted({attempt.claim.queue for attempt in attempts}), full=len(attempts) == wanted
                    )
                elif self._ready:
                    await self._wait_for_slots()
                elif self._suspects == "alone" or (self._settings.drain and await self._drained()):
                    return
                else:
                    await self._lie_down()
            except INFRASTRUCTURE as error:
                tries += 1
                self._next_ghosts = 0.0  # a claim may have been committed and its answer lost
                await self._claim_link.pause(tries, error)

    async def _claim(self, wanted: int) -> list[Attempt]:
        attempts = [] if self._suspects == "alone" else await self._claimer.claim(wanted)
        if not attempts and not self._runs and not self._ready and self._suspects != "elsewhere":
            await self._settler.flushed()  # it may take the process along, and what is not written yet with it
            return await self._claimer.claim_suspect()
        return attempts

    def _new(self, attempts: list[Attempt]) -> list[Attempt]:
        """Those that do not run here already: a primary that took over may have forgotten a claim, and gives the same
        job the same fence again. The claim is then that of the run which goes on; a second beside it, no write of which
        the fence could tell from the first's, must not be."""
        if not attempts or set(self._held()).isdisjoint(attempt.claim.id for attempt in attempts):
            return attempts
        fences: dict[int, int] = {}  # where all is well, it is held with a lower one: its settle's answer is late
        for one in self._attempts():
            fences[one.claim.id] = max(one.claim.fence, fences.get(one.claim.id, 0))
        new = []
        for attempt in attempts:
            fence = fences.get(attempt.claim.id, 0)
            if attempt.claim.fence > fence:
                new.append(attempt)
                continue
            log.error(
                "the database has forgotten a claim: this job is held with fence %d already, and is not started again",
                fence,
                extra={"event": "claimed_twice", **attempt.log_fields, "fence": attempt.claim.fence},
            )
            if attempt.claim.fence < fence:  # no write of ours would be taken: somebody shall have it, in a moment
                self._settler.add(Settlement(attempt, ToGiveBack(1.0), 0.0, started=False))
        return new

    def _wanted(self) -> int:
        """Jobs to claim now: for the free slots, and ahead of them what runs in a moment at the rate of late.

        None while settles wait for a lock, or a worker would run on and settle nothing of it; none beside a job under
        which a process died; and none for who retires.
        """
        first = next(iter(self._runs), None)
        if self._retiring or (first is not None and first.attempt.claim.crashes):
            return 0
        slots, ahead = self._settings.concurrency, self._ahead.jobs()
        under_way = len(self._runs) + len(self._ready)
        self._few = (slots + ahead) // 2 if ahead else slots
        if ahead and under_way > self._few:
            return 0  # a larger claim a little later costs less
        wanted, may = slots + ahead - under_way, _UNSETTLED * slots + 2 * ahead - self._settler.unsettled
        self._held_up = may <= 0 < wanted
        return min(wanted, may)

    def _start_ready(self) -> None:
        while self._ready and len(self._runs) < self._settings.concurrency and not self._stopping.is_set():
            self._start(self._ready.popleft())

    async def _wait_for_slots(self) -> None:
        """What was claimed ahead and does not get its slot in time, behind a slow neighbour, is for others to run."""
        await self._wake.wait(
            min(self._settings.poll_interval, PATIENCE) if self._ready else self._settings.poll_interval
        )
        if self._ready and self._ahead.is_late(self._ready[0].claimed_at):
            self._give_back_ready()
            self._ahead.forget()

    def _give_back_ready(self) -> None:
        while self._ready:
            self._settler.add(Settlement(self._ready.popleft(), ToGiveBack(None), 0.0, started=False))

    # -- orders ----------------------------------------------------------------------------------------------------

    async def _ask(self, link: Link) -> float:
        """Asks for orders and obeys them; seconds until the next time."""
        told = await link.perform(db.orders(self._sql, self._worker_id))
        if self._orders.heard(told):
            self._claimer.forget()  # what waits may lie below its floor
            self._wake.ring()
        self._claimer.pause(self._orders.tasks)
        self._give_back_paused()
        for order in told:
            if order.kind == "cancel":
                self._cancel(order)
        return self._orders.ask_in

    def _give_back_paused(self) -> None:
        """What was claimed and has not started when its queue or its task is paused."""
        if not self._ready or not (self._orders.queues or self._orders.tasks):
            return
        waiting, self._ready = self._ready, deque()
        for attempt in waiting:
            if self._orders.hold_up(attempt.claim):
                self._settler.add(Settlement(attempt, ToGiveBack(None), 0.0, started=False))
            else:
                self._ready.append(attempt)
        self._settler.hurry()

    def _cancel(self, order: Order) -> None:
        """A job of ours is to end: one that runs is told, one that waits for its slot never starts."""
        assert order.id is not None
        assert order.fence is not None
        claim = order.id, order.fence
        for run in self._runs:
            if (run.attempt.claim.id, run.attempt.claim.fence) == claim:
                run.cancel(order.name)
                return
        for attempt in self._ready:
            if (attempt.claim.id, attempt.claim.fence) == claim:
                self._ready.remove(attempt)
                self._settler.add(Settlement(attempt, ToCancelled(order.name), 0.0, started=False))
                self._settler.hurry()
                return
        if order.id not in self._settler.held:
            # Its claim's answer is on its way, or was lost: told before the next claim, when none is under way.
            self._strays[order.id] = order.fence

    def _held(self) -> list[int]:
        held = [run.attempt.claim.id for run in self._runs]
        return held + [attempt.claim.id for attempt in self._ready] + self._settler.held

    def _attempts(self) -> list[Attempt]:
        return [*(run.attempt for run in self._runs), *self._ready, *self._settler.attempts]

    async def _cancel_strays(self) -> None:
        strays = {job: fence for job, fence in self._strays.items() if job not in self._held()}
        if strays:
            ids, fences = list(strays), list(strays.values())
            for job in await self._claim_link.perform(db.cancel_asked(self._sql, self._worker_id, ids, fences)):
                fields = {"job_id": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt}
                log.info("cancelled: it was claimed without our knowing", extra={"event": "job_cancelled", **fields})
                self._settler.counts.cancelled[(job.queue, job.task)] += 1
                self._events.emit(cancelled(*job))
        self._strays.clear()

    async def _release_ghosts(self) -> None:
        if self._strays:
            await self._cancel_strays()
        if time.monotonic() < self._next_ghosts:
            return
        held = self._held()
        ghosts = await self._claim_link.perform(db.release_ghosts(self._sql, self._worker_id, held))
        if ghosts:
            self._claimer.forget()
        for job_id, task, number in ghosts:
            log.warning(
                "released a job that was claimed without our knowing",
                extra={"event": "ghost", "job_id": job_id, "task": task, "attempt": number},
            )
        self._next_ghosts = time.monotonic() + _GHOSTS_EVERY

    async def _rise(self, queues: list[str], *, full: bool) -> None:
        """Awake again. With no slot left, nobody shall wake us, and somebody else gets what we could not take."""
        self._looks = 0
        before, self._found_at = self._found_at, time.monotonic()
        self._found_after = self._found_at - before
        if full:
            await self._pass_on(queues)

    async def _pass_on(self, queues: Sequence[str]) -> None:
        if self._known_asleep:
            self._known_asleep = False
            self._lookout_until = -math.inf
            await self._claim_link.perform(db.rise(self._sql, self._worker_id))
            await self._claim_link.perform(db.wake(self._sql, queues, self._worker_id))

    @property
    def _queues(self) -> tuple[str, ...]:
        return self._settings.queues or ("*",)

    async def _lie_down(self) -> None:
        """Nothing is due: be known as a sleeper, look again for what was under way, sleep until something rings."""
        poll = self._settings.poll_interval
        if self._looks == 0:
            if await self._looks_out():
                return
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

    async def _looks_out(self) -> bool:
        """Whether, since so much comes, it does not lie down yet but looks again in a moment."""
        now = time.monotonic()
        if max(self._found_after, now - self._found_at) > _SOON:
            if self._lookout_until > -math.inf:  # from here on it has to be notified
                self._lookout_until = -math.inf
                await self._claim_link.perform(db.rise(self._sql, self._worker_id))
            return False
        if now >= self._lookout_until - _SOON:
            if not self._known_asleep or now >= self._renew_at:
                await self._sleep()  # what comes due later wakes a lookout, too
            lookout = tuple(f"+{queue}" for queue in self._queues)
            await self._claim_link.perform(db.sleep(self._sql, self._worker_id, lookout, _BELIEVED))
            self._lookout_until = now + _BELIEVED
        await self._wake.wait(min(_GLANCE, self._settings.poll_interval))
        return True

    async def _sleep(self) -> None:
        self._known_asleep = True
        self._renew_at = time.monotonic() + 0.9 * self._settings.poll_interval
        seconds = 1.5 * self._settings.poll_interval
        await self._claim_link.perform(db.sleep(self._sql, self._worker_id, self._settings.queues, seconds))

    async def _drained(self) -> bool:
        if self._runs or self._ready:
            return False
        await self._settler.flushed()
        waiting, later = await self._claim_link.perform(
            db.left_to_run(self._sql, sorted(self._tasks), self._settings.queues)
        )
        self.left_for_later = later
        return waiting <= len(self._settler.refused)  # nor would they be done by waiting for them

    # -- run and settle ----------------------------------------------------------------------------------------------

    def _start(self, attempt: Attempt) -> None:
        if log.isEnabledFor(logging.DEBUG):  # on the hot path nothing is built for nobody
            log.debug("started", extra={"event": "job_started", **attempt.log_fields})
        if self._events.wanted("started"):
            self._events.emit(Event("started", attempt.job))
        run: Run | ProcessRun
        if attempt.task.run_in == "process":
            run = ProcessRun(attempt, self._processes, self._ended)
        else:
            run = Run(attempt, self._stage)
        self._runs.add(run)
        run.start()

    def _ended(self, run: Run | ProcessRun, outcome: End) -> None:
        self._runs.discard(run)
        seconds = time.monotonic() - run.began
        if outcome is SUCCEEDED:  # the hot path: nothing to decide
            self._settler.add(Settlement(run.attempt, COMPLETE, seconds))
        elif isinstance(outcome, Completed | Lost):
            self._settler.note(run.attempt, outcome, seconds)
        else:
            self._settle(run.attempt, outcome, seconds)
        if self._ready:
            self._start_ready()
        else:
            self._settler.hurry()
        if len(self._runs) + len(self._ready) <= self._few:
            self._wake.ring()

    def _settle(self, attempt: Attempt, outcome: Outcome, seconds: float) -> None:
        policy = attempt.policy or attempt.task.retry
        number, most = attempt.claim.attempt, attempt.claim.max_attempts
        try:
            verdict = decide(outcome, number, most, policy, self._uniform)
        except Exception as error:  # the job's own code again: a Steer with a broken __str__, say
            outcome = Failed(error, describe(error), trace(error))
            verdict = decide(outcome, number, most, policy, self._uniform)
        self._settler.add(Settlement(attempt, verdict, seconds, exception=self._told(outcome, attempt, verdict)))

    def _told(self, outcome: Outcome, attempt: Attempt, verdict: Verdict) -> BaseException | None:
        """What the handlers of its events are told was raised: kept, with all that its frames hold, for them alone."""
        if isinstance(verdict, ToRetry | ToDead | ToHinder) and any(map(self._events.wanted, FAILURES)):
            return raised(outcome, attempt)
        return None

    def _given_back(self, claims: list[Claim]) -> None:
        self._claimer.given_back(claims)
        self._wake.ring()

    def _written(self, number: int) -> None:
        self._ahead.settled(number)
        if self._held_up:
            self._wake.ring()

    # -- stop ----------------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Lets jobs finish within the grace period, then interrupts them; what can be released is."""
        begin = min(self._stop_at, time.monotonic())
        end = begin + self._settings.grace + _LAST_WORDS  # soon after it our supervisor kills us
        self._give_back_ready()
        if not self._hurry.is_set():
            try:
                async with asyncio.timeout(_LAST_WORDS):
                    await self._pass_on(self._queues)
            except (*INFRASTRUCTURE, TimeoutError):
                pass  # then we may be woken in vain for 1.5 poll intervals
        await self._until_ended_or_hurried(begin + self._settings.grace)
        for run in list(self._runs):
            run.interrupt()
        try:
            async with asyncio.timeout(_LAST_WORDS):
                await self._all_ended()
        except TimeoutError:
            pass
        self.stuck = [run.attempt for run in self._runs]
        for attempt in self.stuck:
            log.error("did not end within the grace period", extra={"event": "job_stuck", **attempt.log_fields})
        try:
            left = 0.0 if self._hurry.is_set() else end - time.monotonic()
            async with asyncio.timeout(max(_LAST_WORDS, left)):
                await self._settler.flushed()
        except TimeoutError:
            held = self._settler.held
            log.error(
                "the database is away: %d jobs end unsettled and will be rescued: %s%s",
                len(held),
                ", ".join(str(job_id) for job_id in held[:_NAMED]),
                ", …" if len(held) > _NAMED else "",
                extra={"event": "unsettled"},
            )
        if refused := self._settler.refused:
            log.error(
                "PostgreSQL refuses to settle %d jobs, which will be rescued and run again: %s%s",
                len(refused),
                ", ".join(str(attempt.claim.id) for attempt in refused[:_NAMED]),
                ", …" if len(refused) > _NAMED else "",
                extra={"event": "unsettled"},
            )
            self.stuck += refused
        await self._events.finish(_LAST_WORDS)

    async def _until_ended_or_hurried(self, end: float) -> None:
        ended, hurried = asyncio.create_task(self._all_ended()), asyncio.create_task(self._hurry.wait())
        left = max(0.0, end - time.monotonic())
        await asyncio.wait((ended, hurried), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        hurried.cancel()

    async def _all_ended(self) -> None:
        while self._runs:
            await self._wake.wait(self._settings.poll_interval)


async def _first_failure(tasks: list[asyncio.Task[None]]) -> None:
    """Raises what the first of the tasks to fail raised; a task that simply ends is let go."""
    waiting = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    await asyncio.Event().wait()
