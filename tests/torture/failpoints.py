"""Named points at which a process under test is killed, stopped, or cut off from its server.

    claim.sent          the statement has gone out, and nothing of its answer was read; so for each verb of sql/:
                        complete, retry, dead_letter, give_back, heartbeat, register, rescue, …
    claim.done          the server has answered, so it has committed; and not a byte of it was read
    commit.sent, .done  the same for the COMMIT of a job's own transaction
    run.start           a job was claimed, and is about to be started
    run.body            in the midst of it (the jobs say so themselves: tasks.py)
    run.effect          it has had its effect
    stop                the process has been told to stop

From outside: nothing of this is in pgqueue. A process that is started for a test wraps two methods, through which all
that a worker's connections wait for goes, and two of the loop's; one that is not has nothing to ask at any of these
points. A proxy could see statements and answers too, but not which process sends them, nor what happens between them.

A point is armed by a file of its name, which says what is to happen: "kill", "stop" or "cut". The process that comes
by first takes the file away, and it alone does it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.waiting import Ready, Wait

from pgqueue.link import AsyncBounded, Bounded
from pgqueue.sql import statements
from pgqueue.worker.loop import Loop
from pgqueue.worker.run import Run
from tests.torture import ledger

ACTIONS = "kill", "stop", "cut"

_verbs: dict[str, str] = {}  # statement -> verb
_times: WeakKeyDictionary[Any, Counter[str]] = WeakKeyDictionary()  # connection -> verb -> how often it was run there
_jobs: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # connection -> whether a job's transaction is on it


def _armed() -> Path:
    return Path(os.environ[ledger.VARIABLE]) / "armed"


# -- for the tormentor -------------------------------------------------------------------------------------------------


def arm(directory: Path, name: str, action: str) -> None:
    """The next process that comes by does it. directory: the ledger's."""
    (directory / "armed").mkdir(exist_ok=True)
    waiting = directory / "armed" / f".{name}"
    waiting.write_text(action)
    waiting.rename(directory / "armed" / name)


def is_armed(directory: Path, name: str) -> bool:
    """Whether nobody has come by yet."""
    return (directory / "armed" / name).exists()


def disarm(directory: Path, name: str) -> bool:
    """Whether nobody has come by."""
    try:
        (directory / "armed" / name).unlink()
    except FileNotFoundError:
        return False
    return True


# -- in the process under test -----------------------------------------------------------------------------------------


def install(schema: str = "pgqueue") -> None:
    """From now on the points are there, in this process."""
    if _verbs:
        return
    _verbs.update({text: verb for verb, text in statements(schema).items()})
    wait, wait_async = Bounded.wait, AsyncBounded.wait
    start, stop = Run.start, Loop.stop

    def watched(self: Bounded, gen: Any, *more: Any, **named: Any) -> Any:
        return wait(self, _watch(self, gen), *more, **named)

    async def watched_async(self: AsyncBounded, gen: Any, *more: Any, **named: Any) -> Any:
        return await wait_async(self, _watch(self, gen), *more, **named)

    def started(self: Run) -> None:
        hit("run.start")
        start(self)

    def stopped(self: Loop) -> None:
        hit("stop")
        stop(self)

    Bounded.wait, AsyncBounded.wait = watched, watched_async  # type: ignore[method-assign]
    Run.start, Loop.stop = started, stopped  # type: ignore[method-assign]


def hit(name: str, raw: Any = None) -> None:
    """Here is the point of that name; raw: the connection that is about to be cut, if it comes to that."""
    place = _armed() / name
    if not place.exists():
        return
    taken = place.with_name(f".{name}.{os.getpid()}")
    try:
        place.rename(taken)
    except FileNotFoundError:
        return  # somebody else was first
    action = taken.read_text()
    taken.unlink()
    match action:
        case "kill":
            for pid in (*_children(), os.getpid()):  # a supervisor's end is that of its children
                ledger.write("kill", note=f"{pid} {name}" + (" supervised" if _is_child() else ""))
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            ledger.write("freeze", note=f"{os.getpid()} {name}")
            os.kill(os.getpid(), signal.SIGSTOP)
        case "cut" if raw is not None:
            ledger.write("cut", note=f"{os.getpid()} {name}")
            raw.pgconn.finish()
            raise psycopg.OperationalError("server closed the connection unexpectedly")


def _watch(raw: Any, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """psycopg's conversation with the server, as it is, with a look before the first answer and at it."""
    name = _name(raw, gen)
    if name is None:
        return (yield from gen)
    times = _times.setdefault(raw, Counter())
    times[name] += 1
    if raw.prepare_threshold is not None and times[name] == raw.prepare_threshold + 1 and name != "commit":
        return (yield from gen)  # this time it is prepared first, and the first answer is to that
    try:
        wanted, sent, answered = next(gen), False, False
        while True:
            if not sent and wanted == Wait.R:
                sent = True
                hit(f"{name}.sent", raw)
            ready = yield wanted
            if sent and not answered and ready & Ready.R:
                answered = True
                hit(f"{name}.done", raw)
            wanted = gen.send(ready)
    except StopIteration as stop:
        return stop.value


def _name(raw: Any, gen: Any) -> str | None:
    if getattr(gen, "__name__", "") in ("_commit_gen", "_exit_gen"):
        if raw not in _jobs:
            _jobs[raw] = raw.info.get_parameters().get("application_name") == "pgqueue job"
        return "commit" if _jobs[raw] else None
    frame = getattr(gen, "gi_frame", None)
    query = None if frame is None else frame.f_locals.get("query")
    return _verbs.get(query) if isinstance(query, str) else None


def _is_child() -> bool:
    """Of a supervisor, which will see what becomes of us. Supervisors, and workers inside an application: worker.py."""
    return not any(word.endswith("torture.worker") for word in sys.orig_argv)


def _children() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return []
