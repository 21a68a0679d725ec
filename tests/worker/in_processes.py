"""Tasks that run in processes of their own: they are imported by name, so they stand at the top of a module."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pgqueue import Cancel, Context, DeadLetter, RetryLater, Snooze

HERE: list[int] = []  # what a fork would inherit


class Odd(ValueError):
    """An error whose class the worker has to import; with an __init__ that wants what no copy has."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{why} ({code})")
        self.code = code


def where(n: int) -> dict[str, Any]:
    HERE.append(n)
    return {"pid": os.getpid(), "parent": os.getppid(), "n": n, "seen": len(HERE)}


async def where_async(ctx: Context) -> dict[str, Any]:
    await asyncio.sleep(0)
    ctx.log.warning("from inside", extra={"event": "inside", "odd": object()})
    return {"pid": os.getpid(), "job": ctx.job.id, "attempt": ctx.job.attempt, "tags": list(ctx.job.tags)}


def fail(kind: str) -> None:
    match kind:
        case "odd":
            raise Odd(7, "it is odd")
        case "nested":

            class Hidden(KeyError):
                pass

            raise Hidden("no")
        case "exit":
            sys.exit(3)
        case "snooze":
            raise Snooze(60)
        case "retry later":
            raise RetryLater(60, "not now")
        case "cancel":
            raise Cancel("of its own")
        case "dead letter":
            raise DeadLetter("enough")


def odd_result(kind: str) -> Any:
    return object() if kind == "unserializable" else "x" * 300_000


def die(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


def spin(mark: str) -> None:
    """Holds the GIL as well as Python code can, and has started a process of its own."""
    below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(mark).write_text(f"{os.getpid()} {below.pid}")
    while True:
        pass


def obedient(mark: str, ctx: Context) -> str:
    Path(mark).write_text(f"{os.getpid()}")
    while not ctx.cancelled:
        time.sleep(0.01)
    Path(mark + ".told").touch()
    return "told"


async def obedient_async(mark: str) -> None:
    Path(mark).write_text(f"{os.getpid()}")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        Path(mark + ".told").touch()
        raise


def transact(ctx: Context, end: str) -> None:
    with ctx.transaction(driver=True) as on:
        on.execute("insert into effects values (%s)", [ctx.job.id])
        ctx.complete({"by": os.getpid()})
        if end == "fails":
            raise ValueError("rolled back")


def shout(text: str) -> None:
    logging.getLogger("shop").error("%s", text)


def wait() -> None:
    time.sleep(600)


def shout_for_a_library() -> None:
    logging.getLogger("library").warning("from a library", extra={"order_id": 7})


def halfway(ctx: Context, mark: str) -> None:
    """Says how far it is, again and again, until it is told to end; and has a last word."""
    while not ctx.cancelled:
        ctx.progress(0.5, "half of it")
        time.sleep(0.01)
    ctx.progress(0.75, "told")
    Path(mark).touch()


def talk(ctx: Context, mark: str, end: str) -> None:
    """Says something, then waits; and ends in one way or another."""
    ctx.log.info("begins in %s", "a process")
    while not Path(mark).exists():
        time.sleep(0.01)
    if end == "transaction":
        with ctx.transaction():
            ctx.log.info("inside")
    for number in range(1_200):
        ctx.log.warning("line %d \ud800", number)
    if end == "dies":
        os.kill(os.getpid(), signal.SIGKILL)


def plain() -> str:
    return "done"


def cut_once(ctx: Context) -> None:
    with ctx.transaction(driver=True) as raw:
        if ctx.job.fence == 1:
            raw.execute("select pg_terminate_backend(pg_backend_pid())")
        raw.execute("select 1")
