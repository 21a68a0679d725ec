"""What every driver shares: the statement (Call), the generators that yield it (Steps), and who plays them.

Each step of db.py is a generator that yields `Call`s and is sent their rows, so it is written once for sync and async.
A driver gives a function that runs one Call on a connection; `play` runs all of them with it, `play_async` awaits it.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from pgqueue import rights
from pgqueue.errors import SchemaError, UnusableConnection
from pgqueue.versions import head

T = TypeVar("T")
Rows: TypeAlias = list[tuple[Any, ...]]


class Call(NamedTuple):
    """One statement and its parameters; never None, with which psycopg would take %% for two signs.

    notifies: it may send a NOTIFY, with which no transaction can be prepared for a two-phase commit. binary: numbers
    come as they are, and need no reading; of a worker's own statements alone, for whoever else may use another driver.
    """

    text: str
    params: Mapping[str, Any] = MappingProxyType({})
    notifies: bool = False
    binary: bool = False

    def __repr__(self) -> str:  # without the values: an error report prints the variables around it
        return f"<Call of {' '.join(self.text.split())[:40]!r}>"


Steps: TypeAlias = Generator[Call, Rows, T]
Run: TypeAlias = Callable[[Call], Rows]
RunAsync: TypeAlias = Callable[[Call], Awaitable[Rows]]
Explain: TypeAlias = Callable[[BaseException, Call], BaseException]

CLOSED = "the connection is closed"
ABORTED = "the transaction is aborted by an earlier error: roll it back first"
READ_ONLY = "the transaction is read-only, and a job is a row that has to be written: enqueue in one that may write"
STANDBY = "the server is a standby, where nothing can be written: connect to the primary"
TWO_PHASE = (
    "this transaction is to be prepared (two-phase commit), which a wake-up by NOTIFY would forbid: "
    "enqueue with .options(wake=False); a worker finds the job when it polls"
)

NO_TRANSACTION = "25P01"
NO_RIGHT = "42501"
UNIQUE_VIOLATION = "23505"
_NOT_OURS = {
    "42P01": "the schema holds no pgqueue tables, or not those of migration {}, this version's: run `pgqueue migrate`",
    "3F000": "the schema holds no pgqueue tables: run `pgqueue migrate`",
    "42703": "the schema is another version's: this one needs migration {}: run `pgqueue migrate`; --check compares",
}
_REFUSALS = {"25P02": ABORTED, "25006": READ_ONLY}


def play(run: Run, steps: Steps[T], explain: Explain = lambda error, call: error) -> T:
    """Runs the steps with a driver's function. explain: what an error is called before the steps hear of it."""
    try:
        call = next(steps)
        while True:
            try:
                rows = run(call)
            # Of an interruption, too: a step may have something to undo, and may know better what an error means.
            except BaseException as error:
                call = steps.throw(explain(error, call))
            else:
                call = steps.send(rows)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def play_async(run: RunAsync, steps: Steps[T], explain: Explain = lambda error, call: error) -> T:
    """`play` with a function that is awaited."""
    try:
        call = next(steps)
        while True:
            try:
                rows = await run(call)
            except BaseException as error:
                call = steps.throw(explain(error, call))
            else:
                call = steps.send(rows)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def sqlstate(error: BaseException | None) -> str | None:
    """The server's five letters, whichever driver raised it, and whoever wrapped it; None if no server did."""
    for _ in range(8):
        if error is None:
            break
        # psycopg and asyncpg; psycopg2
        for found in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None)):
            if isinstance(found, str):
                return found
        error = getattr(error, "orig", None) or error.__cause__  # SQLAlchemy; Django
    return None


def explaining(role: Callable[[], str | None]) -> Explain:
    """What the server says on a connection, in our words. role: who has logged in there.

    UnusableConnection for what it says of a transaction that cannot take a job, SchemaError for tables that are missing
    or another version's, MissingRight for a right that the role lacks; any other error itself, without the row.
    """

    def explain(error: BaseException, call: Call) -> BaseException:
        state = sqlstate(error) or ""
        if isinstance(error, UnusableConnection):
            return error
        said = (str(error).splitlines() or [state])[0]
        made: Exception
        if state in _REFUSALS:
            made = UnusableConnection(_REFUSALS[state])
        elif state in _NOT_OURS:  # the server's first line names a table or column of ours, and no value
            if "alembic_version" in said:
                state = "3F000"  # where that is missing, so is all the rest
            made = SchemaError(f"{_NOT_OURS[state].format(head())} ({said})")
        elif state == NO_RIGHT and _of_the_catalogue(error) and (wanted := rights.of(call.text)) and (who := role()):
            made = rights.refused(said, rights.named(wanted, said), who)
        else:
            return _without_values(error)
        made.__cause__ = error
        return made

    return explain


def _without_values(error: BaseException) -> BaseException:
    """The error, whose text is what the server says first: its DETAIL may quote the row (`Failing row contains (…)`),
    its CONTEXT the parameters, and what an application logs of an error is to hold no arguments. psycopg has them in
    `error.diag` all the same."""
    told = (
        [error] if error.__cause__ is None else [error, error.__cause__]
    )  # Django's, and the driver's with the same text
    for one in told:
        primary = getattr(getattr(one, "diag", None), "message_primary", None)
        if isinstance(primary, str):  # psycopg and psycopg2
            for each in told:
                each.args = (primary, *each.args[1:])
        for part in ("detail", "hint", "context"):  # asyncpg
            if isinstance(getattr(one, part, None), str):
                setattr(one, part, None)
    return error


def _of_the_catalogue(error: BaseException | None) -> bool:
    """Whether it is for want of a GRANT, and not because of a row security policy or somebody's trigger. The message is
    in the server's language; where in the server's source it was made is not."""
    for _ in range(8):
        if error is None:
            break
        # psycopg and psycopg2; asyncpg
        found = getattr(getattr(error, "diag", None), "source_function", None)
        found = found or getattr(error, "server_source_function", None)
        if isinstance(found, str):
            return found.startswith("aclcheck_error") or found == "nextval_internal"
        error = getattr(error, "orig", None) or error.__cause__
    return False


_owners: WeakKeyDictionary[object, int] = WeakKeyDictionary()  # driver's connection -> process that used it first
_inherited: dict[tuple[int, int], int] = {}  # (device, inode) of a socket that this process got by a fork -> from whom


def check_process(raw: object, descriptor: Callable[[], int]) -> None:
    """Raises UnusableConnection for a connection that was opened before this process was forked: it shares its socket
    with the parent, and the two would read each other's answers. descriptor: gives the number of that socket.

    The socket tells, also where the parent has never enqueued: while it is open none other has its inode. Where the
    system does not say so much of sockets (macOS), the process tells that first enqueued on the connection.
    """
    owner = _inherited.get(_socket(descriptor), os.getpid()) if _inherited else os.getpid()
    if owner == os.getpid():
        owner = _owners.setdefault(raw, owner)
    if owner != os.getpid():
        raise UnusableConnection(
            f"the connection was opened by process {owner}, and this is a fork of it: open another here "
            "(SQLAlchemy: engine.dispose(close=False) after the fork)"
        )


def _socket(descriptor: Callable[[], int]) -> tuple[int, int]:
    """Which socket that is; (0, 0) for what is none, or where the system does not say."""
    with suppress(Exception):
        found = os.fstat(descriptor())
        if stat.S_ISSOCK(found.st_mode) and found.st_ino:
            return found.st_dev, found.st_ino
    return 0, 0


def _look_at_what_was_inherited() -> None:
    """In a child, after each fork; 2 µs for each descriptor that is open."""
    with suppress(OSError):
        sockets = {_socket(partial(int, name)) for name in os.listdir("/dev/fd")} - {(0, 0)}
        before = dict(_inherited)
        _inherited.clear()
        _inherited.update({one: before.get(one, os.getppid()) for one in sockets})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_look_at_what_was_inherited)


def check_loop(loop: object) -> None:
    """Raises UnusableConnection when an async connection is of another event loop than the running one."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:  # no loop in this thread: whoever awaits will say so
        return
    if loop is not None and loop is not running:
        raise UnusableConnection("the connection belongs to another event loop (and thread, maybe): open one in this")


_loops: WeakKeyDictionary[object, asyncio.AbstractEventLoop] = WeakKeyDictionary()  # connection -> of its first use


def check_first_loop(raw: object) -> None:
    """check_loop for a driver whose connections know no loop: the one counts in which the first job was enqueued, as
    long as it is open. After that the connection may be handed on."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return
    first = _loops.setdefault(raw, running)
    if first.is_closed():
        _loops[raw] = first = running
    check_loop(first)


@lru_cache(maxsize=512)
def numbered(text: str) -> tuple[str, tuple[str, ...]]:
    """A statement for a driver that takes $1, $2, …, and the names of these parameters, in their order.

    A name that occurs twice keeps its number, %% becomes one sign.
    """
    names: dict[str, int] = {}

    def place(found: re.Match[str]) -> str:
        name = found[1]
        return "%" if name is None else f"${names.setdefault(name, len(names) + 1)}"

    return re.sub(r"%(?:%|\((\w+)\)s)", place, text), tuple(names)


def positional(call: Call) -> tuple[str, list[Any]]:
    """The call as text with $1, $2, … and the values in their order."""
    text, names = numbered(call.text)
    return text, [call.params[name] for name in names]
