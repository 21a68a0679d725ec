"""What a running job can see of itself: a parameter annotated `Context` is filled in by the worker."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from pgqueue.errors import InvalidOption, TransactionRefused
from pgqueue.job import Job
from pgqueue.settings import MAX_NOTE_CHARS

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

S = TypeVar("S", covariant=True)
A = TypeVar("A", covariant=True)


_DUST = 1e-9  # what adding up tenths may be beside 1


class Transaction(Protocol[S, A]):
    """What `ctx.transaction()` returns: `with` gives S, `async with` gives A. An exception goes through it."""

    def __enter__(self) -> S: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...
    async def __aenter__(self) -> A: ...
    async def __aexit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...


class Own(Protocol):
    """What a job may settle by itself; its worker's, see worker/transaction.py."""

    def transaction(self, *, driver: bool) -> Transaction[Any, Any]: ...
    def complete(self, result: Any) -> None: ...
    def progress(self, fraction: float, note: str | None) -> None: ...


class AppState:
    """What the app's lifespans have opened, by the names they gave it: `state.pool = ...`, then `ctx.state.pool`.

    What an application puts there itself stays; what a lifespan puts there is gone when its worker has stopped.
    """

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"app.state has no {name!r} here: an @app.lifespan that sets state.{name} runs where a worker does"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Of any name and type, for type checkers, too."""
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"<AppState {', '.join(vars(self)) or 'empty'}>"


Keep = Callable[[int, object, tuple[object, ...], BaseException | None], None]
"""Takes a line of a job whose task keeps them: its level, its text, what is to be put into that, and an error."""


class JobLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines carry job id, task and attempt."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class KeptLogger(JobLogger):
    """The same for a task that keeps what its jobs log."""

    def __init__(self, logger: logging.Logger, extra: Mapping[str, object], keep: Keep) -> None:
        super().__init__(logger, extra)
        self._keep = keep

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Every line of an adapter goes through here. Kept is what is of level info or higher, or is logged anyway."""
        if level >= logging.INFO or self.isEnabledFor(level):
            error = kwargs.get("exc_info")
            error = error[1] if isinstance(error, tuple) else sys.exc_info()[1] if error is True else error
            self._keep(level, msg, args, error if isinstance(error, BaseException) else None)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller's line, not this one
        super().log(level, msg, *args, **kwargs)


@dataclass(slots=True)
class Context:
    """One run of a job, from the inside.

    job: id, task, queue, attempt (1 in the first run), max_attempts, fence (rises with each run; hand it to outside
    systems that should refuse a late writer), run_at, tags, meta. log: a logger whose lines name the job. state: what
    the app's lifespans have opened, `app.state`.
    """

    job: Job
    log: JobLogger
    state: AppState = field(default_factory=AppState, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _own: Own | None = field(default=None, repr=False)
    _late: bool = field(default=False, repr=False)  # its time is up: whatever it does now, the attempt has failed

    @property
    def cancelled(self) -> bool:
        """True once the job should end: an operator cancelled it, its worker's grace period is over, its time is up, or
        its claim was found lost. For sync tasks."""
        return self._stop.is_set()

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Says how far the job is, 0 to 1, and what it is at: for `jobs show`, `app.jobs.progress(id)`, the table.

        Sync and async alike, from any thread; waits for nothing. The worker writes it within a second, the last word at
        the latest with the job's end, and nothing once the job was taken from this run: then `cancelled` becomes true.
        note: up to 1,000 characters. Without a worker nobody is told. Raises InvalidOption.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float):
            raise InvalidOption(f"progress must be a number between 0 and 1, not {type(fraction).__qualname__}")
        if not -_DUST <= fraction <= 1 + _DUST:
            raise InvalidOption(f"progress must be between 0 and 1, not {_short(fraction)}")
        if note is not None:
            if not isinstance(note, str):
                raise InvalidOption(f"note must be text, not {type(note).__qualname__}")
            if len(note) > MAX_NOTE_CHARS:
                raise InvalidOption(f"note must be at most {MAX_NOTE_CHARS:,} characters, not {len(note):,}")
            if "\0" in note or any("\ud800" <= letter <= "\udfff" for letter in note):
                raise InvalidOption("note must be text without NUL or lone surrogates, which PostgreSQL cannot store")
        if self._own is not None:
            self._own.progress(min(max(float(fraction), 0.0), 1.0), note)

    @overload
    def transaction(self, *, driver: Literal[False] = False) -> Transaction[Session, AsyncSession]: ...
    @overload
    def transaction(
        self, *, driver: Literal[True]
    ) -> Transaction[psycopg.Connection[tuple[Any, ...]], psycopg.AsyncConnection[tuple[Any, ...]]]: ...
    def transaction(self, *, driver: bool = False) -> Transaction[Any, Any]:
        """A transaction whose commit also completes the job: `with ctx.transaction() as session:`.

        `with` gives an SQLAlchemy Session, `async with` an AsyncSession; driver=True a psycopg connection. At the end
        of the block the completion is written into it, checked against the fence, and all is committed. Raises
        ClaimLost there when the job was taken from this run: everything is rolled back. An exception inside rolls back,
        and the job is settled as it ends. Raises TransactionRefused without a worker, for a second one, and for a
        `with` in an async job.
        """
        return self._owned("transaction").transaction(driver=driver)

    def complete(self, result: Any) -> None:
        """Inside ctx.transaction(): what its commit stores as the job's result; without it that is null."""
        self._owned("complete").complete(result)

    def _owned(self, name: str) -> Own:
        if self._own is None:
            raise TransactionRefused(
                f"ctx.{name}() needs a worker, whose claim it completes: this Context was made by hand; "
                "in tests run the job with app.worker(drain=True)"
            )
        return self._own


def _short(number: object) -> str:
    """An int of 5,000 digits cannot be printed, and nobody would read it."""
    return (
        f"{number:g}"
        if isinstance(number, float) or (isinstance(number, int) and abs(number) < 10**15)
        else "a number of that size"
    )
