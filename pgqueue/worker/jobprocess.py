"""A process that runs the jobs of `run_in="process"`, one after the other, for the worker that started it.

It imports the modules of its tasks by name, as the worker did, and no more: it was spawned, not forked, so nothing of
the worker's is in it. A job runs in it as it would in a worker, by the same run.py, inside the same middleware; before
the first job of an app its lifespans are opened. What goes to and fro is JSON, a line each, never pickle. When the
worker is gone the channel closes, the lifespans are closed, and this ends.

    worker -> process   {"setup": {path, main, conninfo, schema, lease, patience, level}} · {"run": {task, module,
                        function, app, wants, claim, worker_id, soft, keep_log}} · {"cancel": why} ·
                        {"interrupt": true} · {"lost": [id, fence]}
    process -> worker   {"started": true} · {"log": {...}} · {"progress": [fraction, note, said]} ·
                        {"lines": [[n, said, level, text], ...]} · {"ended": kind, ...}
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import logging
import os
import random
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any
from uuid import UUID

from pgqueue import logs
from pgqueue.arguments import result_json
from pgqueue.context import AppState
from pgqueue.db import Claim
from pgqueue.enqueue import Sender
from pgqueue.errors import Cancel, DeadLetter, InvalidTask, LifespanFailed, RetryLater, Snooze, Steer
from pgqueue.failure import describe, trace
from pgqueue.hooks import Hook
from pgqueue.middleware import Middleware
from pgqueue.retention import Retention
from pgqueue.sql import Statements, statements
from pgqueue.task import Task, make
from pgqueue.worker.claim import attempt
from pgqueue.worker.coroutines import Coroutines
from pgqueue.worker.lifespan import Held, Lifespans
from pgqueue.worker.lines import Lines
from pgqueue.worker.processes import LONGEST_LINE
from pgqueue.worker.progress import Marks
from pgqueue.worker.run import (
    Completed,
    End,
    Failed,
    Hindered,
    Interrupted,
    Lost,
    Run,
    Stage,
    Steered,
    Succeeded,
    Unreadable,
)
from pgqueue.worker.settle import complete_one
from pgqueue.worker.supervisor import die_with_parent
from pgqueue.worker.threads import Threads
from pgqueue.worker.transaction import Connections, Fenced

_CLOSE = 0.8  # seconds that lifespans get to close; the worker waits a moment longer
_STEERS: tuple[type[Steer], ...] = (Snooze, RetryLater, Cancel, DeadLetter)
# What a line of the log carries beside its message, if JSON can hold it.
_PLAIN = (str, int, float, bool, type(None))


def main(parent: int, descriptor: int) -> None:
    """Serves until the channel closes. parent: the worker's process id. One that has died while we were starting has
    left a job in the channel, and its lease has ended meanwhile."""
    die_with_parent(parent)
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: None)  # it is the worker that ends us
    asyncio.run(_serve(socket.socket(fileno=descriptor)))


async def _serve(channel: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=channel, limit=LONGEST_LINE)
    setup = json.loads(await reader.readline())["setup"]
    one_at_a_time = Jobs(setup, writer)
    while line := await reader.readline():
        message = json.loads(line)
        if "run" in message:
            await one_at_a_time.begin(**message["run"])
        elif one_at_a_time.run is None:
            continue  # it has just ended
        elif "cancel" in message:
            one_at_a_time.run.cancel(message["cancel"])
        elif "interrupt" in message:
            one_at_a_time.run.interrupt()
        elif "lost" in message:
            one_at_a_time.tell_lost(*message["lost"])
    await one_at_a_time.close()
    with suppress(OSError):
        await asyncio.sleep(0)  # the last lines of the log are on their way to the writer
        await writer.drain()
    os._exit(0)  # a thread that is stuck in a job must not keep us


class Jobs:
    """The job that runs here, if one does; and what those to come have in common."""

    def __init__(self, setup: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.run: Run | None = None
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._main: str | None = setup["main"]
        self._tasks: dict[str, Task[..., Any]] = {}
        self._held: dict[Lifespans, Held] = {}
        self._taken = False  # by a job
        self._ends = False  # a lifespan has ended by itself: no job more
        sys.path[:] = setup["path"]
        root = logging.getLogger()
        root.handlers[:] = [Forward(self)]
        root.setLevel(setup["level"])
        logs.name_jobs()  # here, since the worker's handlers are in no job
        self._sql = statements(setup["schema"])
        self._threads = Threads(1)
        self._coroutines = Coroutines()
        self._marks = Marks(self._report)
        self._lines = Lines(self._report_lines)
        self._connections = Connections(
            setup["conninfo"], most=1, lease=setup["lease"], patience=setup["patience"], uniform=random.random
        )

    def send(self, **message: Any) -> None:
        """From whatever thread."""
        line = json.dumps(message).encode() + b"\n"
        self._loop.call_soon_threadsafe(self._writer.write, line)

    async def begin(
        self,
        task: str,
        module: str,
        function: str,
        app: list[str] | None,
        wants: list[str],
        claim: list[Any],
        worker_id: str,
        soft: float | None,
        keep_log: bool,
    ) -> None:
        """Runs the job; its end is sent."""
        owner = UUID(worker_id)
        self._taken = True
        try:
            if task not in self._tasks:
                self._tasks[task] = await self._make(task, module, function, app, wants)
            if self._ends:
                raise LifespanFailed("a lifespan of its app has ended by itself")
        except BaseException as error:  # whatever an import may raise: the job has not started
            self.send(ended="failed", **_error(error, describe(error), trace(error)))
            self._rest()
            return
        self._tasks[task].keep_log = keep_log
        made = attempt(Claim(*claim)._replace(timeout=soft), self._tasks[task], owner)
        self._writer.write(b'{"started": true}\n')  # at once: the job may end the process before the loop's next turn
        complete = partial(complete_one, self._sql, owner)
        fence = partial(Fenced, self._sql, self._connections, complete, owner, self._marks, self._lines)
        self.run = Run(made, Stage(self._threads, self._coroutines, self._ended, fence))
        self.run.start()

    async def close(self) -> None:
        """Closes what the lifespans have opened; one that fails or hangs has been logged."""
        await asyncio.gather(*(held.close(_CLOSE) for held in self._held.values()), return_exceptions=True)

    async def _make(
        self, task: str, module: str, function: str, app: list[str] | None, wants: list[str]
    ) -> Task[..., Any]:
        """The task as it is in the worker, with its app's lifespans open; but its limits are the worker's business."""
        made = copy.copy(self._find(task, module, function, app, wants))
        made.timeout = made.hard_timeout = None
        lifespans = getattr(made._home, "lifespans", None)
        if isinstance(lifespans, Lifespans) and lifespans not in self._held:
            held = self._held[lifespans] = Held(lifespans)
            try:
                await held.open(self._end_soon)
            except BaseException:
                del self._held[lifespans]
                raise
        return made

    def _find(self, task: str, module: str, function: str, app: list[str] | None, wants: list[str]) -> Task[..., Any]:
        """The task itself, where its function's name leads to it or its app knows it; else one made of the function."""
        found: Any = _module(module, self._main)
        for part in function.split("."):
            found = getattr(found, part)
        if isinstance(found, Task) and found.name == task:
            return found
        plain = found.function if isinstance(found, Task) else found
        home: Any = _Nowhere() if app is None else getattr(_module(app[0], self._main), app[1])
        if (known := getattr(home, "tasks", {}).get(task)) is not None:
            return known  # type: ignore[no-any-return]
        lost = [one for one in wants if app is None or one == "middleware of its own"]
        if lost:
            raise InvalidTask(
                f"{task} has {' and '.join(lost)}, which no other process can find: keep the app, and what @app.task "
                "returns, at the top of a module"
            )
        return make(home, plain, name=task)

    def tell_lost(self, job_id: int, fence: int) -> None:
        """The job was taken from this run, if it is still this one."""
        if self.run is not None and self.run._context is not None:
            claim = self.run.attempt.claim
            if (claim.id, claim.fence) == (job_id, fence):
                self.run._context._stop.set()

    def _report(self) -> None:
        for mark in self._marks.take(()):
            self.send(progress=[mark.fraction, mark.note, mark.said])

    def _report_lines(self, ended: Sequence[int] = ()) -> None:
        if found := self._lines.take(ended):
            self.send(lines=[[line.n, line.said, line.level, line.message] for line in found])

    def _end_soon(self) -> None:
        self._ends = True
        if not self._taken:
            self._rest()

    def _rest(self) -> None:
        self._taken = False
        if self._ends:
            self._loop.call_soon_threadsafe(os._exit, 0)  # after what has been sent

    def _ended(self, run: Run, end: End) -> None:
        self.run = None
        if (last := self._marks.pop(run.attempt.claim.id)) is not None:
            self.send(progress=[last.fraction, last.note, last.said])
        self._report_lines([run.attempt.claim.id])
        try:
            message = _as_message(end)
        except BaseException as error:  # a Steer with a broken __str__, say
            message = {"ended": "failed", **_error(error, describe(error), trace(error))}
        self.send(**message)
        self._rest()


class _Nowhere:
    """The home of a task that enqueues nothing through what is made here: the function itself uses its own app."""

    def __init__(self) -> None:
        self.kept = Retention()
        self.state = AppState()
        self.around: list[Middleware] = []
        self.hooks: list[Hook] = []
        self.sender = Sender()

    @property
    def statements(self) -> Statements:
        raise NotImplementedError

    def enqueue_alone(self, new: Any) -> Any:
        raise NotImplementedError

    async def enqueue_alone_async(self, new: Any) -> Any:
        raise NotImplementedError


def _module(name: str, main: str | None) -> ModuleType:
    """The module of a task. That of a script which is the worker's __main__ is run under another name, so that what
    stands behind `if __name__ == "__main__"` is not: as multiprocessing does."""
    if name != "__main__":
        return importlib.import_module(name)
    if "__mp_main__" not in sys.modules:
        if main is None:
            raise ImportError("the task's module is an interactive one, which no other process can import")
        module = ModuleType("__mp_main__")
        module.__dict__.update(runpy.run_path(main, run_name="__mp_main__"))
        sys.modules["__mp_main__"] = module
    return sys.modules["__mp_main__"]


def _as_message(end: End) -> dict[str, Any]:
    match end:
        case Succeeded(result):
            return {"ended": "succeeded", "result": result_json(result)}
        case Failed(error, text, traceback, timed_out):
            return {"ended": "failed", **_error(error, text, traceback), "timed_out": timed_out}
        case Hindered(Failed(error, text, traceback)):
            return {"ended": "hindered", **_error(error, text, traceback)}
        case Steered(steer):
            kind = next(one for one in _STEERS if isinstance(steer, one))
            return {
                "ended": "steered",
                "steer": kind.__name__,
                "why": str(steer),
                "delay": getattr(steer, "delay", None),
            }
        case Unreadable(text):
            return {"ended": "unreadable", "text": text}
        case Interrupted():
            return {"ended": "interrupted"}
        case Completed(result):
            return {"ended": "completed", "result": result}
        case Lost():
            return {"ended": "lost"}
    raise AssertionError(f"no message for {end!r}")


def _error(error: BaseException, text: str, traceback: str | None) -> dict[str, Any]:
    """An exception as text, with the names of its classes: the worker asks its policy about the first it can import."""
    kinds = [(one.__module__, one.__qualname__) for one in type(error).__mro__ if issubclass(one, BaseException)]
    return {"kinds": kinds, "text": text, "traceback": traceback}


class Forward(logging.Handler):
    """Sends each record to the worker, whose handlers know where it belongs."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__()
        self._jobs = jobs

    def emit(self, record: logging.LogRecord) -> None:
        try:
            extra = logs.of_the_job(record) | {
                name: value
                for name, value in record.__dict__.items()
                if name not in logs.STANDARD and isinstance(value, _PLAIN)
            }
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text = f"{text}\n{trace(record.exc_info[1])}"
            self._jobs.send(log={"name": record.name, "level": record.levelno, "text": text, "extra": extra})
        except Exception:
            self.handleError(record)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
