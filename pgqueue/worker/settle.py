"""Step 4 of a job's life, settle: an Outcome becomes a Verdict, and the verdicts of many jobs become one write each.

Before: run.py. `decide` is pure: no clock, no database. The Settler writes while the worker claims the next batch;
what comes in meanwhile is the next write. Every write names owner and fence: a job that is missing from the answer was
lost, its result is dropped, and that is said aloud.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID

import psycopg

from pgqueue import db
from pgqueue.arguments import result_json
from pgqueue.counts import Counts
from pgqueue.db import Claim
from pgqueue.drivers import Steps
from pgqueue.errors import Cancel, DeadLetter, RetryLater, Snooze, Steer
from pgqueue.events import Event, Events
from pgqueue.failure import clean
from pgqueue.job import DeadReason, State
from pgqueue.link import INFRASTRUCTURE, Link
from pgqueue.retry import RetryPolicy, StoredRetryPolicy
from pgqueue.settings import HINDERED_DELAY, MAX_CRASHES, MAX_ERROR_CHARS, MAX_HINDERED, PARTITIONS_AHEAD
from pgqueue.sql import Statements
from pgqueue.worker.claim import Attempt
from pgqueue.worker.lines import Lines
from pgqueue.worker.lines import write as write_lines
from pgqueue.worker.progress import Marks
from pgqueue.worker.progress import write as write_marks
from pgqueue.worker.run import (
    Completed,
    Crashed,
    Encoded,
    Failed,
    Hindered,
    Interrupted,
    Lost,
    Outcome,
    Steered,
    Succeeded,
    Unreadable,
)

_ENOUGH = 250  # verdicts; more in one write win nothing
_LINGER = 0.01  # seconds that a busy worker waits for more of them
_REFUSED = 5.0, 300.0  # seconds until what PostgreSQL refused is written again, doubled up to the second
_CROWD = 50  # completed jobs in one write, above which the log sums them up: a line each costs more than the jobs
_UNUSED = " (no attempt used)"  # said after the error of one that was hindered
KEEP = 10 * 366 * 86_400.0  # seconds; a retention that empties nothing

log = logging.getLogger("pgqueue")


@dataclass(frozen=True, slots=True)
class ToComplete:
    result: str | None = field(default=None, repr=False)


COMPLETE = ToComplete()  # without a result


@dataclass(frozen=True, slots=True)
class ToRetry:
    """delay in seconds from the moment the database writes it."""

    delay: float
    error: str
    traceback: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ToGiveBack:
    """A snooze with a delay in seconds, a release without."""

    delay: float | None


@dataclass(frozen=True, slots=True)
class ToCrashed:
    """The process that it had to itself has died: again, with nothing beside it, and no attempt is used."""

    error: str


@dataclass(frozen=True, slots=True)
class ToHinder:
    """Given back, since it was not the job that failed; otherwise: what it gets instead when that has been so often."""

    delay: float
    error: str
    traceback: str | None = field(repr=False)
    otherwise: Verdict


@dataclass(frozen=True, slots=True)
class ToDead:
    reason: DeadReason
    error: str
    traceback: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ToCancelled:
    why: str


Verdict = ToComplete | ToRetry | ToGiveBack | ToCrashed | ToHinder | ToDead | ToCancelled


def decide(
    outcome: Outcome,
    attempt: int,
    max_attempts: int,
    policy: RetryPolicy | StoredRetryPolicy,
    uniform: Callable[[], float],
) -> Verdict:
    """What becomes of a job. attempt: the one that just ended, from 1. uniform: a random number in [0, 1)."""
    match outcome:
        case Succeeded(Encoded(text)):
            return ToComplete(text)
        case Crashed(text, crashes):
            return ToDead(DeadReason.CRASHED, text) if crashes >= MAX_CRASHES else ToCrashed(text)
        case Succeeded(result):
            return ToComplete(result_json(result))
        case Interrupted():
            return ToGiveBack(None)
        case Hindered(failure):
            text = f"{failure.text[: MAX_ERROR_CHARS - len(_UNUSED)]}{_UNUSED}"
            otherwise = decide(failure, attempt, max_attempts, policy, uniform)
            return ToHinder(HINDERED_DELAY[0] * (1.0 + 0.1 * uniform()), text, failure.traceback, otherwise)
        case Unreadable(text):
            return ToDead(DeadReason.BAD_ROW, text)
        case Steered(steer=Snooze() as snooze):
            return ToGiveBack(snooze.delay)
        case Steered(steer=Cancel() as cancel):
            return ToCancelled(_word(cancel))
        case Steered(steer=DeadLetter() as wish):
            return ToDead(DeadReason.DEAD_LETTER, _word(wish))
        case Steered(steer=RetryLater() as later):
            delay = later.delay if later.delay is not None else policy.delay_after(attempt, later, uniform)
            if attempt >= max_attempts or delay is None:
                return ToDead(DeadReason.ATTEMPTS, _word(later))
            return ToRetry(delay, _word(later))
        case Failed(error, text, traceback, timed_out):
            if not policy.retries(error):
                return ToDead(DeadReason.NEVER, text, traceback)
            delay = None if attempt >= max_attempts else policy.delay_after(attempt, error, uniform)
            if delay is None:
                return ToDead(DeadReason.TIMEOUT if timed_out else DeadReason.ATTEMPTS, text, traceback)
            return ToRetry(delay, text, traceback)
    raise AssertionError(f"no verdict for {outcome!r}")


def _word(steer: Steer) -> str:
    return clean(str(steer))[:MAX_ERROR_CHARS]


@dataclass(eq=False, slots=True)
class Settlement:
    """An attempt and its verdict, waiting to be written. seconds: how long it ran. started: whether it did; what was
    only claimed tells nothing of how long jobs wait or run. exception: what ended it, where somebody is to be told.

    whole: the verdict whose result PostgreSQL has refused, while it is tried without. refusals: how often it has
    refused that as well.
    """

    attempt: Attempt
    verdict: Verdict
    seconds: float
    started: bool = True
    exception: BaseException | None = field(default=None, repr=False)
    whole: ToComplete | None = None
    refusals: int = 0


class Settler:
    """Writes verdicts, many at once, on a connection of its own."""

    def __init__(
        self,
        sql: Statements,
        link: Link,
        worker_id: UUID,
        events: Events,
        *,
        given_back: Callable[[list[Claim]], None],
        written: Callable[[int], None],
        busy: Callable[[], bool],
        awaited: Callable[[], bool],
    ) -> None:
        """given_back: called when jobs may come due early, with those that are queued as they were before.

        written: called with the number of jobs that ended, without those given back. busy: whether more is about to
        end, worth waiting for. awaited: whether somebody may wait for the end of a job.
        """
        self._sql = sql
        self._link = link
        self._worker_id = worker_id
        self._events = events
        self._given_back = given_back
        self._written = written
        self._busy = busy
        self._awaited = awaited
        self._to_answer: list[int] = []  # jobs that have ended, for which somebody may wait
        self.counts = Counts()
        self._waiting: list[Settlement] = []
        self._writing: list[Settlement] = []
        self._refused: list[Settlement] = []
        self._arrived = asyncio.Event()
        self.marks = Marks(self._arrived.set)
        self.lines = Lines(self._arrived.set)
        self._silent: list[int] = []  # jobs that have settled themselves, and will say no more
        self._enough = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def held(self) -> list[int]:
        """Jobs that are not settled yet, as far as we know."""
        return [item.attempt.claim.id for item in (*self._waiting, *self._writing, *self._refused)]

    @property
    def attempts(self) -> list[Attempt]:
        """Theirs."""
        return [item.attempt for item in (*self._waiting, *self._writing, *self._refused)]

    @property
    def unsettled(self) -> int:
        """How many."""
        return len(self._waiting) + len(self._writing) + len(self._refused)

    @property
    def refused(self) -> list[Attempt]:
        """Attempts whose end PostgreSQL has refused to store so far."""
        return [item.attempt for item in self._refused]

    def add(self, item: Settlement) -> None:
        self._waiting.append(item)
        self._arrived.set()
        self._empty.clear()
        if len(self._waiting) >= _ENOUGH:
            self._enough.set()

    def note(self, attempt: Attempt, end: Completed | Lost, seconds: float) -> None:
        """What a job's own transaction has settled is counted and told as the rest; nothing is left to write."""
        if isinstance(end, Lost):
            self._lost(attempt)
        else:
            item = Settlement(attempt, ToComplete(end.result), seconds)
            count(item, self.counts)
            tell(item, self._events)
            if self.lines:
                self._silent.append(attempt.claim.id)
            if self._awaited():
                self._to_answer.append(attempt.claim.id)
            if self.lines or self._to_answer:
                self._arrived.set()
                self._empty.clear()
        self._written(1)

    def hurry(self) -> None:
        """Nothing more is about to end: what waits is written now."""
        self._enough.set()

    async def flushed(self) -> None:
        """Returns when everything added so far has been written, or was refused."""
        await self._empty.wait()

    async def run(self) -> None:
        """Writes what arrives, for ever. While the database is away it keeps what it has and tries again."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            # One turn of the loop lets a burst of outcomes become one write.
            await asyncio.sleep(0)
            self._enough.clear()
            if self._busy() and len(self._waiting) < _ENOUGH:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER):
                        await self._enough.wait()
            self._writing, self._waiting = self._waiting, []
            silent, self._silent = self._silent, []
            if self.marks:
                marks = self.marks.take(self.held)
                again = partial(self.marks.restore, marks, asyncio.get_running_loop())
                if marks:
                    await self._write_said("progress", partial(write_marks, self._sql, self._worker_id, marks), again)
            if self.lines:
                lines = self.lines.take([*self.held, *silent])
                again = partial(self.lines.restore, lines, asyncio.get_running_loop())
                if lines:
                    await self._write_said("log", partial(write_lines, self._sql, self._worker_id, lines), again)
            batches: dict[type, list[Settlement]] = {}
            for item in self._writing:
                batches.setdefault(type(item.verdict), []).append(item)
            for kind, write in _WRITES.items():
                if kind in batches:
                    batch = batches.pop(kind)
                    await self._write(batch, write)
                    self._written(0 if kind in (ToGiveBack, ToHinder) else len(batch))  # they were not worked off
                    self._writing = [item for left in batches.values() for item in left]
            if self._to_answer:
                await self._answer()
            if not self._waiting and not self._silent and not self._to_answer:
                self._empty.set()

    async def _answer(self) -> None:
        """Whoever waits for what has ended looks now. They look by themselves, too: nothing is made up for here."""
        ids, self._to_answer = self._to_answer, []
        with suppress(psycopg.Error):
            await self._link.perform(db.answer(self._sql, ids))

    async def _write_said(self, what: str, write: Callable[[], Steps[None]], again: Callable[[], None]) -> None:
        """What jobs say of themselves, before it is written how they ended. A table that somebody locks holds up no
        settle. again: keeps what was not written for the next time."""
        tries = 0
        while True:
            try:
                return await self._link.perform(write())
            except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
                return again()
            except INFRASTRUCTURE as error:
                tries += 1
                await self._link.pause(tries, error)
            except psycopg.Error as error:
                refused = f"PostgreSQL refused what jobs say {_OF[what]} (%s)"
                return log.warning(refused, type(error).__name__, extra={"event": f"{what}_refused"})

    async def _write(self, batch: list[Settlement], write: Write) -> None:
        tries, looked_for_partitions = 0, False
        unknown: set[int] = set()
        asked: dict[int, str] = {}
        while True:
            try:
                done = await self._link.perform(write(self._sql, self._worker_id, batch))
                # First this: what was passed by is ours still, and `settled` takes all we asked about for done.
                if len(done) < len(batch) and isinstance(batch[0].verdict, _PASSES_BY):
                    left = _claims(_without(batch, done))
                    ended = db.cancel_asked(self._sql, self._worker_id, *left, again=tries > 0)
                    asked |= {job.id: job.why or "" for job in await self._link.perform(ended)}
                if tries:
                    before = await self._done_before(_without(batch, done | asked.keys()))
                    done |= {job for job, certain in before.items() if certain}
                    unknown = before.keys() - done
            except psycopg.errors.ProgramLimitExceeded as error:  # an OperationalError that no repeating cures
                await self._one_by_one(batch, write, error)
                return
            except INFRASTRUCTURE as error:
                tries += 1
                await self._link.pause(tries, error)
            except psycopg.errors.CheckViolation as error:
                # No partition for today: every worker was away for a week, and the first chore is not done yet.
                if looked_for_partitions:
                    await self._one_by_one(batch, write, error)
                    return
                looked_for_partitions = True
                await self._link.insist(partial(db.prune, self._sql, PARTITIONS_AHEAD, KEEP))
            except psycopg.Error as error:
                await self._one_by_one(batch, write, error)
                return
            else:
                break
        if isinstance(batch[0].verdict, ToRetry | ToGiveBack | ToHinder):
            # They may come due before the claimer meant to look again.
            self._given_back([item.attempt.claim for item in batch if item.verdict == ToGiveBack(None)])
        crowd = len(batch) > _CROWD and type(batch[0].verdict) is ToComplete
        quiet = crowd and not self._events.wanted("completed") and not log.isEnabledFor(logging.DEBUG)
        if isinstance(batch[0].verdict, _ENDS) and self._awaited():
            self._to_answer += done
        for item in batch if asked else ():
            if item.attempt.claim.id in asked:
                item.verdict = ToCancelled(asked[item.attempt.claim.id])
                done.add(item.attempt.claim.id)
        for item in batch:
            if item.attempt.claim.id in done:
                count(item, self.counts)
                if not quiet:  # else the sum below says all that anybody asked for
                    tell(item, self._events, among_many=crowd)
            elif item.attempt.claim.id in unknown:
                tell_unknown(item.attempt)
            else:
                self._lost(item.attempt)
        if crowd and log.isEnabledFor(logging.INFO):
            _sum_up([item for item in batch if item.attempt.claim.id in done])

    def _lost(self, attempt: Attempt) -> None:
        self.counts.claims_lost += 1
        tell_lost(attempt, self._events)

    async def _done_before(self, missing: list[Settlement]) -> dict[int, bool]:
        """Which of these an earlier write did, whose answer was lost with the connection; whether that is certain."""
        if not missing:
            return {}
        # What was to be given back leaves no trace; and if it was rescued instead, it has been given back as well.
        given_back = {item.attempt.claim.id: True for item in missing if isinstance(item.verdict, ToGiveBack)}
        ids = [item.attempt.claim.id for item in missing]
        fences = [item.attempt.claim.fence for item in missing]
        return await self._link.perform(db.settled(self._sql, self._worker_id, ids, fences)) | given_back

    async def _one_by_one(self, batch: list[Settlement], write: Write, error: psycopg.Error) -> None:
        """One verdict that PostgreSQL refuses must not hold up the others; a result it refuses is dropped."""
        if len(batch) > 1:
            for item in batch:
                await self._write([item], write)
            return
        item = batch[0]
        verdict = item.verdict
        if (
            isinstance(error, psycopg.DataError)
            and isinstance(verdict, ToComplete)
            and verdict.result is not None
            and item.whole is None
        ):
            item.whole = verdict
            marker = {"$pgqueue": "result dropped", "bytes": len(verdict.result), "why": type(error).__name__}
            item.verdict = ToComplete(result_json(marker))
            tell_refused(item, error, "its result is dropped")
            await self._write([item], write)
            return
        # Not its own fault: a trigger, a constraint, a right that is gone. It stays ours, since running it again would
        # end here as well, until whoever can has helped, or we end.
        item.verdict, item.whole = item.whole or verdict, None
        pause = min(_REFUSED[0] * 2.0 ** min(item.refusals, 10), _REFUSED[1])
        item.refusals += 1
        tell_refused(item, error, f"trying again in {pause:g} s")
        self._refused.append(item)
        asyncio.get_running_loop().call_later(pause, self._once_more, item)

    def _once_more(self, item: Settlement) -> None:
        self._refused.remove(item)
        self.add(item)


Write = Callable[[Statements, UUID, list[Settlement]], Steps[set[int]]]


def _without(batch: list[Settlement], ids: Set[int]) -> list[Settlement]:
    return [item for item in batch if item.attempt.claim.id not in ids]


def _claims(batch: list[Settlement]) -> tuple[list[int], list[int]]:
    return [item.attempt.claim.id for item in batch], [item.attempt.claim.fence for item in batch]


def _complete(sql: Statements, worker_id: UUID, batch: list[Settlement]) -> Steps[set[int]]:
    kept = [item.attempt.task.retention.keeps_finished for item in batch]
    results = [item.verdict.result if item.attempt.task.keep_result else None for item in batch]  # type: ignore[union-attr]
    return db.complete(sql, worker_id, *_claims(batch), results, kept=kept)


def complete_one(sql: Statements, worker_id: UUID, attempt: Attempt, result: str | None) -> Steps[set[int]]:
    """The same write for a job that completes in a transaction of its own."""
    return _complete(sql, worker_id, [Settlement(attempt, ToComplete(result), 0.0)])


def _retry(sql: Statements, worker_id: UUID, batch: list[Settlement]) -> Steps[set[int]]:
    errors, tracebacks = _each(batch, "error"), _each(batch, "traceback")
    return db.retry(sql, worker_id, *_claims(batch), _each(batch, "delay"), errors, tracebacks)


def _give_back(sql: Statements, worker_id: UUID, batch: list[Settlement]) -> Steps[set[int]]:
    return db.give_back(sql, worker_id, *_claims(batch), _each(batch, "delay"))


def _crash(sql: Statements, worker_id: UUID, batch: list[Settlement]) -> Steps[set[int]]:
    return db.crash(sql, worker_id, *_claims(batch), _each(batch, "error"))


def _hinder(sql: Statements, worker_id: UUID, batch: list[Settlement]) -> Steps[set[int]]:
    """Those that have been given back so often already fail instead; repeated, it goes on where it was."""
    hindered = [item for item in batch if type(item.verdict) is ToHinder]
    answer: dict[int, bool] = {}
    if hindered:
        errors, tracebacks = _each(hindered, "error"), _each(hindered, "traceback")
        claims, delays = _claims(hindered), _each(hindered, "delay")
        most, longest = MAX_HINDERED, HINDERED_DELAY[1]
        answer = yield from db.hinder(sql, worker_id, *claims, delays, errors, tracebacks, most=most, longest=longest)
    for item in hindered:
        if answer.get(item.attempt.claim.id) is False:
            assert isinstance(item.verdict, ToHinder)
            item.verdict = item.verdict.otherwise
    done = {job for job, given_back in answer.items() if given_back}
    for kind, write in ((ToRetry, _retry), (ToDead, _dead_letter)):
        if failed := [item for item in batch if type(item.verdict) is kind]:
            done |= yield from write(sql, worker_id, failed)
    return done


def _dead_letter(sql: Statements, worker_id: UUID, batch: list[Settlement]) -> Steps[set[int]]:
    errors, tracebacks = _each(batch, "error"), _each(batch, "traceback")
    return db.dead_letter(sql, worker_id, *_claims(batch), _each(batch, "reason"), errors, tracebacks)


def _cancel(sql: Statements, worker_id: UUID, batch: list[Settlement]) -> Steps[set[int]]:
    return db.cancel_running(sql, worker_id, *_claims(batch), _each(batch, "why"))


def _each(batch: list[Settlement], name: str) -> list[Any]:
    return [getattr(item.verdict, name) for item in batch]


_WRITES: dict[type, Write] = {
    ToComplete: _complete,
    ToRetry: _retry,
    ToDead: _dead_letter,
    ToGiveBack: _give_back,
    ToCrashed: _crash,
    ToHinder: _hinder,
    ToCancelled: _cancel,
}


_OF = {"progress": "of their progress", "log": "in their logs"}

# With which a job has ended.
_ENDS = (ToComplete, ToDead, ToCancelled)
# What passes a job by that was asked to end before we knew.
_PASSES_BY = (ToRetry, ToDead, ToGiveBack, ToCrashed, ToHinder)


def count(item: Settlement, counts: Counts) -> None:
    """Adds a written verdict to the counters."""
    claim = item.attempt.claim
    key = (claim.queue, claim.task)
    if item.started:
        counts.ended(key, claim.started_at - claim.run_at, item.seconds)
    if type(item.verdict) is ToComplete:
        counts.completed[key] += 1
        return
    match item.verdict:
        case ToRetry():
            counts.failed[key] += 1
            counts.retried[key] += 1
        case ToDead():
            counts.failed[key] += 1
            counts.dead_lettered[key] += 1
        case ToCancelled():
            counts.cancelled[key] += 1
        case ToCrashed():
            counts.rescued[key] += 1


def tell(item: Settlement, events: Events, *, among_many: bool = False) -> None:
    """Logs a written verdict and calls the handlers of its events. among_many: the log is to sum it up."""
    attempt, verdict = item.attempt, item.verdict
    if type(verdict) is ToComplete:  # the common case, and on the hot path nothing is built for nobody
        level = logging.DEBUG if among_many else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "completed", extra={"event": "job_completed", **_fields(item)})
        _emit(events, "completed", attempt)
        return
    fields = _fields(item)
    match verdict:
        case ToRetry(delay, error, traceback):
            log.warning(
                "attempt failed, runs again in %.1f s",
                delay,
                extra={
                    "event": "job_retried",
                    **fields,
                    "delay": round(delay, 3),
                    "error": kind_of(error),
                    "max_attempts": attempt.claim.max_attempts,
                },
            )
            raised = {"exception": item.exception, "traceback": traceback}
            _emit(events, "failed", attempt, error, **raised)
            _emit(events, "retried", attempt, error, delay=delay, **raised)
        case ToDead(reason, error, traceback):
            log.error(
                "moved to the dead-letter table",
                extra={"event": "job_dead_lettered", **fields, "reason": reason.value, "error": kind_of(error)},
            )
            raised = {"exception": item.exception, "traceback": traceback, "reason": reason}
            _emit(events, "failed", attempt, error, **raised)
            _emit(events, "dead_lettered", attempt, error, **raised)
        case ToGiveBack(None):
            log.info("released", extra={"event": "job_released", **fields})
            _emit(events, "released", attempt)
        case ToGiveBack(delay):
            log.info("snoozed", extra={"event": "job_snoozed", **fields, "delay": delay})
            _emit(events, "snoozed", attempt, delay=delay)
        case ToCrashed(error):
            log.error("%s: it runs again, alone", error, extra={"event": "job_crashed", **fields})
            _emit(events, "rescued", attempt, error)
        case ToHinder(_, error, _):
            log.warning(
                "its run was ended by the database or the machine, not by the job: given back, no attempt used",
                extra={"event": "job_hindered", **fields, "error": kind_of(error)},
            )
            _emit(events, "released", attempt, error)
        case ToCancelled(why):
            log.info("cancelled", extra={"event": "job_cancelled", **fields})
            _emit(events, "cancelled", attempt, why)


def _fields(item: Settlement) -> dict[str, Any]:
    return {**item.attempt.log_fields, "seconds": round(item.seconds, 3)}


def _sum_up(batch: list[Settlement]) -> None:
    seconds: dict[str, list[float]] = {}
    for item in batch:
        seconds.setdefault(item.attempt.claim.task, []).append(item.seconds)
    for task, each in seconds.items():
        longest = round(max(each), 3)
        log.info("completed %d jobs", len(each), extra={"event": "jobs_completed", "task": task, "seconds": longest})


def kind_of(error: str) -> str:
    """The error's class, for a log line: its message may hold what must not be logged."""
    return error.partition(":")[0] if error.partition(":")[0].replace(".", "").isidentifier() else "Error"


def tell_lost(attempt: Attempt, events: Events) -> None:
    """The job was taken from us while it ran: its result is dropped, and nobody may think otherwise."""
    log.error(
        "claim lost: the job was rescued or cancelled while this run went on; its result is dropped",
        extra={"event": "claim_lost", **attempt.log_fields, "fence": attempt.claim.fence},
    )
    _emit(events, "claim_lost", attempt)


def tell_refused(item: Settlement, error: psycopg.Error, then: str) -> None:
    """PostgreSQL is there and does not take it."""
    log.error(
        "PostgreSQL refused to settle this job (%s); %s",
        type(error).__name__,
        then,
        extra={"event": "settle_refused", **item.attempt.log_fields},
    )


def tell_unknown(attempt: Attempt) -> None:
    """The answer to its settle was lost, then the lease ended, and now the job is nowhere: it ended, and was not kept.
    Whether by this run or by another nobody can tell: no event, no count, and no word of a loss."""
    log.warning(
        "this job has ended, by this run or, after a rescue, by another: the answer to its settle was lost",
        extra={"event": "settle_unknown", **attempt.log_fields, "fence": attempt.claim.fence},
    )


def _emit(events: Events, name: str, attempt: Attempt, error: str | None = None, **more: Any) -> None:
    if events.wanted(name):
        job = replace(attempt.job, state=_STATES.get(name, State.QUEUED), error=error)
        events.emit(Event(name, job, error, **more))


# What a handler finds in event.job.state; after every other event the job is queued again.
_STATES = {
    "completed": State.COMPLETED,
    "dead_lettered": State.DEAD,
    "cancelled": State.CANCELLED,
    "failed": State.RUNNING,
    "claim_lost": State.RUNNING,
}
