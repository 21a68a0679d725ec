"""Step 3 of a job's life, run: one attempt under its timeout. Ends in an Outcome, never raises.

Before: claim.py. After: settle.py. An `async def` task runs on the loop, a `def` task in a thread. Only the loop's own
end (Stopping) cancels an attempt from outside; a CancelledError of the job's own making is a failure like any other.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import threading
import time
import types
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pgqueue import logs
from pgqueue.context import Context, JobLogger, KeptLogger
from pgqueue.errors import Cancel, Steer, TaskTimeout, TransactionRefused
from pgqueue.failure import describe, trace
from pgqueue.worker.claim import Attempt
from pgqueue.worker.coroutines import Coroutines
from pgqueue.worker.threads import Threads
from pgqueue.worker.transaction import Fenced

log = logging.getLogger("pgqueue")

_HEED = 1.0  # seconds that a cancelled attempt gets to end before it is said to swallow its cancellation


@dataclass(frozen=True, slots=True)
class Succeeded:
    result: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """error is for the policy to look at; text and traceback are what is stored. here: it is the error itself, and not
    one made in the likeness of what another process has raised."""

    error: BaseException
    text: str
    traceback: str | None = field(default=None, repr=False)
    timed_out: bool = False
    here: bool = True


@dataclass(frozen=True, slots=True)
class Steered:
    """The job itself said how it ends."""

    steer: Steer


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The stored row could not be read; running it again would not help."""

    text: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The worker stops, and this attempt with it: no attempt is used."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Its own transaction has completed it: nothing is left to write. result: as JSON."""

    result: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """Its own transaction found the claim lost, and was rolled back: nothing may be written."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A result that is JSON already: it comes from another process."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process that it had to itself has died under it, as often as `crashes` says; text: how."""

    text: str
    crashes: int


@dataclass(frozen=True, slots=True)
class Hindered:
    """What it needs was taken from it, by no doing of its own: the database under its transaction, a process to run in.
    No attempt is used; failure: what it is if that goes on and on."""

    failure: Failed


SUCCEEDED = Succeeded()  # with nothing to keep: made once, since frozen ones are dear (0.3 µs each)

Outcome = Succeeded | Failed | Steered | Unreadable | Interrupted | Crashed | Hindered
End = Outcome | Completed | Lost


def raised(outcome: Outcome, attempt: Attempt) -> BaseException | None:
    """What was raised here and ended the attempt, for whoever wants more than its text; None if nothing was."""
    match outcome:
        case Failed(error=error, here=True):
            return error
        case Hindered(failure):
            return raised(failure, attempt)
        case Steered(steer):
            return steer
        case Unreadable():
            return attempt.unreadable
    return None


@dataclass(frozen=True, slots=True)
class Stage:
    """What the runs of one worker share. ended: called once for each, with its Outcome. fence: makes what gives a job
    its own transaction, if it takes a Context."""

    threads: Threads
    coroutines: Coroutines
    ended: Callable[[Run, End], None]
    fence: Callable[[Attempt, threading.Event], Fenced]


class Run:
    """One attempt under way; it ends in an Outcome. `interrupt` ends it for a stopping worker.

    What most jobs have not got stands in the class: to set it for each is a tenth of what a no-op job takes.
    """

    began = 0.0  # monotonic seconds
    _fenced: Fenced | None = None
    _context: Context | None = None
    _cancelled: str | None = None  # why it was asked to end
    _interrupted = False
    _timed_out = False
    _body: asyncio.Future[Any] | None = None  # an async attempt has none until it waits for something
    _timer: asyncio.TimerHandle | None = None
    _hard: asyncio.TimerHandle | None = None

    def __init__(self, attempt: Attempt, stage: Stage) -> None:
        self.attempt = attempt
        self._stage = stage

    def start(self) -> None:
        """Starts it, an async one in a moment; never raises."""
        attempt = self.attempt
        self.began = time.monotonic()
        if attempt.unreadable is not None:
            # Not at once: its slot would go to the next one from within, and a thousand bad rows are a deep recursion.
            asyncio.get_running_loop().call_soon(self._stage.ended, self, Unreadable(str(attempt.unreadable)))
            return
        task = attempt.task
        parameter = task.takes
        if parameter is not None:
            self._context = Context(attempt.job, JobLogger(log, attempt.log_fields), task.state)
            self._fenced = self._context._own = self._stage.fence(attempt, self._context._stop)
            if task.keep_log:
                self._context.log = KeptLogger(log, attempt.log_fields, self._fenced.keeper().keep)
            attempt.arguments = {**attempt.arguments, parameter: self._context}
        if task.is_async:
            self._stage.coroutines.start(self)
        else:
            token = logs.running.set(attempt) if logs.names_jobs else None  # for what it calls
            self._body = self._stage.threads.submit(partial(task.body, **attempt.arguments))
            if token is not None:
                logs.running.reset(token)
            self._body.add_done_callback(self._done)
            self._time()

    def begin(self) -> Coroutine[Any, Any, Any] | None:
        """Of an async attempt: its coroutine, which may have been called off meanwhile."""
        self.began = time.monotonic()
        try:
            if self._cancelled is None and not self._interrupted:
                body = self.attempt.task.body(**self.attempt.arguments)
                return body if type(body) is types.CoroutineType else _awaited(body)
            error: BaseException = asyncio.CancelledError()
        except BaseException as caught:
            error = caught
        self.ends(None, error)
        return None

    def waits(self, task: asyncio.Task[Any]) -> None:
        """The asyncio task in which it goes on; so much of its time is over."""
        self._body = task
        self._time()

    def _time(self) -> None:
        loop = asyncio.get_running_loop()
        timeout, hard = self.attempt.timeout, self.attempt.task.hard_timeout
        if timeout is not None or hard is not None:
            gone = time.monotonic() - self.began
            if timeout is not None:
                self._timer = loop.call_later(timeout - gone, self._overrun)
            if hard is not None:
                self._hard = loop.call_later(hard - gone, self._overdue)

    def interrupt(self) -> None:
        """Cancels an async attempt; asks a sync one, by way of ctx.cancelled."""
        self._interrupted = True
        if self._context is not None:
            self._context._stop.set()
        if self._body is not None and self.attempt.task.is_async:
            self._body.cancel()

    def cancel(self, why: str) -> None:
        """Ends it because somebody asked for it: however it ends now, it is cancelled. Again: nothing more happens."""
        if self._cancelled is not None:
            return
        self._cancelled = why
        if self._context is not None:
            self._context._stop.set()
        if self._fenced is not None:
            self._fenced.cancelled = why
        if self._body is None:
            return
        if self.attempt.task.is_async:
            self._body.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_HEED, self._unheeded, "was asked to end")

    def _overrun(self) -> None:
        self._timed_out = True
        if self._context is not None:
            self._context._late = True
            self._context._stop.set()
        if self._fenced is not None:
            self._fenced.late = True
        assert self._body is not None
        if self.attempt.task.is_async:
            self._body.cancel()
            late = f"overran its timeout of {self.attempt.timeout:g} s"
            self._timer = asyncio.get_running_loop().call_later(_HEED, self._unheeded, late)
            return
        # A thread cannot be killed, and running the job again beside it would be running it twice.
        log.warning(
            "overran its timeout of %g s and keeps its thread until it returns",
            self.attempt.timeout,
            extra={"event": "job_stuck", **self.attempt.log_fields},
        )

    def _unheeded(self, what: str) -> None:
        does = "swallowed its cancellation" if self.attempt.task.is_async else "does not look at ctx.cancelled"
        log.warning(
            "%s, %s and keeps its slot until it returns",
            what,
            does,
            extra={"event": "job_stuck", **self.attempt.log_fields},
        )

    def _overdue(self) -> None:
        """Its hard timeout: here there is nothing left to do to it, but to ask whoever can for another process."""
        self._timed_out = True
        if self._context is not None:
            self._context._late = True
            self._context._stop.set()
        if self._fenced is not None:
            self._fenced.late = True
        if self.attempt.task.is_async and self._body is not None:
            self._body.cancel()
        self.attempt.overdue = True
        log.error(
            "is stuck: it ran longer than its hard_timeout of %g s and cannot be killed here; see run_in='process'",
            self.attempt.task.hard_timeout,
            extra={"event": "job_stuck", **self.attempt.log_fields},
        )

    def _done(self, body: asyncio.Future[Any]) -> None:
        """A thread has ended."""
        result, error = None, None
        try:
            result = body.result()
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()
                raise TypeError("the task returned something to be awaited: declare it with async def")
        except BaseException as caught:
            error = caught
        self.ends(result, error)

    def ends(self, result: Any, error: BaseException | None) -> None:
        """It returned this, or raised it."""
        if self._timer is not None:
            self._timer.cancel()
        if self._hard is not None:
            self._hard.cancel()
        try:
            outcome = self._outcome(result, error)
        except BaseException as broken:  # an error whose own parts raise when they are looked at
            outcome = Failed(broken, f"{type(broken).__name__} while its error was read")
        self._stage.ended(self, outcome)

    def _outcome(self, result: Any, error: BaseException | None) -> End:
        stage = "none" if self._fenced is None else self._fenced.over()
        if stage == "lost":
            return Lost()
        if stage == "completed":
            assert self._fenced is not None
            self._afterwards(result, error)
            return Completed(self._fenced.result)
        if self._cancelled is not None:  # whatever it returned or raised on the way out
            return Steered(Cancel(self._cancelled))
        if stage == "open" and error is None:
            error = TransactionRefused("the task ended while its ctx.transaction() was open: it is rolled back")
        if self._timed_out:  # whatever it did on the way out, it was late
            late = TaskTimeout(f"the attempt ran longer than its {self.attempt.limit}")
            return Failed(late, describe(late), None, timed_out=True)
        if error is None:
            return Succeeded(result) if result is not None else SUCCEEDED
        if isinstance(error, Steer):
            return Steered(error)
        if self._interrupted:
            return Interrupted()  # what a job raises when it is told to end is no failure of its own
        failure = Failed(error, describe(error), trace(error))
        hindrance = None if self._fenced is None else self._fenced.hindrance
        return failure if hindrance is None or not comes_of(error, hindrance) else Hindered(failure)

    def _afterwards(self, result: Any, error: BaseException | None) -> None:
        """Whatever a job does after its transaction, it is completed: said aloud, since nothing else comes of it."""
        fields = {"event": "after_completion", **self.attempt.log_fields}
        if error is not None and not self._interrupted:
            failure = {"error": describe(error), "traceback": trace(error)}
            log.error("failed after its own transaction had completed it", extra=fields | failure)
        elif result is not None:
            log.warning("its result is dropped: ctx.complete(result) inside the transaction keeps one", extra=fields)


async def _awaited(body: Any) -> Any:
    """For a decorator that gives something else to be awaited than a coroutine."""
    return await body


def comes_of(error: BaseException, cause: BaseException) -> bool:
    """Whether it is that one, was raised while that was handled, or is a group with such a one in it."""
    seen: dict[int, BaseException] = {}
    todo = [error]
    while todo:
        link = todo.pop()
        if link is cause:
            return True
        if id(link) not in seen:
            seen[id(link)] = link
            todo += [one for one in (link.__cause__, link.__context__) if one is not None]
            todo += link.exceptions if isinstance(link, BaseExceptionGroup) else ()
    return False


def death(code: int) -> str:
    """How a process ended: `was killed by SIGKILL`, `exited with code 3`."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"exited with code {code}"
