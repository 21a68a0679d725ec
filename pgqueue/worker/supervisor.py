"""The small process above the ones that work: starts children, beats for them, sees them die, stops them.

It runs no job and imports no application, so nothing a job does can harm it. It beats for a child only while the
operating system says that the child is neither dead nor stopped. A child that died is buried at once (its jobs go back
to their queues, its row is removed) and replaced; a child whose lease could not be renewed in time is killed before
anybody else may take its jobs.

Jobs that were running in a child that died are suspects. Each runs in a process with nothing beside it: children of
their own are started as soon as there are any, take one at a time, and end when none is left.

A child hears of each renewal, as a moment of the clock that all processes of a machine share. When the news stop, we
are frozen or stuck, and it ends its jobs by itself before others may take them.

A child that has run its jobs, holds too much memory or is too old asks to be replaced. It goes on until its replacement
works, so that the rate holds; then it retires: claims no more, and ends when its jobs have, however long that takes.

    child -> supervisor   {"hello": {conninfo, schema, tasks, version}} · {"counts": {...}} · {"ended": code}
                          {"suspects": 3} (so many its sweep saw) · {"replace": why}
                          {"trouble": why or null} (its connections) · {"declared": {}} (its code's schedules)
                          {"busy": 7} (slots)
    supervisor -> child   {"start": {...}} · {"work": {worker_id, lease}} · {"lease": deadline} · {"stop": {}}
                          {"retire": {}} · {"rescued": [...]}
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from pgqueue.counts import Counts
from pgqueue.db import Rescued
from pgqueue.maintenance import rescue
from pgqueue.settings import WorkerSettings
from pgqueue.sql import statements
from pgqueue.worker.heartbeat import Heart, now
from pgqueue.worker.probe import Probe, ask_depth

log = logging.getLogger("pgqueue")

EXIT_STUCK = 1  # jobs did not end within the grace period
EXIT_USAGE = 2
EXIT_DATABASE = 3
EXIT_BROKEN = 70  # a child's own failure, not its jobs': they are not charged a crash

_TICK = 0.2  # seconds between looks at leases and clocks; signals, messages and deaths are seen at once
_KILL_AFTER = 5.0  # seconds a child gets beyond its grace period
_LAST_ERRANDS = 4.0  # seconds for the database to hear that we are gone
_MARGIN = 0.2  # of a lease: so much before its end a child is killed that could not be renewed
_DEAF_FOR = 2.0  # seconds that a child lives on which has closed its channel: one that dies closes it, too
_DEAF = "a job had closed its channel to its supervisor"
_AFTER_A_JOB = 0.5  # seconds until a child that died of a job is replaced, however many did before
# Processes for a suspect each that are starting at the same time: a machine can start so many within about two seconds.
_STARTING = max(4, 2 * (os.cpu_count() or 1))
# And all that there may be: what a killed process ran may take hours, and nothing of it is to wait for the rest.
_ALONE = 32
_ROOM = 0.25  # of the memory must be free for more than _STARTING: what died of too little must not die of it once more
_SILENT = 30.0  # seconds; a loop that has not come round for so long is stuck: nothing it does takes a tenth of that
_YOUNG = 30.0  # seconds; a child that dies younger is replaced more and more slowly


@dataclass(eq=False)
class Child:
    """One process that works."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    worker_id: UUID
    born: float
    alone: bool = False  # runs suspects, and nothing else
    busy: int = 0  # slots in which something runs, as it last said
    lease: float = 0.0  # the deadline it has heard of
    replaced: bool = False  # another was started in its place
    retires: bool = False  # and works: this one has been told
    said_hello: bool = False
    trouble: str | None = None  # why the database does not answer it
    working: bool = False
    stopped: bool = False  # by SIGSTOP, say the operating system
    deaf_since: float | None = None  # its end of the channel is closed, in time.monotonic() seconds
    killed: str | None = None  # why we killed it ourselves
    ended: int | None = None  # its exit code in its own words: any job can end a process with any code
    unread: bytearray = field(default_factory=bytearray)

    def send(self, **message: Any) -> None:
        try:
            self.channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass  # it is dying; the operating system will tell

    def takes_more(self) -> bool:
        """Whether it reads what we send: a message more could otherwise hold us up, and all the other children."""
        if self.deaf_since is not None:
            return False
        poll = select.poll()
        poll.register(self.channel, select.POLLOUT)
        return bool(poll.poll(0))


class Supervisor:
    """Keeps `processes` children at work. `command` starts one; the number of its channel's descriptor is appended."""

    def __init__(
        self,
        command: list[str],
        settings: WorkerSettings,
        start: Mapping[str, Any],
        *,
        check: Callable[[Heart], None],
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self._command = command
        self._settings = settings
        self._start_message = dict(start)
        self._check = check
        self._new_id = new_id
        self._children: list[Child] = []
        self._heart: Heart | None = None
        self._selector = selectors.DefaultSelector()
        self._caught: list[int] = []  # signals, as they arrive; acted upon between two steps of the loop
        self._signals = 0
        self._stop_by: float | None = None
        self._deaths = 0
        self._respawn_at = 0.0
        self._missing = settings.processes
        self._exit_code = 0
        self._buried: deque[list[Rescued]] = deque()  # filled by the heart's thread
        self._rescued: deque[Rescued] = deque()
        # One that takes another's place later may be of code that is not the last any more, while a deploy goes on.
        self._declares = True  # children write down what schedules their code declares; until one has
        self._suspects = 0  # so many wait that no child was started for
        self._counts = Counts()
        self._probe: Probe | None = None
        self._turned = time.monotonic()  # when the loop last came round

    def run(self) -> int:
        """Works until a signal, or, draining, until the children are done; the exit code."""
        waker, wakee = socket.socketpair()
        waker.setblocking(False)
        wakee.setblocking(False)
        self._selector.register(wakee, selectors.EVENT_READ)
        previous_fd = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        previous = {one: signal.signal(one, self._catch) for one in (signal.SIGTERM, signal.SIGINT)}
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            while self._children or self._missing:
                self._turned = time.monotonic()
                self._mourn()
                self._spawn_missing()
                self._quarantine()
                self._retire()
                for key, _ in self._selector.select(min(_TICK, self._settings.lease / 10)):
                    if key.fileobj is wakee:
                        wakee.recv(4096)
                    else:
                        self._read(key.data)
                self._obey_signals()
                self._reap()
                self._watch_leases()
                self._watch_channels()
                self._pass_on_rescued()
                self._watch_stop()
        finally:
            for child in self._children:
                child.process.kill()
            if self._probe is not None:
                self._probe.close()
            if self._heart is not None and not self._heart.end(_LAST_ERRANDS):
                log.error("the database is away: jobs that were running will be rescued when their lease ends")
                self._exit_code = self._exit_code or EXIT_STUCK
            for one, handler in previous.items():
                signal.signal(one, handler)
            signal.set_wakeup_fd(previous_fd)
            self._selector.close()
            waker.close()
            wakee.close()
        return self._exit_code

    # -- signals -------------------------------------------------------------------------------------------------------

    def _catch(self, number: int, _: object) -> None:
        """A handler may run in the midst of anything, a child half started or a log line half written: only notes."""
        self._caught.append(number)

    def _obey_signals(self) -> None:
        while self._caught:
            name = signal.Signals(self._caught.pop(0)).name
            self._signals += 1
            if self._signals == 1:
                grace = self._settings.grace
                log.info("%s: claiming no more, waiting up to %g s for running jobs", name, grace)
                self._stop()
            elif self._signals == 2:
                log.warning("%s again: stopping at once", name)
                self._exit_code = self._exit_code or EXIT_STUCK
                for child in self._children:
                    self._kill(child, "told to stop at once")

    def _stop(self) -> None:
        self._missing = 0
        self._stop_by = time.monotonic() + self._settings.grace + _KILL_AFTER
        if self._heart is not None:
            self._heart.show_stopping()
        for child in self._children:
            if child.said_hello:
                child.send(stop={})
            else:
                self._kill(child, "stopped before it worked")

    def _watch_stop(self) -> None:
        if self._stop_by is not None and time.monotonic() > self._stop_by:
            for child in self._children:
                if child.killed is None:
                    log.error("worker process %d did not stop in time: killed", child.process.pid)
                    self._exit_code = self._exit_code or EXIT_STUCK
                    self._kill(child, "did not stop in time")

    # -- children ------------------------------------------------------------------------------------------------------

    def _spawn_missing(self) -> None:
        """One child first: it shows, and says but once, when application or database cannot be used at all."""
        while self._missing and time.monotonic() >= self._respawn_at and (self._heart or not self._children):
            self._missing -= 1
            self._spawn()

    def _mourn(self) -> None:
        """What burials have brought to light."""
        while self._buried:
            rescued = self._buried.popleft()
            self._rescued.extend(rescued)
            rescue.count(rescued, self._counts)
            if suspects := sum(1 for job in rescued if job.crashes and not job.dead and job.cancelled is None):
                self._suspects += suspects
                # A job kills an ordinary child but once, so this is no sickness of the child's: no need to slow down.
                self._deaths = min(self._deaths, 2)
                self._respawn_at = min(self._respawn_at, time.monotonic() + _AFTER_A_JOB)

    def _quarantine(self) -> None:
        """A child for each suspect, as far as the machine allows; when they have run theirs they take what is left."""
        if self._stop_by is not None:
            self._suspects = 0
        while self._suspects:
            alone = [child for child in self._children if child.alone]
            starting = sum(not child.working for child in alone)
            if len(alone) >= _ALONE or starting >= _STARTING or (len(alone) >= _STARTING and free_memory() < _ROOM):
                return  # those that wait are started one by one, as others work or end
            self._suspects -= 1
            self._spawn(alone=True)

    def _retire(self) -> None:
        """As many of those that asked to be replaced as there are others in their place."""
        at_work = [child for child in self._children if child.working and not child.alone and not child.retires]
        surplus = len(at_work) - self._settings.processes
        for child in [one for one in at_work if one.replaced][: max(0, surplus)]:
            child.retires = True
            child.send(retire={})

    def _spawn(self, *, alone: bool = False) -> None:
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [*self._command, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for us to pass on
            )
        except OSError as error:
            # Out of processes or memory: the ones that live go on, and we try again.
            ours.close()
            log.error("cannot start a worker process: %s", error.strerror)
            if not alone:  # a sweep will see that suspects still wait
                self._missing += 1
                self._respawn_at = time.monotonic() + 5.0
            return
        finally:
            theirs.close()
        child = Child(process, ours, self._new_id(), time.monotonic(), alone)
        self._children.append(child)
        self._selector.register(ours, selectors.EVENT_READ, child)
        child.send(start={**self._start_message, "alone": alone, "declares": self._declares and not alone})

    def _read(self, child: Child) -> bool:
        """Hears what the child says; False when it says no more, for now or for good."""
        try:
            data = child.channel.recv(65_536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            if child.deaf_since is None:
                child.deaf_since = time.monotonic()
                self._selector.unregister(child.channel)
            return False
        child.unread += data
        while (end := child.unread.find(b"\n")) >= 0:
            line = bytes(child.unread[:end])
            del child.unread[: end + 1]
            self._hear(child, line)
        return True

    def _hear(self, child: Child, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:  # a job that writes to whatever descriptor there is
            log.warning("worker process %d wrote something odd to its supervisor", child.process.pid)
            return
        match message:
            case {"hello": hello}:
                self._welcome(child, hello)
            case {"counts": counts}:
                self._counts.add(counts)
            case {"suspects": int(seen)}:
                # A child that is starting will take one of these.
                self._suspects = max(
                    self._suspects, seen - sum(one.alone and not one.working for one in self._children)
                )
            case {"busy": int(busy)}:
                child.busy = busy
            case {"declared": _}:
                self._declares = False
            case {"trouble": why}:
                child.trouble = why
            case {"replace": why} if self._stop_by is None and not child.replaced:
                log.info(
                    "worker process %d: %s; starting another in its place",
                    child.process.pid,
                    why,
                    extra={"event": "child_replaced"},
                )
                child.replaced = True
                self._missing += 1
            case {"ended": code}:
                child.ended = code

    def _welcome(self, child: Child, hello: dict[str, Any]) -> None:
        """The child has its application: give it a row, then work."""
        child.said_hello = True
        if self._heart is None:
            heart = Heart(hello["conninfo"], statements(hello["schema"]), self._settings.lease)
            self._check(heart)  # at start an unusable database is an error; later we wait for it
            heart.start()
            self._heart = heart
            if self._settings.metrics_port is not None:
                self._probe = Probe(
                    self._settings.metrics_host,
                    self._settings.metrics_port,
                    self._counts,
                    silent=self._silent,
                    unready=self._unready,
                    slots=self._slots,
                    depth=partial(ask_depth, hello["conninfo"], heart.sql),
                )
                log.info("metrics and health on %s", self._probe.url, extra={"event": "probe"})
        heart = self._heart
        if self._stop_by is not None:
            return

        def work() -> None:  # in the heart's thread
            child.lease = heart.deadline(child.worker_id)
            child.send(work={"worker_id": str(child.worker_id), "lease": child.lease})
            child.working = True  # not before: it takes "stop" only once it works

        heart.register(
            child.worker_id,
            work,
            host=socket.gethostname(),
            pid=child.process.pid,
            queues=self._settings.queues,
            tasks=hello["tasks"],
            concurrency=1 if child.alone else self._settings.concurrency,
            version=hello["version"],
        )

    def _watch_channels(self) -> None:
        """A child that lives and does not hear us cannot be stopped, and hears nothing of its lease: it is killed. Only
        a job can have closed its channel, so that counts as a crash, or the job would do it again for ever."""
        for child in self._children:
            since = child.deaf_since
            if since is not None and child.killed is None and time.monotonic() - since > _DEAF_FOR:
                log.error(
                    "worker process %d: its channel is closed: killed", child.process.pid, extra={"event": "child_deaf"}
                )
                self._kill(child, _DEAF)

    def _reap(self) -> None:
        """Hears from the operating system who died, stopped or went on. As pid 1 this also reaps orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = next((one for one in self._children if one.process.pid == pid), None)
            if child is None:
                continue
            if os.WIFSTOPPED(status):
                child.stopped = True
                log.warning("worker process %d is stopped: no heartbeat for it", pid, extra={"event": "child_stopped"})
                self._rest(child)
            elif os.WIFCONTINUED(status):
                child.stopped = False
                if self._heart is not None and child.killed is None:
                    self._heart.resume(child.worker_id)
            else:
                child.process.returncode = os.waitstatus_to_exitcode(status)
                self._died(child, child.process.returncode)

    def _rest(self, child: Child) -> None:
        if self._heart is not None:
            self._heart.rest(child.worker_id)

    def _died(self, child: Child, code: int) -> None:
        while self._read(child):
            pass  # its last words
        self._children.remove(child)
        if child.deaf_since is None:
            self._selector.unregister(child.channel)
        child.channel.close()
        if code != 0 or child.ended is None:  # a job, too, can end its process with code 0
            _kill_group(child.process.pid)  # what its jobs had started must not go on beside their next attempt
        ends_by_itself = self._settings.drain or child.alone or child.retires
        expected = self._stop_by is not None or (ends_by_itself and child.ended in (0, EXIT_STUCK))
        unusable = code in (EXIT_USAGE, EXIT_DATABASE) or child.ended == EXIT_STUCK  # a lifespan did not open
        if not child.said_hello and unusable and self._heart is None:
            self._exit_code = self._exit_code or code  # it has said on stderr what is wrong
            self._stop()
            return
        if expected and code == EXIT_STUCK:
            self._exit_code = self._exit_code or EXIT_STUCK
        if self._heart is not None and child.said_hello:
            crashed = child.killed in (None, _DEAF) and not expected and child.ended != EXIT_BROKEN
            self._bury(child, _death(code, child.killed), crashed=crashed)
        if expected and child.alone:
            self._suspects = 0  # it has looked for another, and there was none
        elif not expected and child.alone:
            self._tell_death(child, code, "it ran a job alone")
            # It would have looked for another. One that did not get so far would not the next time, at once: a sweep
            # will see that suspects still wait.
            self._suspects += child.said_hello
        elif not expected and child.replaced:
            self._tell_death(child, code, "it had been replaced already")
        elif not expected:
            self._replace(child, code)

    def _bury(self, child: Child, why: str, *, crashed: bool) -> None:
        heart = self._heart
        assert heart is not None
        heart.forget(child.worker_id)

        def told(rescued: list[Rescued]) -> None:  # in the heart's thread
            rescue.record(rescued)
            self._buried.append(rescued)

        heart.send(lambda: rescue.bury(heart.sql, [child.worker_id], why, crashed=crashed), told)

    def _replace(self, child: Child, code: int) -> None:
        young = time.monotonic() - child.born < _YOUNG
        self._deaths = self._deaths + 1 if young else 1
        delay = 0.0 if self._deaths <= 1 else min(30.0, 0.5 * 2.0 ** (self._deaths - 2))
        self._tell_death(child, code, "starting another" + (f" in {delay:g} s" if delay else ""))
        if not self._missing:  # another death must not put off those that are due already, again and again
            self._respawn_at = time.monotonic() + delay
        self._missing += 1

    def _tell_death(self, child: Child, code: int, then: str) -> None:
        death = _death(code, child.killed)
        log.error("worker process %d: %s; %s", child.process.pid, death, then, extra={"event": "child_died"})

    def _kill(self, child: Child, why: str) -> None:
        if child.killed is None:
            child.killed = why
        # Not Popen.kill(), which would reap it if it has just died, behind the back of _reap.
        _kill_group(child.process.pid)

    # -- leases --------------------------------------------------------------------------------------------------------

    def _watch_leases(self) -> None:
        heart = self._heart
        if heart is None:
            return
        while heart.lost:
            gone = heart.lost.popleft()
            for child in self._children:
                if child.worker_id == gone:
                    pid = child.process.pid
                    log.error("worker process %d lost its lease: killed", pid, extra={"event": "lease_lost"})
                    self._kill(child, "its lease was lost")
        margin = _MARGIN * self._settings.lease
        for child in self._children:
            if child.killed is None and now() > heart.deadline(child.worker_id) - margin:
                log.error(
                    "worker process %d: its lease could not be renewed: killed before others take its jobs",
                    child.process.pid,
                    extra={"event": "lease_lost"},
                )
                self._kill(child, "its lease could not be renewed")
            elif child.working and (lease := heart.deadline(child.worker_id)) > child.lease and child.takes_more():
                child.lease = lease
                if lease != float("inf"):  # it is to be killed: its row was gone
                    child.send(lease=lease)

    def _silent(self) -> str | None:
        """For how long this loop has not come round, if that is too long. Asked in the probe's threads."""
        seconds = time.monotonic() - self._turned
        return None if seconds < _SILENT else f"the supervisor has been silent for {seconds:.0f} s"

    def _slots(self) -> tuple[int, int]:
        """Busy ones, and all. Asked in the probe's threads."""
        working = [child for child in list(self._children) if child.working]
        every = sum(1 if child.alone else self._settings.concurrency for child in working)
        return min(every, sum(child.busy for child in working)), every

    def _unready(self) -> str | None:
        """What is wrong; None when every child works and holds its lease. Asked in the probe's threads."""
        heart, at = self._heart, now()
        if self._stop_by is not None:
            return "stopping"
        if heart is None:
            return "starting"
        if heart.trouble is not None:
            return f"the database is away: {heart.trouble}"
        # One that is to go works on until its replacement does: one too many may be starting.
        children = [child for child in list(self._children) if not child.alone and not child.retires]
        wrong = [reason for child in children if (reason := _unfit(child, at >= heart.deadline(child.worker_id)))]
        missing = self._settings.processes - (len(children) - len(wrong))
        if missing <= 0:
            return None
        return wrong[0] if wrong else f"{missing} worker processes are missing"

    def _pass_on_rescued(self) -> None:
        """A supervisor has no application: a child calls the handlers of what was rescued."""
        for child in self._children:
            while self._rescued and child.working and child.takes_more():
                few = [self._rescued.popleft() for _ in range(min(10, len(self._rescued)))]
                child.send(rescued=[asdict(job) for job in few])


def _kill_group(leader: int) -> None:
    """A child leads a session, and so a process group, of its own: kills whatever is left of it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def free_memory() -> float:
    """Which part of the memory that we may use is free, from 0 to 1; 0 where the system does not say."""
    parts = []
    with suppress(OSError, ValueError, KeyError):
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        known = {words[0]: int(words[1]) for words in lines}
        parts.append(known["MemAvailable:"] / known["MemTotal:"])
    with suppress(OSError, ValueError):  # a container's; "max" is no number
        most = int(Path("/sys/fs/cgroup/memory.max").read_text())
        parts.append(1.0 - int(Path("/sys/fs/cgroup/memory.current").read_text()) / most)
    return min(parts, default=0.0)


def _unfit(child: Child, lapsed: bool) -> str | None:
    """Why a child does no work; None when it does."""
    name = f"worker process {child.process.pid}"
    if child.stopped:
        return f"{name} is stopped"
    if not child.working:
        return f"{name} is starting"
    if child.trouble is not None:
        return f"{name} cannot reach the database: {child.trouble}"
    return f"{name} lost its lease" if lapsed else None


def _death(code: int, killed: str | None) -> str:
    """`its process was killed by SIGKILL`, `its process exited with code 3`."""
    if killed is not None:
        return f"the worker process was killed by its supervisor: {killed}"
    if code < 0:
        try:
            return f"the worker process was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"the worker process was killed by signal {-code}"
    return f"the worker process exited with code {code}"


def die_with_parent(parent: int | None = None) -> None:
    """Linux: SIGKILL when the parent is gone, even while a job holds the GIL. Elsewhere the closed channel must do.
    parent: its process id, if it may have gone already, of which nobody tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(0)
