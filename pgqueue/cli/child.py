"""One process that works, started by the supervisor: loads the application, asks for a row, runs its loop.

What stops it is the channel to its supervisor, not a signal: a terminal or a service manager signals every process of
a group, and the supervisor alone knows the order in which to stop. When the channel closes, the supervisor is gone, and
so is the lease: the process ends at once. When it merely falls silent, the process ends before the lease does.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import math
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn
from uuid import UUID

import sqlalchemy as sa

from pgqueue import PgQueue, __version__, environment, logs
from pgqueue.db import Rescued
from pgqueue.errors import ConfigurationError, InvalidTask, LifespanFailed
from pgqueue.maintenance import rescue
from pgqueue.settings import WorkerSettings
from pgqueue.worker.heartbeat import now
from pgqueue.worker.lifespan import Held
from pgqueue.worker.loop import Loop
from pgqueue.worker.supervisor import EXIT_BROKEN, EXIT_DATABASE, EXIT_STUCK, EXIT_USAGE, die_with_parent
from pgqueue.worker.watchdog import Watchdog

log = logging.getLogger("pgqueue")

_LOOK = 1.0  # seconds
_LIMITS_EVERY = 0.2  # seconds between looks at what may have a process replaced; a look takes 10 µs


def main(descriptor: int) -> NoReturn:
    """Never returns: threads that are stuck in a job must not keep the process."""
    die_with_parent()
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: None)  # not SIG_IGN: what a job starts would inherit that, and be deaf
    channel = Channel(socket.socket(fileno=descriptor))
    start = channel.receive()["start"]
    logs.configure(*start["log"])
    environment.warn(lambda _: None)  # the supervisor has said it
    try:
        app = load(start["app"])
        settings = _settings(start["settings"])
        app.move(start["url"], start["schema"])
        conninfo = app.conninfo
        for task in app.tasks.values():
            task.check()
    except (ConfigurationError, InvalidTask) as error:
        _exit(EXIT_USAGE, f"pgqueue: {error}")
    except sa.exc.OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0] if error.orig is not None else "no answer"
        _exit(EXIT_DATABASE, f"pgqueue: cannot reach the database of the app's engine: {reason}")
    guard = Lease(math.inf, settings.lease)
    # What the imports have brought stays: without it a collection of garbage has little to walk (a tenth of our time).
    gc.collect()
    gc.freeze()
    try:
        code = _new_loop()(
            _live(app, settings, conninfo, channel, guard, alone=start["alone"], declares=start["declares"])
        )
    except BaseException:
        log.exception("the worker broke", extra={"event": "worker_broken"})
        code = EXIT_BROKEN
    if guard.lost:
        _end_group(channel)
    with suppress(OSError):
        channel.send(ended=code)
    _exit(code)


@dataclass
class Lease:
    """Until when our jobs are ours, as far as we have heard: `deadline` in now() seconds, of a lease that
    lasts `length`. Our supervisor acts before we do (at a fifth of it), if it can."""

    deadline: float
    length: float
    lost: bool = False

    @property
    def abandon_at(self) -> float:
        return self.deadline - 0.15 * self.length

    @property
    def end_at(self) -> float:
        return self.deadline - 0.05 * self.length


class Channel:
    """Lines of JSON from and to the supervisor. The end of them is the end of the supervisor, and of us."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self._unread = bytearray()

    def send(self, **message: Any) -> None:
        """Never raises: whether anybody is there is seen by what we hear."""
        with suppress(OSError):
            self._raw.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, until: float = math.inf) -> dict[str, Any]:
        """The next message; an empty one when there was none until then, in now() seconds. Raises OSError or ValueError
        when a job has closed our end, or has it for something of its own."""
        while (end := self._unread.find(b"\n")) < 0:
            # Asked twice: a job that holds the GIL may keep us from what has come since we were told that nothing had.
            if until < math.inf and not self._readable(until) and not self._readable(0.0):
                return {}
            try:
                data = self._raw.recv(65_536)
            except ConnectionError:
                data = b""
            if not data:
                _exit(EXIT_STUCK)
            self._unread += data
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return json.loads(line)  # type: ignore[no-any-return]

    def _readable(self, until: float) -> bool:
        """Looks up every second: it waits by a clock that stands still while the machine is suspended, and a descriptor
        that was closed meanwhile is seen by none but the next look."""
        poll = select.poll()
        poll.register(self._raw, select.POLLIN)
        while not (ready := poll.poll(1000 * min(_LOOK, max(0.0, until - now())))) and now() < until:
            pass
        return bool(ready)


async def _live(
    app: PgQueue,
    settings: WorkerSettings,
    conninfo: str,
    channel: Channel,
    lease: Lease,
    *,
    alone: bool,
    declares: bool,
) -> int:
    """Opens what the app's lifespans open, asks for a row, works, and closes it again."""
    held, ends = Held(app.lifespans), Ends()
    try:
        await held.open(ends)
    except LifespanFailed as error:
        with suppress(OSError):
            channel.send(ended=EXIT_STUCK)
        _exit(EXIT_STUCK, f"pgqueue: {error}")
    hello = {"conninfo": conninfo, "schema": app.schema, "tasks": sorted(app.tasks), "version": __version__}
    channel.send(hello=hello)
    # The database may be away for long, and meanwhile what a lifespan runs on this event loop shall run.
    first = await asyncio.to_thread(channel.receive) if app.lifespans.functions else channel.receive()
    loop, code, left = None, 0, settings.grace
    if "work" in first:  # and not "stop"
        worker_id = UUID(first["work"]["worker_id"])
        lease.deadline = first["work"]["lease"]
        loop = _loop(app, settings, worker_id, conninfo, channel, alone=alone, declares=declares)
        ends.listen(loop.stop)
        code = await _work(app, settings, loop, worker_id, channel, lease, alone=alone)
        left = loop.left
    try:
        await held.close(left)
    except LifespanFailed:  # it has been logged
        code = EXIT_BROKEN if ends.early else EXIT_STUCK
    if (code == EXIT_STUCK or ends.early) and not lease.lost:
        # Not by way of asyncio.run, which waits for every task, also for those that swallow their cancellation.
        with suppress(OSError):
            channel.send(ended=code)
        _exit(code)
    return code


class Ends:
    """Called when a lifespan ends by itself, perhaps before there is a loop to stop."""

    def __init__(self) -> None:
        self.early = False
        self._then: Callable[[], object] = lambda: None

    def __call__(self) -> None:
        self.early = True
        self._then()

    def listen(self, then: Callable[[], object]) -> None:
        self._then = then
        if self.early:
            then()


def _loop(
    app: PgQueue,
    settings: WorkerSettings,
    worker_id: UUID,
    conninfo: str,
    channel: Channel,
    *,
    alone: bool,
    declares: bool,
) -> Loop:
    if alone:
        return app.loop(replace(settings, concurrency=1), worker_id, conninfo, suspects="alone", declares=False)
    return app.loop(
        settings,
        worker_id,
        conninfo,
        suspects="elsewhere",
        on_suspects=lambda waiting: channel.send(suspects=waiting),
        declares=declares,
        on_declared=lambda: channel.send(declared={}),
    )


async def _work(
    app: PgQueue,
    settings: WorkerSettings,
    loop: Loop,
    worker_id: UUID,
    channel: Channel,
    lease: Lease,
    *,
    alone: bool,
) -> int:
    """Runs the loop, obeying the supervisor; the exit code."""
    listener = threading.Thread(
        target=_obey, args=(channel, lease, loop, app, asyncio.get_running_loop()), name="pgqueue-channel", daemon=True
    )
    listener.start()
    log.info(
        "working: %d tasks, queues %s, concurrency %d%s",
        len(app.tasks),
        ", ".join(settings.queues or ("all",)),
        1 if alone else settings.concurrency,
        "; only jobs under which a process died" if alone else "",
        extra={"event": "worker_started", "worker_id": str(worker_id)},
    )
    limits = None if alone or not settings.recycles else Limits(settings, time.monotonic())
    reporter = asyncio.create_task(_report(loop, channel, limits, alone=alone))
    watchdog = Watchdog()
    watchdog.start()
    await loop.run()
    watchdog.end()
    reporter.cancel()
    _hand_over(loop, channel)
    if loop.stuck:
        return EXIT_STUCK
    if settings.drain and not loop.stopped and not alone:
        log.info("drained; %d jobs are scheduled for later", loop.left_for_later, extra={"event": "drained"})
    return 0


async def _report(loop: Loop, channel: Channel, limits: Limits | None, *, alone: bool) -> None:
    trouble = None
    busy = 0
    replaced = False
    while True:
        await asyncio.sleep(1.0 if limits is None else _LIMITS_EVERY)
        jobs = _hand_over(loop, channel)
        if loop.busy != busy:
            busy = loop.busy
            channel.send(busy=busy)
        if loop.trouble != trouble:
            trouble = loop.trouble
            channel.send(trouble=trouble)
        if not replaced and not alone and (stuck := loop.overdue) is not None:
            # Its slot is lost here. Whoever takes our place has all of them, and we end when that job does.
            channel.send(replace=f"job {stuck.claim.id} is stuck")
            replaced, limits = True, None
        if limits is not None and (why := limits.reached(jobs, _memory(), time.monotonic())):
            channel.send(replace=why)
            limits = None


@dataclass
class Limits:
    """When this process has done its share and asks to be replaced."""

    settings: WorkerSettings
    born: float
    jobs: int = 0

    def reached(self, jobs: int, memory: int, now: float) -> str | None:
        """Why, if so. jobs: that have ended since the last look. memory: in MB. now: time.monotonic() seconds."""
        self.jobs += jobs
        settings = self.settings
        if settings.max_jobs_per_process is not None and self.jobs >= settings.max_jobs_per_process:
            return f"it has run {self.jobs} jobs"
        if settings.max_memory is not None and memory > settings.max_memory:
            return f"it holds {memory} MB of memory"
        if settings.max_age is not None and now - self.born >= settings.max_age:
            return f"it is {now - self.born:.0f} s old"
        return None


def _memory() -> int:
    """MB of memory that this process holds now; where the system does not say, the most it ever held."""
    try:
        with open("/proc/self/statm", encoding="ascii") as numbers:
            return int(numbers.read().split()[1]) * resource.getpagesize() >> 20
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most >> (20 if sys.platform == "darwin" else 10)


def _hand_over(loop: Loop, channel: Channel) -> int:
    """Tells the supervisor what was counted; it sums up over its children, also over those that die later. How many
    attempts that were."""
    taken = loop.take_counts()
    jobs = sum(sum(one.buckets) for one in taken.run.values())
    if taken.anything:
        channel.send(counts=taken.to_json())
    return jobs


def _obey(channel: Channel, lease: Lease, loop: Loop, app: PgQueue, running: asyncio.AbstractEventLoop) -> None:
    """In a thread of its own: a job may block the event loop."""
    while True:
        try:
            message = channel.receive(until=lease.abandon_at)
        except (OSError, ValueError):
            # A job has closed it. Our supervisor sees that, too, and kills us: given back by us, the job could do so
            # for ever. Should the supervisor see nothing, since a fork has the channel, too, this is the end.
            time.sleep(max(0.0, lease.end_at - now()))
            _end_group(channel)
        if not message:
            _give_up(channel, lease, loop, running)
            return
        with suppress(RuntimeError):  # the loop is closed: we are ending anyway
            if "lease" in message:
                lease.deadline = message["lease"]
            elif "retire" in message:
                running.call_soon_threadsafe(loop.retire)
            elif "stop" in message:
                running.call_soon_threadsafe(loop.stop)
            elif "rescued" in message:
                rescued = [Rescued(**job) for job in message["rescued"]]
                running.call_soon_threadsafe(partial(rescue.emit, rescued, app.events))


def _give_up(channel: Channel, lease: Lease, loop: Loop, running: asyncio.AbstractEventLoop) -> None:
    """Our supervisor has not renewed our lease, or does not tell: gives the jobs back, and ends before it does."""
    lease.lost = True
    log.error("no news of the lease from the supervisor: interrupting what runs", extra={"event": "lease_lost"})
    with suppress(RuntimeError):
        running.call_soon_threadsafe(loop.abandon)
    time.sleep(max(0.0, lease.end_at - now()))
    log.error("what runs did not end in time: killed before others take its jobs", extra={"event": "lease_lost"})
    _end_group(channel)


def _end_group(channel: Channel) -> NoReturn:
    """The end of us and of all that our jobs have started: no crash of theirs."""
    with suppress(OSError):
        channel.send(ended=EXIT_BROKEN)
    logging.shutdown()
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("a killed process goes on")


def load(target: str) -> PgQueue:
    """The app named MODULE:APP. Raises ConfigurationError with the import's own error."""
    module_name, _, attribute = target.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigurationError(f"there is no module {module_name} here or in the installed packages") from None
        raise ConfigurationError(f"module {module_name} cannot be imported: {_where(error)}") from None
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"module {module_name} cannot be imported: {_where(error)}") from None
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, PgQueue):
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise ConfigurationError(f"{target} is {kind}, not a PgQueue")
    return found


def _where(error: BaseException) -> str:
    """`ImportError: no such name (shop/tasks.py, line 3)`"""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{place}"


def _settings(given: dict[str, Any]) -> WorkerSettings:
    queues = given.pop("queues")
    return WorkerSettings(queues=None if queues is None else tuple(queues), **given)


def _new_loop() -> Any:
    """asyncio.run, on uvloop where that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


def _exit(code: int, message: str = "") -> NoReturn:
    try:
        if message:
            print(message, file=sys.stderr)  # noqa: T201
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also when whoever read our output is gone
        os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[-1]))
