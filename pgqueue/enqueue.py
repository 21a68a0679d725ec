"""Step 1 of a job's life, enqueue: a row in the caller's own transaction, there when it commits, gone when it does not.

Before: task.py, which knows the function. After: worker/claim.py. Promise: nothing is committed, rolled back or opened
here; what cannot be stored is refused before any SQL, so that the caller's transaction stays usable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, overload

from pgqueue import db, keyed
from pgqueue.arguments import to_json
from pgqueue.drivers import NO_TRANSACTION, AsyncConnection, Call, Steps, SyncConnection, perform_either, sqlstate
from pgqueue.errors import InvalidOption, seconds, whole
from pgqueue.job import Job, State, Waits, at_home
from pgqueue.retry import RetryPolicy
from pgqueue.settings import BULK_CHARS, BULK_CHUNK, DEFAULT_MAX_ATTEMPTS, DEFAULT_QUEUE, MAX_ARGS_BYTES, NAME
from pgqueue.sql import Statements
from pgqueue.unique import OnConflict, Unique, Until, check_names, check_with_key, key_of

_CENTURY = timedelta(days=36_525)
_DECADE = timedelta(days=3_653)


@dataclass(frozen=True, slots=True)
class Options:
    """What one job may say beside its arguments. Checked when made; InvalidOption names the field.

    queue: 1 to 128 of A-Z a-z 0-9 _ . : - · priority: -100..100, higher first · delay: seconds from now, or run_at: an
    aware datetime (in the past: now) · max_attempts: 1 and more · retry: this job's own policy · timeout: seconds an
    attempt may run · expires_in: seconds after it is due, within which it must start · unique_key: 1 to 512 characters;
    while a live job holds it, an enqueue returns that job · unique: True or names of arguments: a key of the task's
    name and those · unique_until: "finished" or "claimed", or unique_for, seconds from now: how long it is held ·
    on_conflict: what a call whose key is held does: "keep", "replace", "replace_args", "replace_run_at", "debounce",
    "raise" · debounce_for: seconds after its created_at, up to which a job is debounced · tags: up to 32 short texts ·
    meta: a small JSON object · wake: False enqueues without a NOTIFY, which would forbid to prepare the transaction
    (two-phase commit); the job is found by the next poll then.
    """

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    delay: float | timedelta = 0.0
    run_at: datetime | None = None
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    retry: RetryPolicy | None = None
    timeout: float | timedelta | None = None
    expires_in: float | timedelta | None = None
    unique_key: str | None = None
    unique: bool | tuple[str, ...] | list[str] = False
    unique_until: Until = "finished"
    unique_for: float | timedelta | None = None
    on_conflict: OnConflict = "keep"
    debounce_for: float | timedelta | None = None
    tags: tuple[str, ...] | list[str] = ()
    meta: Mapping[str, Any] | None = None
    wake: bool = True

    def __post_init__(self) -> None:
        name("queue", self.queue)
        whole("priority", self.priority, -100, 100)
        whole("max_attempts", self.max_attempts, 1, 2**31 - 1)
        object.__setattr__(self, "delay", seconds("delay", self.delay))
        if self.run_at is not None:
            moment("run_at", self.run_at)
            if self.delay:
                raise InvalidOption("give either delay or run_at, not both")
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise InvalidOption(f"retry must be a RetryPolicy, not {type(self.retry).__name__}")
        if self.timeout is not None:
            object.__setattr__(self, "timeout", seconds("timeout", self.timeout, least=0.001))
        if self.expires_in is not None:
            object.__setattr__(self, "expires_in", seconds("expires_in", self.expires_in, least=0.001))
        if self.unique_key is not None:
            key("unique_key", self.unique_key)
        object.__setattr__(self, "unique", check_names(self.unique))
        for one in ("unique_for", "debounce_for"):
            if getattr(self, one) is not None:
                object.__setattr__(self, one, seconds(one, getattr(self, one), least=0.001))
        if self.unique and self.unique_key is not None:
            raise InvalidOption("give either unique, for a key made of arguments, or unique_key, not both")
        check_with_key(
            self.has_key,
            unique_until=self.unique_until,
            unique_for=self.unique_for,  # type: ignore[arg-type]
            on_conflict=self.on_conflict,
            debounce_for=self.debounce_for,  # type: ignore[arg-type]
        )
        object.__setattr__(self, "tags", _tags(self.tags))
        if self.meta is not None:
            if not isinstance(self.meta, Mapping):
                raise InvalidOption(f"meta must be a mapping, not {type(self.meta).__name__}")
            to_json(self.meta, "meta", MAX_ARGS_BYTES)
        if not isinstance(self.wake, bool):
            raise InvalidOption(f"wake must be True or False, not {type(self.wake).__name__}")

    @property
    def has_key(self) -> bool:
        """Whether its jobs are unique, by whichever key."""
        return self.unique_key is not None or self.unique is not False


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that is not enqueued yet: `task.job(...)`, for `app.enqueue_many`."""

    task: str
    args: str = field(repr=False)
    options: Options

    def replace(self, **options: Any) -> NewJob:
        """The same call with other options, the fields of `Options`; for a hook. Raises InvalidOption."""
        if unknown := sorted(set(options) - {one.name for one in fields(Options)}):
            raise InvalidOption(f"a job has no option {unknown[0]!r}; see Options")
        later_word(options, self.options)
        return replace(self, options=replace(self.options, **options))

    @property
    def by_key(self) -> Unique | None:
        """What it is unique by; None: nothing. Raises InvalidOption."""
        options = self.options
        if not options.has_key:
            return None
        key = options.unique_key
        if key is None:
            key = key_of(self.task, self.args, None if options.unique is True else options.unique)  # type: ignore[arg-type]
        return Unique(
            key,
            options.unique_until,
            options.unique_for,  # type: ignore[arg-type]
            options.on_conflict,
            options.debounce_for,  # type: ignore[arg-type]
        )

    def wanted(self) -> keyed.Wanted:
        """Its row, and what it is unique by, whose key is then the row's."""
        by, columns = self.by_key, self.columns()
        if by is not None:
            columns["unique_key"] = by.key
        return keyed.Wanted(columns, by)

    def columns(self) -> dict[str, Any]:
        """The row as the enqueue statements take it."""
        options = self.options
        return {
            "queue": options.queue,
            "task": self.task,
            "priority": options.priority,
            "run_at": options.run_at,
            "delay": options.delay,
            "max_attempts": options.max_attempts,
            "expires_in": options.expires_in,
            "timeout": options.timeout,
            "args": self.args,
            "retry": None if options.retry is None else to_json(options.retry.to_json(), "retry", MAX_ARGS_BYTES),
            "unique_key": options.unique_key,
            "tags": list(options.tags) or None,
            "meta": None if options.meta is None else to_json(options.meta, "meta", MAX_ARGS_BYTES),
            "wake": options.wake,
        }


class Sender:
    """The steps of an app's enqueues. What is to be around each of them, from the first statement to the last, takes
    the place of the app's; see integrations/otel.py."""

    def one(self, sql: Statements, new: NewJob, home: Waits) -> Steps[Job]:
        return enqueue_steps(sql, new, home)

    def many(self, sql: Statements, new: Iterable[NewJob]) -> Steps[list[int]]:
        return enqueue_many_steps(sql, new)


@overload
def enqueue(sender: Sender, sql: Statements, connection: SyncConnection, new: NewJob, home: Waits) -> Job: ...
@overload
def enqueue(
    sender: Sender, sql: Statements, connection: AsyncConnection, new: NewJob, home: Waits
) -> Awaitable[Job]: ...
def enqueue(
    sender: Sender, sql: Statements, connection: SyncConnection | AsyncConnection, new: NewJob, home: Waits
) -> Job | Awaitable[Job]:
    """Inserts one job through the caller's connection. home: who can wait for it. Raises EnqueueError, or the driver's
    own error."""
    return perform_either(connection, sender.one(sql, new, home))


@overload
def enqueue_many(sender: Sender, sql: Statements, connection: SyncConnection, new: Iterable[NewJob]) -> list[int]: ...
@overload
def enqueue_many(
    sender: Sender, sql: Statements, connection: AsyncConnection, new: Iterable[NewJob]
) -> Awaitable[list[int]]: ...
def enqueue_many(
    sender: Sender, sql: Statements, connection: SyncConnection | AsyncConnection, new: Iterable[NewJob]
) -> list[int] | Awaitable[list[int]]:
    """Inserts all of them or none, consuming the input in chunks; the ids, in input order."""
    return perform_either(connection, sender.many(sql, new))


def enqueue_steps(sql: Statements, new: NewJob, home: Waits) -> Steps[Job]:
    """The steps of `enqueue`."""
    return at_home((yield from _enqueue(sql, new)), home)


def _enqueue(sql: Statements, new: NewJob) -> Steps[Job]:
    options = new.options
    by, columns = new.by_key, new.columns()
    if by is None:
        row, existing = yield from db.enqueue(sql, columns)
    else:
        row, existing = yield from keyed.enqueue(sql, columns, by)
    unique_key = None if by is None else by.key
    if existing:
        id_, task, queue, state, priority, run_at, attempt, max_attempts, created_at = row
        return Job(
            id=id_,
            task=task,
            queue=queue,
            state=State(state),
            priority=priority,
            run_at=run_at,
            attempt=attempt,
            max_attempts=max_attempts,
            created_at=created_at,
            unique_key=unique_key,
            existing=True,
        )
    id_, run_at, created_at = row[:3]
    return Job(
        id=id_,
        task=new.task,
        queue=options.queue,
        priority=options.priority,
        run_at=run_at,
        max_attempts=options.max_attempts,
        created_at=created_at,
        unique_key=unique_key,
        tags=tuple(options.tags),
        meta=None if options.meta is None else dict(options.meta),
    )


def enqueue_many_steps(sql: Statements, new: Iterable[NewJob], chunk: int = BULK_CHUNK) -> Steps[list[int]]:
    """The steps of `enqueue_many`: one statement a chunk, inside a savepoint when there are several."""
    batches = _batches(new, chunk)
    ids: list[int] = []
    batch, more = next(batches)
    if not more and not any(new.options.has_key for new in batch):
        yield from _insert(sql, batch, ids)
        return ids
    # Several statements: a bad job in a later chunk, or an autocommitting connection, must not leave the earlier ones.
    bracket = yield from _open_bracket()
    try:
        yield from _insert(sql, batch, ids)
        for batch, _ in batches:
            yield from _insert(sql, batch, ids)
    except GeneratorExit:  # nobody runs statements for us any more
        raise
    except BaseException:  # an interruption, too: nobody knows of the transaction that we may have begun
        with suppress(Exception):  # what went wrong first is what the caller should hear
            for undo in bracket.undo:
                yield Call(undo)
        raise
    yield Call(bracket.keep)
    return ids


def _batches(new: Iterable[NewJob], chunk: int) -> Iterator[tuple[list[NewJob], bool]]:
    """The input in chunks, and whether one was full, so that more may follow; at least one, be it empty."""
    batch, size = list[NewJob](), 0
    for job in new:
        batch.append(job)
        size += len(job.args)
        if len(batch) == chunk or size > BULK_CHARS:
            yield batch, True
            batch, size = [], 0
    yield batch, False


def _insert(sql: Statements, batch: list[NewJob], ids: list[int]) -> Steps[None]:
    if not batch:
        return
    first = batch[0]
    lines = "\n".join([new.args for new in batch])
    if (
        not first.options.has_key
        and all(new.options is first.options and new.task == first.task for new in batch)
        and lines.count("\n") == len(batch) - 1
    ):
        ids.extend((yield from db.enqueue_alike(sql, first.columns() | {"args": lines})))
    else:
        ids.extend((yield from keyed.enqueue_many(sql, [new.wanted() for new in batch])))


@dataclass(frozen=True, slots=True)
class _Bracket:
    undo: tuple[str, ...]
    keep: str


def _open_bracket() -> Steps[_Bracket]:
    """A savepoint; on a connection that commits each statement by itself, a transaction, as one statement would be."""
    try:
        yield Call("savepoint pgqueue_enqueue_many")
    except Exception as error:
        if sqlstate(error) != NO_TRANSACTION:
            raise
        yield Call("begin")
        return _Bracket(undo=("rollback",), keep="commit")
    keep = "release savepoint pgqueue_enqueue_many"
    return _Bracket(undo=("rollback to savepoint pgqueue_enqueue_many", keep), keep=keep)


def later_word(options: Any, before: Options) -> None:
    """Of options that exclude each other the later ones, these, count: run_at and delay; a key of one kind and one of
    the other, and what goes with a key goes with it."""
    if "delay" in options and "run_at" not in options:
        options["run_at"] = None
    elif "run_at" in options and "delay" not in options:
        options["delay"] = 0.0
    if options.get("unique_key") is not None:
        options.setdefault("unique", False)
    elif "unique" in options:
        options.setdefault("unique_key", None)
    if "unique_until" in options:
        options.setdefault("unique_for", None)
    elif options.get("unique_for") is not None:
        options.setdefault("unique_until", "finished")
    if options.get("on_conflict", "debounce") != "debounce":
        options.setdefault("debounce_for", None)
    if options.get("unique", before.unique) is False and options.get("unique_key", before.unique_key) is None:
        options.setdefault("unique_until", "finished")
        options.setdefault("unique_for", None)
        options.setdefault("on_conflict", "keep")
        options.setdefault("debounce_for", None)


def name(field: str, value: object) -> str:
    """`value` if it is a queue's or task's name; InvalidOption otherwise."""
    if not isinstance(value, str):
        raise InvalidOption(f"{field} must be text, not {type(value).__name__}")
    if not NAME.fullmatch(value):
        raise InvalidOption(f"{field} must be 1 to 128 letters, digits and _ . : - , not {value[:40]!r}")
    return value


def moment(field: str, value: object) -> None:
    """Nothing if it is an aware datetime not too far away; InvalidOption otherwise."""
    if not isinstance(value, datetime):
        raise InvalidOption(f"{field} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidOption(f"{field} must have a time zone, e.g. datetime.now(UTC) + timedelta(hours=1)")
    now = datetime.now(UTC)
    if not now - _CENTURY <= value <= now + _DECADE:
        raise InvalidOption(f"{field} must lie within the next ten years, not in {value.year}")


def key(field: str, value: object) -> None:
    """Nothing if it is a short text that PostgreSQL can hold; InvalidOption otherwise."""
    if not isinstance(value, str):
        raise InvalidOption(f"{field} must be text, not {type(value).__name__}")
    if not value.strip() or "\0" in value or len(value) > 512:
        raise InvalidOption(f"{field} must be 1 to 512 characters, not only spaces, without NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidOption(f"{field} contains a lone surrogate, which is not valid text") from None


def _tags(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, tuple | list):
        raise InvalidOption(f"tags must be a list of text, not {type(value).__name__}")
    if len(value) > 32:
        raise InvalidOption(f"tags may be 32 at most, not {len(value)}")
    for tag in value:
        key("a tag", tag)
    return tuple(value)
