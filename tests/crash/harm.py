"""What a job can do to its own process: end it, one way or another, or leave it other than it was."""

from __future__ import annotations

import ctypes
import locale
import os
import resource
import signal
import sys
import threading
import time

WAYS = "exit 0", "exit 3", "exit in C", "kill", "abort", "segfault", "memory", "stack", "fork bomb"
DAMAGE = "directory", "descriptors", "signals", "locale", "umask", "environment", "thread", "memory", "fork"

_leak: list[bytes] = []


def end(way: str) -> None:
    """Ends the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    match way.split():
        case "exit", "in", "C":  # by way of whatever libraries want to do in the end, and not of Python
            ctypes.CDLL(None).exit(4)
        case "exit", code:
            os._exit(int(code))
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["abort"]:
            os.abort()
        case ["segfault"]:
            ctypes.string_at(0)
        case ["memory"]:
            resource.setrlimit(resource.RLIMIT_AS, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, -1))
            try:
                hoard = [bytearray(1_000_000) for _ in range(100_000)]
            except MemoryError:
                os.abort()  # as C code does whose malloc fails
            raise AssertionError(f"{len(hoard)} MB were to be had")
        case ["stack"]:
            sys.setrecursionlimit(10**9)
            function = ctypes.PYFUNCTYPE(ctypes.py_object)
            deeper = function(lambda: deeper())
            deeper()
        case "fork", "bomb":  # a small one: sixteen processes, with copies of all that the first had open
            first = os.getpid()
            for _ in range(4):
                os.fork()
            if os.getpid() != first:
                time.sleep(600)
            os.kill(first, signal.SIGKILL)
    raise AssertionError(f"alive after {way}")


def damage(what: str, *, keep: str) -> None:
    """Leaves the process other than it was. keep: a variable that stays, whatever happens to the environment."""
    match what:
        case "directory":
            os.chdir("/")
        case "descriptors":
            os.closerange(0, 256)
        case "signals":
            # Only the main thread may, by Python's rules; C code asks nobody.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                ctypes.CDLL(None).signal(number, 1)
        case "locale":
            locale.setlocale(locale.LC_ALL, "C")
        case "umask":
            os.umask(0o777)
        case "environment":
            for name in [name for name in os.environ if name != keep]:
                del os.environ[name]
        case "thread":
            threading.Thread(target=time.sleep, args=[5.0], daemon=True).start()
        case "memory":
            _leak.append(b"x" * (50 << 20))
        case "fork":
            os.fork()  # and both return
        case _:
            raise AssertionError(what)
