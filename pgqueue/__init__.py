"""pgqueue: background jobs for Python on PostgreSQL. The front door; behind it, in the order of a job's life:

app.py         PgQueue: where database, tasks, events and the rooms below meet
task.py        @app.task gives a function its name, options and .enqueue()
arguments.py   a call's arguments to JSON and back as annotated
schedule.py    what is enqueued at its time; ticks.py: when that is; schedules.py: app.schedules
enqueue.py     the application's side: a job inside the caller's own transaction
hooks.py       what an application does to its jobs before they are enqueued
unique.py      when two enqueues are one job; keyed.py: what an enqueue does that finds its key held
drivers/       run a statement on whatever connection the application hands over, a file a library
db.py, sql/    every statement: db.py runs them, one function each; sql/ holds them, one file each
worker/        claim, run, settle, in that order; supervisor.py keeps the processes that do it
context.py     what a running job sees of itself; events.py: who is told what became of it
middleware.py  the application's code around each attempt
failure.py     an exception as text that may be kept and logged
link.py        a worker's connection, which comes back; counts.py: what it counted; logs.py: its lines
maintenance/   chores any worker may do, safe to do twice: rescue, ticks, expire, prune
monitor.py     the operator's eyes; doctor.py: what is wrong with the database; rights.py: what a role lacks
control.py     the operator's hands on dead jobs: redrive, purge; steering.py on live ones: pause, cancel, change
waiting.py     a job's result, waited for
stats.py       what queues, tasks and workers are at, in numbers
environment.py the PGQUEUE_ variables, read strictly
retention.py   how long ended jobs are kept, by the task and by default
job.py, retry.py, settings.py, errors.py, schema.py   the ground all of them stand on
migrate.py     the migrations; versions.py: which there are; compare.py: is a database what is declared?
integrations/  what other systems are told: otel.py, sentry.py
cli/           the commands; embedded.py a PostgreSQL from a wheel; testing.py fixtures
"""

from __future__ import annotations

from pgqueue.app import PgQueue
from pgqueue.context import AppState, Context
from pgqueue.enqueue import NewJob
from pgqueue.errors import (
    ArgsNotJSON,
    BadRow,
    Cancel,
    ClaimLost,
    ConfigurationError,
    DeadLetter,
    DuplicateTask,
    EnqueueError,
    InvalidArguments,
    InvalidOption,
    InvalidTask,
    JobFailed,
    JobNotFound,
    LifespanFailed,
    MissingRight,
    OperationError,
    PgQueueError,
    ResultGone,
    RetryLater,
    ScheduleNotFound,
    ScheduleTaken,
    SchemaError,
    Snooze,
    TaskError,
    TaskTimeout,
    TransactionRefused,
    UniqueKeyTaken,
    UnusableConnection,
    WaitTimeout,
    WorkerError,
)
from pgqueue.job import DeadReason, Job, LogLine, Progress, State
from pgqueue.retry import RetryPolicy
from pgqueue.schedule import Schedule
from pgqueue.schedules import ScheduleStats
from pgqueue.settings import VERSION
from pgqueue.task import Task

__version__ = VERSION

__all__ = [
    "AppState",
    "ArgsNotJSON",
    "BadRow",
    "Cancel",
    "ClaimLost",
    "ConfigurationError",
    "Context",
    "DeadLetter",
    "DeadReason",
    "DuplicateTask",
    "EnqueueError",
    "InvalidArguments",
    "InvalidOption",
    "InvalidTask",
    "Job",
    "JobFailed",
    "JobNotFound",
    "LifespanFailed",
    "LogLine",
    "MissingRight",
    "NewJob",
    "OperationError",
    "PgQueue",
    "PgQueueError",
    "Progress",
    "ResultGone",
    "RetryLater",
    "RetryPolicy",
    "Schedule",
    "ScheduleNotFound",
    "ScheduleStats",
    "ScheduleTaken",
    "SchemaError",
    "Snooze",
    "State",
    "Task",
    "TaskError",
    "TaskTimeout",
    "TransactionRefused",
    "UniqueKeyTaken",
    "UnusableConnection",
    "WaitTimeout",
    "WorkerError",
]
