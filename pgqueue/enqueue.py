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

from pgqueue import db
from pgqueue.arguments import to_json
from pgqueue.drivers import NO_TRANSACTION, AsyncConnection, Call, Steps, SyncConnection, perform_either, sqlstate
from pgqueue.errors import InvalidOption, seconds
from pgqueue.job import Job, State
from pgqueue.retry import RetryPolicy
from pgqueue.settings import BULK_CHARS, BULK_CHUNK, DEFAULT_MAX_ATTEMPTS, DEFAULT_QUEUE, MAX_ARGS_BYTES, NAME
from pgqueue.sql import Statements

_CENTURY = timedelta(days=36_525)
_DECADE = timedelta(days=3_653)


@dataclass(frozen=True, slots=True)
class Options:
    """What one job may say beside its arguments. Checked when made; InvalidOption names the field.

    queue: 1 to 128 of A-Z a-z 0-9 _ . : - · priority: -100..100, higher first · delay: seconds from now, or run_at: an
    aware datetime (in the past: now) · max_attempts: 1 and more · retry: this job's own policy · timeout: seconds an
    attempt may run · expires_in: seconds after it is due, within which it must start · unique_key: 1 to 512 characters;
    while a live job holds it, an enqueue returns that job · tags: up to 32 short texts · meta: a small JSON object ·
    wake: False enqueues without a NOTIFY, which would forbid to prepare the transaction (two-phase commit); the job is
    found by the next poll then.
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
        object.__setattr__(self, "tags", _tags(self.tags))
        if self.meta is not None:
            if not isinstance(self.meta, Mapping):
                raise InvalidOption(f"meta must be a mapping, not {type(self.meta).__name__}")
            to_json(self.meta, "meta", MAX_ARGS_BYTES)
        if not isinstance(self.wake, bool):
            raise InvalidOption(f"wake must be True or False, not {type(self.wake).__name__}")


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
        if "delay" in options and "run_at" not in options:
            options["run_at"] = None  # the later word counts
        elif "run_at" in options and "delay" not in options:
            options["delay"] = 0.0
        return replace(self, options=replace(self.options, **options))

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


@overload
def enqueue(sql: Statements, connection: SyncConnection, new: NewJob) -> Job: ...
@overload
def enqueue(sql: Statements, connection: AsyncConnection, new: NewJob) -> Awaitable[Job]: ...
def enqueue(sql: Statements, connection: SyncConnection | AsyncConnection, new: NewJob) -> Job | Awaitable[Job]:
    """Inserts one job through the caller's connection. Raises EnqueueError, or the driver's own error."""
    return perform_either(connection, enqueue_steps(sql, new))


@overload
def enqueue_many(sql: Statements, connection: SyncConnection, new: Iterable[NewJob]) -> list[int]: ...
@overload
def enqueue_many(sql: Statements, connection: AsyncConnection, new: Iterable[NewJob]) -> Awaitable[list[int]]: ...
def enqueue_many(
    sql: Statements, connection: SyncConnection | AsyncConnection, new: Iterable[NewJob]
) -> list[int] | Awaitable[list[int]]:
    """Inserts all of them or none, consuming the input in chunks; the ids, in input order."""
    return perform_either(connection, enqueue_many_steps(sql, new))


def enqueue_steps(sql: Statements, new: NewJob) -> Steps[Job]:
    """The steps of `enqueue`."""
    row, existing = yield from db.enqueue(sql, new.columns())
    options = new.options
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
            unique_key=options.unique_key,
            existing=True,
        )
    id_, run_at, created_at, _ = row
    return Job(
        id=id_,
        task=new.task,
        queue=options.queue,
        priority=options.priority,
        run_at=run_at,
        max_attempts=options.max_attempts,
        created_at=created_at,
        unique_key=options.unique_key,
        tags=tuple(options.tags),
        meta=None if options.meta is None else dict(options.meta),
    )


def enqueue_many_steps(sql: Statements, new: Iterable[NewJob], chunk: int = BULK_CHUNK) -> Steps[list[int]]:
    """The steps of `enqueue_many`: one statement a chunk, inside a savepoint when there are several."""
    batches = _batches(new, chunk)
    ids: list[int] = []
    batch, more = next(batches)
    if not more and not any(new.options.unique_key for new in batch):
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
        first.options.unique_key is None
        and all(new.options is first.options and new.task == first.task for new in batch)
        and lines.count("\n") == len(batch) - 1
    ):
        ids.extend((yield from db.enqueue_alike(sql, first.columns() | {"args": lines})))
    else:
        rows = [new.columns() for new in batch]
        columns = {column: [row[column] for row in rows] for column in rows[0]}
        columns["tags"] = [None if tags is None else _array(tags) for tags in columns["tags"]]
        keyed = any(columns["unique_key"])
        if keyed:
            yield Call("savepoint pgqueue_enqueue_chunk")
        while (done := (yield from db.enqueue_many(sql, columns))) is None:
            # To insert what is left, while we hold other keys, would be out of order: two batches that did so waited
            # for each other for ever.
            yield Call("rollback to savepoint pgqueue_enqueue_chunk")
        if keyed:
            yield Call("release savepoint pgqueue_enqueue_chunk")
        ids.extend(done)


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


def name(field: str, value: object) -> str:
    """`value` if it is a queue's or task's name; InvalidOption otherwise."""
    if not isinstance(value, str):
        raise InvalidOption(f"{field} must be text, not {type(value).__name__}")
    if not NAME.fullmatch(value):
        raise InvalidOption(f"{field} must be 1 to 128 letters, digits and _ . : - , not {value[:40]!r}")
    return value


def whole(field: str, value: object, least: int, most: int) -> int:
    """`value` if it is an int (no bool) within bounds; InvalidOption otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidOption(f"{field} must be a whole number, not {type(value).__name__}")
    if not least <= value <= most:
        raise InvalidOption(f"{field} must be between {least} and {most}, not {value}")
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


def _array(values: list[str]) -> str:
    """A text[] literal; unnest cannot pass arrays of different lengths side by side."""
    return "{" + ",".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values) + "}"
