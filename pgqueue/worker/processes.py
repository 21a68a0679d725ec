"""Where the jobs of `run_in="process"` run: processes of one worker, each with one job at a time, kept for the next.

For what computes and would hold the GIL, and for what must be killable. They are spawned, not forked, and import what
they run by name, so the first start takes as long as the imports. When such a process dies, that is a crash of its job
and of no other. jobprocess.py is inside.

    timeout       the job is told: an async one by CancelledError, a sync one by ctx.cancelled; one that takes no
                  Context cannot be told, and is killed
    hard_timeout  it is killed; by default a while after it was told
    cancel        the same, told and killed, or killed at once
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pgqueue.db import Claim
from pgqueue.errors import Cancel, DeadLetter, RetryLater, Snooze, Steer, TaskTimeout
from pgqueue.settings import MAX_ARGS_BYTES
from pgqueue.task import Task
from pgqueue.worker.claim import Attempt
from pgqueue.worker.lifespan import Lifespans
from pgqueue.worker.lines import Line, Lines
from pgqueue.worker.progress import Mark, Marks
from pgqueue.worker.run import (
    Completed,
    Crashed,
    Encoded,
    End,
    Failed,
    Hindered,
    Interrupted,
    Lost,
    Steered,
    Succeeded,
    Unreadable,
    death,
)

log = logging.getLogger("pgqueue")

LONGEST_LINE = 64 * MAX_ARGS_BYTES  # bytes; escaped JSON of arguments, results and tracebacks
_IDLE = os.cpu_count() or 1  # processes that are kept for jobs to come
_START = 60.0  # seconds that a process gets to import its tasks
_AFTER_TOLD = 5.0  # seconds that a job gets which was told to end
_AT_A_STOP = 0.5  # seconds that it gets when its worker stops, and its grace period is over
_LAST_WORDS = 1.0  # seconds that an idle process gets to close its lifespans
_AT_ONCE = 0.2  # seconds that it gets to end after that


class Process:
    """One of them."""

    def __init__(
        self, popen: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.popen = popen
        self.fresh = True  # no job has ever begun in it
        self._reader = reader
        self._writer = writer

    def send(self, **message: Any) -> None:
        """Never raises: whether it is there is seen by what it answers."""
        with suppress(OSError, RuntimeError):
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        """The next message; an empty one when it has died. A line of a job that writes where it should not is none."""
        while True:
            try:
                line = await self._reader.readline()
            except (OSError, ValueError):  # a line without an end
                return {}
            if not line:
                return {}
            with suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict) and message:
                    return message

    def kill(self) -> None:
        """Ends it and, where the system says which they are, the processes that its job has started."""
        found = _descendants(self.popen.pid)
        self.popen.kill()
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    async def ended(self) -> int:
        """Its exit code, once it is there; closes the channel."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        return await asyncio.to_thread(self.popen.wait)

    async def end(self) -> None:
        """Ends it when no job is in it, once its lifespans are closed; they may say something in the log."""
        with suppress(OSError, RuntimeError):
            self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                while message := await self.hear():
                    _log(message)
        try:
            await asyncio.to_thread(self.popen.wait, _AT_ONCE)
        except subprocess.TimeoutExpired:
            self.kill()
        await self.ended()


class Processes:
    """The processes of one worker, started as jobs need them; as many as run at once, and a few that wait."""

    def __init__(
        self, *, conninfo: str, schema: str, lease: float, patience: float, marks: Marks, lines: Lines
    ) -> None:
        """marks: takes what jobs say of their progress; lines: in their logs."""
        self.marks = marks
        self.lines = lines
        self._setup = {"conninfo": conninfo, "schema": schema, "lease": lease, "patience": patience}
        self._idle: list[Process] = []
        self._busy: set[Process] = set()
        self._apps: dict[int, list[str] | None] = {}  # by id(): where another process finds them

    async def take(self) -> Process:
        """One without a job. Raises OSError when the machine has none to give."""
        while self._idle:
            process = self._idle.pop()
            if process.popen.poll() is None:
                break
            await process.end()  # it died at rest
        else:
            process = await self._start()
        self._busy.add(process)
        return process

    def give_back(self, process: Process) -> None:
        """It has no job any more."""
        self._busy.discard(process)
        self._idle.append(process)

    async def bury(self, process: Process) -> int:
        """It is dead, or about to be: its exit code."""
        self._busy.discard(process)
        return await process.ended()

    def app_of(self, task: Task[..., Any]) -> list[str] | None:
        """[module, name] of the global that holds the task's app; None where there is none."""
        home = task._home
        if id(home) not in self._apps:
            self._apps[id(home)] = _global(home)
        return self._apps[id(home)]

    async def trim(self) -> None:
        """Ends those that nobody will need soon."""
        while len(self._idle) > _IDLE:
            await self._idle.pop(0).end()

    async def close(self) -> None:
        """Ends all of them, at once."""
        for process in self._busy:
            process.kill()
        await asyncio.gather(*(process.end() for process in [*self._idle, *self._busy]))
        self._idle.clear()
        self._busy.clear()

    async def _start(self) -> Process:
        ours, theirs = socket.socketpair()
        try:
            # By the thread of the loop: on Linux it dies with the thread that has started it.
            popen = subprocess.Popen(  # noqa: S603, ASYNC220  our own interpreter and module; 5 ms
                [sys.executable, "-m", "pgqueue.worker.jobprocess", str(os.getpid()), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LONGEST_LINE)
        process = Process(popen, reader, writer)
        main = getattr(sys.modules["__main__"], "__file__", None)
        level = logging.getLogger().getEffectiveLevel()
        process.send(setup={**self._setup, "path": _path(), "main": main, "level": level})
        return process


class ProcessRun:
    """One attempt in a process: `ended` is called once, with its Outcome. As run.Run, seen from outside."""

    __slots__ = (
        "_cancelled",
        "_ended",
        "_interrupted",
        "_killed",
        "_process",
        "_processes",
        "_started",
        "_task",
        "_timer",
        "attempt",
        "began",
    )

    def __init__(self, attempt: Attempt, processes: Processes, ended: Callable[[ProcessRun, End], None]) -> None:
        self.attempt = attempt
        self._processes = processes
        self._ended = ended
        self._process: Process | None = None
        self._started = False
        self._killed: str | None = None  # why we killed it
        self._cancelled: str | None = None
        self._interrupted = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.began = 0.0

    def start(self) -> None:
        """Starts it; never raises."""
        self.began = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._go())

    def interrupt(self) -> None:
        """Tells it that its worker stops, and kills it a moment later."""
        self._interrupted = True
        self._tell("its worker stops", _AT_A_STOP, interrupt=True)

    def cancel(self, why: str) -> None:
        """Ends it because somebody asked for it: however it ends now, it is cancelled. Again: nothing more happens."""
        if self._cancelled is None:
            self._cancelled = why
            self._tell("it was cancelled", _AFTER_TOLD if self._can_be_told else 0.0, cancel=why)

    @property
    def _can_be_told(self) -> bool:
        task = self.attempt.task
        return task.is_async or task.signature.context_parameter is not None

    def _tell(self, why: str, seconds: float, **message: Any) -> None:
        if self._process is not None and self._started:
            self._process.send(**message)
            self._kill_in(seconds, why)

    def _kill_in(self, seconds: float, why: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._kill, why)

    def _kill(self, why: str) -> None:
        self._killed = why
        if self._process is not None:
            log.warning("killed: %s", why, extra={"event": "job_killed", **self.attempt.log_fields})
            self._process.kill()

    async def _go(self) -> None:
        try:
            outcome = await self._outcome()
        except asyncio.CancelledError:  # the worker itself breaks
            raise
        except Exception as error:
            log.exception("running a job in a process: this should not happen", extra=self.attempt.log_fields)
            outcome = Failed(error, f"{type(error).__name__} around its process")
        finally:
            if self._timer is not None:
                self._timer.cancel()
        self._ended(self, outcome)
        await self._processes.trim()

    async def _outcome(self) -> End:
        if self.attempt.unreadable is not None:
            return Unreadable(str(self.attempt.unreadable))
        while True:
            try:
                process = self._process = await self._processes.take()
            except OSError as error:
                log.error("cannot start a process for a job: %s", error.strerror, extra=self.attempt.log_fields)
                await asyncio.sleep(1.0)
                if self._cancelled is None and not self._interrupted:
                    continue
                return self._told_to_end()
            if self._cancelled is not None or self._interrupted:
                self._processes.give_back(process)
                return self._told_to_end()
            process.send(run=self._message())
            self._kill_in(_START, f"it did not start within {_START:g} s")
            end = await self._until_ended(process)
            if end is not None:
                return end

    def _told_to_end(self) -> End:
        return Interrupted() if self._cancelled is None else Steered(Cancel(self._cancelled))

    def _message(self) -> dict[str, Any]:
        attempt, task, function = self.attempt, self.attempt.task, self.attempt.task.function
        lifespans = getattr(task._home, "lifespans", None)
        wants = {
            "middleware of its own": task.middleware,
            "middleware": task._home.around,
            "lifespans": isinstance(lifespans, Lifespans) and lifespans.functions,
        }
        return {
            "task": task.name,
            "module": function.__module__,
            "function": function.__qualname__,
            "app": self._processes.app_of(task),
            "wants": [what for what, given in wants.items() if given],
            "claim": list(attempt.claim),
            "worker_id": str(attempt.worker_id),
            "soft": attempt.timeout if self._can_be_told else None,
            "keep_log": task.keep_log,
        }

    async def _until_ended(self, process: Process) -> End | None:
        """None when it died at rest, before the job began: another one is to be taken. A new one that dies so early
        dies of what it imports, and the next would, too."""
        while message := await process.hear():
            match message:
                case {"log": _}:
                    _log(message)
                case {"progress": [float(fraction), note, int(said)]}:
                    claim = self.attempt.claim
                    mark = Mark(claim.id, claim.fence, fraction, note, said, Taken(process, claim))
                    self._processes.marks.put(mark, asyncio.get_running_loop())
                case {"lines": [*found]}:
                    for one in found:
                        self._keep(one)
                case {"started": True}:
                    self._begun()
                case {"ended": kind}:
                    self._processes.give_back(process)
                    return self._as_outcome(kind, message)
        code = await self._processes.bury(process)
        self._process = None
        if self._cancelled is not None or (self._interrupted and self._killed is not None):
            return self._told_to_end()
        if self._killed is None and not self._started and not process.fresh:
            return None
        if self._killed is None:
            when = "" if self._started else " before the job began"
            return Crashed(f"its process {death(code)}{when}", self.attempt.claim.crashes + 1)
        late = Killed(f"killed: {self._killed}")
        failure = Failed(late, f"pgqueue.errors.TaskTimeout: {late}", None, timed_out=True)
        # Killed before it began, it is a machine that is too slow, or its imports are: no word of the job's own yet.
        return failure if self._started else Hindered(failure)

    def _keep(self, line: object) -> None:
        claim = self.attempt.claim
        match line:
            case [int(number), int(said), str(level), str(text)]:
                made = Line(claim.id, claim.fence, number, said, level, text)
                self._processes.lines.put(made, asyncio.get_running_loop())

    def _begun(self) -> None:
        self._started = True
        if self._process is not None:
            self._process.fresh = False
        self.began = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
        if self._cancelled is not None:
            self._tell("it was cancelled", _AFTER_TOLD if self._can_be_told else 0.0, cancel=self._cancelled)
        elif self._interrupted:
            self._tell("its worker stops", _AT_A_STOP, interrupt=True)
        else:
            soft, hard = self.attempt.timeout, self.attempt.task.hard_timeout
            if hard is not None and (soft is None or hard > soft):
                self._kill_in(hard, f"it ran longer than its hard_timeout of {hard:g} s")
            elif soft is not None:
                grace = _AFTER_TOLD if self._can_be_told else 0.0
                self._kill_in(soft + grace, f"it ran longer than its timeout of {soft:g} s")

    def _as_outcome(self, kind: str, message: dict[str, Any]) -> End:
        if kind == "completed":
            return Completed(message["result"])
        if kind == "lost":
            return Lost()
        if self._cancelled is not None:
            return Steered(Cancel(self._cancelled))
        match kind:
            case "succeeded":
                result = message["result"]
                return Succeeded(None if result is None else Encoded(result))
            case "failed":
                error = _raised([tuple(one) for one in message["kinds"]], message["text"])
                timed_out = bool(message.get("timed_out"))
                return Failed(error, message["text"], message["traceback"], timed_out, here=False)
            case "hindered":
                error = _raised([tuple(one) for one in message["kinds"]], message["text"])
                return Hindered(Failed(error, message["text"], message["traceback"], here=False))
            case "steered":
                return Steered(_steer(message["steer"], message["why"], message["delay"]))
            case "unreadable":
                return Unreadable(message["text"])
        return Interrupted()


def _steer(kind: str, why: str, delay: float | None) -> Steer:
    if kind == "Snooze":
        return Snooze(delay or 0.0)
    if kind == "RetryLater":
        return RetryLater(delay, why)
    return Cancel(why) if kind == "Cancel" else DeadLetter(why)


class Taken(threading.Event):
    """Set when the job that runs there was taken from this run: it is told, unless it has ended."""

    def __init__(self, process: Process, claim: Claim) -> None:
        super().__init__()
        self._process = process
        self._claim = claim

    def set(self) -> None:
        super().set()
        self._process.send(lost=[self._claim.id, self._claim.fence])


class Killed(TaskTimeout):
    """Its process was killed: nothing of what ran around the job there has ended."""


class RemoteError(Exception):
    """An error of a class that cannot be imported here; its text says which it was."""


def _raised(kinds: list[tuple[str, str]], text: str) -> BaseException:
    """An error for the policy to look at: of the job's own class, or of the first of its bases that can be imported."""
    for module, name in kinds:
        found: Any = None
        with suppress(Exception):
            found = sys.modules.get(module) or importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        if isinstance(found, type) and issubclass(found, BaseException) and found not in (Exception, BaseException):
            with suppress(Exception):
                error: BaseException = found.__new__(found)  # its own __init__ may want anything
                error.args = (text.partition(": ")[2] or text,)
                return error
    return RemoteError(text)


def _log(message: dict[str, Any]) -> None:
    """What was logged there goes where the worker's own lines go."""
    match message:
        case {"log": {"name": name, "level": level, "text": text, "extra": extra}}:
            logger = logging.getLogger(name)
            if logger.isEnabledFor(level):
                logger.handle(logger.makeRecord(name, level, "(job)", 0, text, (), None, extra=extra))


def _global(wanted: object) -> list[str] | None:
    """[module, name] of a global that is this very object; one of __main__ last, since other modules import better."""
    modules = sorted(
        ((name, module) for name, module in sys.modules.items() if module), key=lambda one: one[0] == "__main__"
    )
    for name, module in modules:
        for inside, value in list(vars(module).items()):
            if value is wanted:
                return [name, inside]
    return None


def _path() -> list[str]:
    return [os.path.abspath(one) for one in sys.path]


def _descendants(pid: int) -> list[int]:
    """The processes below one, where there is a /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.parent.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found
