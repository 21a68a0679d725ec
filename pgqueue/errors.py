"""Everything pgqueue raises, drawn as one tree.

    PgQueueError
    ├── ConfigurationError (ValueError)      a URL, setting or flag that cannot work
    ├── TaskError                            how a task is declared
    │   ├── InvalidTask (TypeError)          a function that cannot be a task
    │   └── DuplicateTask (ValueError)       two functions under one name
    ├── EnqueueError                         nothing was written; the transaction stays usable
    │   ├── InvalidOption (ValueError)       queue, priority, run_at, max_attempts, ...
    │   ├── InvalidArguments (TypeError)     the call does not fit the task's signature
    │   ├── ArgsNotJSON (TypeError, ValueError)  a value that would not survive the way to the worker
    │   └── UnusableConnection (TypeError)   not a connection, or not one that can take a job now
    ├── WorkerError
    │   ├── ClaimLost                        the job was rescued or cancelled while this run went on
    │   ├── TransactionRefused (RuntimeError)  ctx.transaction() or ctx.complete() where it cannot work
    │   ├── LifespanFailed (RuntimeError)    what an @app.lifespan opens could not be opened, or closed
    │   ├── TaskTimeout (TimeoutError)       an attempt ran longer than its timeout
    │   └── BadRow (ValueError)              a stored job that cannot be read
    ├── OperationError                       what an operator asked for cannot be done
    │   ├── JobNotFound (LookupError)        no such job
    │   ├── JobFailed                        a job that was waited for is dead, cancelled or expired
    │   ├── WaitTimeout (TimeoutError)       it had not ended in time
    │   ├── ResultGone (LookupError)         it has ended, and nothing of it is kept
    │   ├── ScheduleNotFound (LookupError)   no such schedule
    │   ├── ScheduleTaken (ValueError)       the name is that of a schedule which code declares
    │   └── UniqueKeyTaken (ValueError)      a job holds the unique key
    ├── SchemaError                          the database has no usable pgqueue schema
    │   └── MissingRight                     or the role may not use it; the message has the GRANT
    └── EmbeddedPostgresError                no embedded server: nothing to run, or it did not start

    Steer                                    not errors: a job raises them to say how it ends
    ├── RetryLater(delay)                    again after `delay` seconds; uses an attempt
    ├── Snooze(delay)                        again after `delay` seconds; uses none
    ├── Cancel(why)                          end as cancelled
    └── DeadLetter(why)                      to the dead-letter table at once

Messages name the field and the fix, and never carry arguments, passwords or connection strings.
"""

from __future__ import annotations

from datetime import timedelta


class PgQueueError(Exception):
    """Base of everything pgqueue raises."""


class ConfigurationError(PgQueueError, ValueError):
    """A URL, setting or flag that cannot work."""


class TaskError(PgQueueError):
    """A task is declared in a way that cannot work."""


class InvalidTask(TaskError, TypeError):
    """The decorated object cannot be a task: a method, a generator, a lambda, `*args` in its signature."""


class DuplicateTask(TaskError, ValueError):
    """Two functions are registered under one task name."""


class EnqueueError(PgQueueError):
    """The job was not enqueued; nothing was written and the caller's transaction stays usable."""


class InvalidOption(EnqueueError, ValueError):
    """An option of a task or of one call is out of range or of the wrong type."""


class InvalidArguments(EnqueueError, TypeError):
    """The call does not fit the task's signature."""


class ArgsNotJSON(EnqueueError, TypeError, ValueError):
    """A value would not survive the way to the worker; the message names its place, e.g. `args.items[3].price`."""


class UnusableConnection(EnqueueError, TypeError):
    """Not a connection pgqueue knows, or one that cannot take a job now (closed, aborted, read-only)."""


class WorkerError(PgQueueError):
    """Something a worker ran into."""


class ClaimLost(WorkerError):
    """The job was rescued or cancelled while this run went on; its result is dropped."""


class TransactionRefused(WorkerError, RuntimeError):
    """`ctx.transaction()` or `ctx.complete()` where it cannot work: without a worker, twice, `with` in an async job."""


class LifespanFailed(WorkerError, RuntimeError):
    """What an `@app.lifespan` opens could not be opened, ended by itself or did not close; the message names it."""


class TaskTimeout(WorkerError, TimeoutError):
    """An attempt ran longer than its timeout."""


class BadRow(WorkerError, ValueError):
    """A stored job that cannot be read: its arguments, its retry policy or its dates."""


class OperationError(PgQueueError):
    """What an operator asked for cannot be done."""


class JobNotFound(OperationError, LookupError):
    """There is no such job."""


class JobFailed(OperationError):
    """A job that was waited for has ended, and not well. state: dead, cancelled or expired; reason: why it is dead, see
    DeadReason; error: its last error, or why it was cancelled, as it is stored."""

    def __init__(
        self, message: str, *, job_id: int = 0, state: str = "", reason: str | None = None, error: str | None = None
    ) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.state = state
        self.reason = reason
        self.error = error


class WaitTimeout(OperationError, TimeoutError):
    """A job that was waited for had not ended in time; it goes on."""


class ResultGone(OperationError, LookupError):
    """A job that was waited for is nowhere any more: it has ended and was not kept, or its enqueue was rolled back."""


class ScheduleNotFound(OperationError, LookupError):
    """There is no such schedule."""


class ScheduleTaken(OperationError, ValueError):
    """The name is that of a schedule which code declares: it is changed there."""


class UniqueKeyTaken(OperationError, ValueError):
    """A job holds the unique key: of a redrive, or of an enqueue with on_conflict="raise". Nothing was written."""


class SchemaError(PgQueueError):
    """The database has no pgqueue schema, or one that this version cannot use."""


class MissingRight(SchemaError):
    """The role may not do this: the message has what the server said of it, alone in `said`, and the GRANT."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class EmbeddedPostgresError(PgQueueError):
    """No server: nothing to run, nowhere to run it, or it did not start (the message ends with its last words)."""


class Steer(Exception):
    """Base of what a job raises to say how it ends."""


class RetryLater(Steer):
    """Run the job again after `delay` seconds (default: as its retry policy says). Uses an attempt."""

    def __init__(self, delay: float | None = None, why: str = "") -> None:
        super().__init__(why or "the job asked to be retried later")
        self.delay = None if delay is None else seconds("RetryLater(delay)", delay)


class Snooze(Steer):
    """Run the job again after `delay` seconds, as if it had not started: no attempt is used."""

    def __init__(self, delay: float) -> None:
        super().__init__(f"snoozed for {delay} s")
        self.delay = seconds("Snooze(delay)", delay)


class Cancel(Steer):
    """End the job as cancelled."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why or "the job cancelled itself")


class DeadLetter(Steer):
    """Send the job to the dead-letter table at once, whatever attempts are left."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why or "the job asked for the dead-letter table")


def seconds(name: str, value: object, *, least: float = 0.0, most: float = 10 * 366 * 86400.0) -> float:
    """`value` (a number or a timedelta) as seconds within [least, most]; InvalidOption names the field otherwise.

    Ten years is the most that any duration may be: run_at is refused beyond that as well.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not least <= value <= most:  # NaN compares false
        raise InvalidOption(f"{name} must be between {least:g} and {most:g} seconds, not {value!r}")
    return float(value)


def whole(field: str, value: object, least: int, most: int) -> int:
    """`value` if it is an int (no bool) within bounds; InvalidOption otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidOption(f"{field} must be a whole number, not {type(value).__name__}")
    if not least <= value <= most:
        raise InvalidOption(f"{field} must be between {least} and {most}, not {value}")
    return value


MAX_ID = 2**63 - 1  # of PostgreSQL's bigint


def checked_id(value: object) -> int:
    """`value` if it may be a job's id; InvalidOption otherwise."""
    return whole("a job's id", value, 0, MAX_ID)


def checked_ids(ids: object) -> list[int]:
    """Ids of jobs, in their order, each once."""
    if isinstance(ids, str | bytes) or not isinstance(ids, list | tuple | set | frozenset):
        raise InvalidOption(f"ids must be a list of job ids, not {type(ids).__name__}")
    return sorted({checked_id(one) for one in ids})
