"""Tables, constraints, indexes: what Alembic compares a database with.

    jobs            live jobs only; a job leaves it in the statement that ends it
    job_errors      failed attempts of live jobs, insert-only until the job ends; then they move along with it
    finished_jobs   completed, cancelled, expired; one partition a day, emptied whole
    dead_jobs       the dead-letter table; a job stays until it is redriven or purged
    workers         one row for each process that claims; its lease is what rescue goes by
    sleepers        idle workers an enqueue may wake; a hint only, so UNLOGGED
    queues          a row for each queue that somebody paused
    paused_tasks    a row for each task that is paused
    retention       how long ended jobs are kept, for each task that says so
    schedules       what is enqueued at its time, and when that is next
    progress        how far running jobs are, of those that say so
    job_logs        what jobs say in their logs, of tasks that keep it; insert-only
    unique_periods  keys that are held for a period, whatever becomes of their job
    waiters         who waits for which job's end; a hint only, so UNLOGGED

No foreign keys and no columns that grow on `jobs`: it is the hot table. Text with a named CHECK instead of enums, so
that a state can be added without rewriting a type. Functions and views are in sql/function and sql/view.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Float,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

VERSION_TABLE = "alembic_version"

# Storage parameters, set by ALTER TABLE: SQLAlchemy 2.0 cannot declare them.
STORAGE: dict[str, dict[str, str]] = {
    "jobs": {
        "fillfactor": "85",  # a claimed row's new version finds room on its page
        "autovacuum_vacuum_scale_factor": "0.02",  # every job is dead rows: vacuum early,
        "autovacuum_vacuum_cost_delay": "0",  # and do not nap over it
        "autovacuum_analyze_scale_factor": "0.05",
    },
    # A few rows, updated all the time: vacuum by count, and leave room for the new versions.
    "workers": {
        "fillfactor": "50",
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": "200",
    },
    "sleepers": {
        "fillfactor": "50",
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": "200",
    },
    "waiters": {
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": "200",
    },
    "progress": {
        "fillfactor": "70",
        "autovacuum_vacuum_scale_factor": "0.05",
        "autovacuum_vacuum_threshold": "1000",
    },
}

# Views that run with the rights of whoever asks, on PostgreSQL 15 and newer, where that can be said: a row security
# policy holds through them. Set by ALTER VIEW, since 14 would not take a CREATE that says so. `failed_attempts` is not
# among them, see its header.
INVOKERS = ("job_history", "all_jobs", "queue_stats", "task_stats", "worker_stats", "schedule_stats", "health")
INVOKERS_SINCE = (15,)  # the server's version


def _job_columns() -> list[Column[object]]:
    """What a job carries with it through all of its tables."""
    return [
        Column("queue", Text, nullable=False, server_default="default"),
        Column("task", Text, nullable=False),
        Column("priority", SmallInteger, nullable=False, server_default="0"),
        Column("run_at", DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()")),
        Column("attempt", Integer, nullable=False, server_default="0"),
        Column("max_attempts", Integer, nullable=False, server_default="4"),
        Column("fence", Integer, nullable=False, server_default="0", comment="counts claims; never given back"),
        Column("crashes", SmallInteger, nullable=False, server_default="0", comment="process deaths under this job"),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()")),
        Column("started_at", DateTime(timezone=True), comment="of the latest attempt"),
        Column("worker_id", UUID, comment="who holds the job; in an ended job: who ran it last"),
        Column("expires_at", DateTime(timezone=True), comment="not started by then: expired"),
        Column("timeout", Float, comment="seconds one attempt may run; null: the task's own"),
        Column("args", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
        Column("retry", JSONB, comment="the policy of this one job; null: the task's own"),
        Column("unique_key", Text),
        Column("concurrency_key", Text),
        Column("tags", ARRAY(Text)),
        Column("meta", JSONB),
    ]


def metadata(schema: str) -> MetaData:
    """The declared tables in `schema`."""
    meta = MetaData(schema=schema)

    Table(
        "jobs",
        meta,
        Column("id", BigInteger, Identity(), primary_key=True),
        Column("state", Text, nullable=False, server_default="queued"),
        *_job_columns(),
        Column("cancelling", Text, comment="why it was asked to end while it runs; null: it was not"),
        Column("queued_key", Text, comment="a unique key that is held until the first claim alone"),
        CheckConstraint("state IN ('queued', 'running', 'blocked')", name="jobs_state"),
        CheckConstraint("(state = 'running') = (worker_id IS NOT NULL)", name="jobs_owner"),
        CheckConstraint("priority BETWEEN -100 AND 100", name="jobs_priority"),
        CheckConstraint("max_attempts >= 1", name="jobs_max_attempts"),
        CheckConstraint("isfinite(run_at)", name="jobs_run_at"),
        CheckConstraint("timeout > 0 AND timeout < 'Infinity'::double precision", name="jobs_timeout"),
        CheckConstraint("jsonb_typeof(args) IN ('object', 'array')", name="jobs_args"),
        CheckConstraint("unique_key <> ''", name="jobs_unique_key"),
        # The claim walks this one: each (queue, priority) is a range of its own, bounded by run_at.
        Index("jobs_due", "queue", text("priority DESC"), "run_at", "id", postgresql_where=text("state = 'queued'")),
        # On the state, not on the owner: a settle names owner and fence, and must never be planned over this index.
        Index("jobs_running", "worker_id", "id", postgresql_where=text("state = 'running'")),
        # Almost always empty: jobs under which a process died. They run alone, and no other claim takes them.
        Index(
            "jobs_suspects",
            "crashes",
            text("priority DESC"),
            "run_at",
            "id",
            postgresql_where=text("state = 'queued' AND crashes > 0"),
        ),
        Index("jobs_unique", "unique_key", unique=True, postgresql_where=text("unique_key IS NOT NULL")),
        # The first claim counts the fence up, and so takes the row out of this one: no statement gives the key up.
        Index(
            "jobs_queued_key",
            "queued_key",
            unique=True,
            postgresql_where=text("queued_key IS NOT NULL AND fence = 0"),
        ),
        Index(
            "jobs_expiring",
            "expires_at",
            postgresql_where=text("expires_at IS NOT NULL AND state = 'queued'"),
        ),
        # Almost always empty: running jobs that were asked to end. Their workers look for them each second.
        Index("jobs_cancelling", "worker_id", "id", postgresql_where=text("cancelling IS NOT NULL")),
    )

    Table(
        "job_errors",
        meta,
        Column("job_id", BigInteger, primary_key=True, autoincrement=False),
        Column("fence", Integer, primary_key=True, autoincrement=False),
        Column("attempt", Integer, nullable=False),
        Column("at", DateTime(timezone=True), nullable=False),
        Column("error", Text, nullable=False),
        Column("traceback", Text),
        Column("worker_id", UUID),
        Index("job_errors_at", "at", postgresql_using="brin"),
    )

    Table(
        "finished_jobs",
        meta,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("state", Text, nullable=False),
        *_job_columns(),
        Column("finished_at", DateTime(timezone=True), primary_key=True, nullable=False),
        Column("result", JSONB),
        Column("error", Text),
        Column("errors", JSONB, comment="failed attempts before the end; null: none"),
        CheckConstraint("state IN ('completed', 'cancelled', 'expired')", name="finished_jobs_state"),
        # BRIN: rows arrive in the order of finished_at, so it costs next to nothing and finds the last minute.
        Index("finished_jobs_finished_at", "finished_at", postgresql_using="brin"),
        postgresql_partition_by="RANGE (finished_at)",
    )

    Table(
        "dead_jobs",
        meta,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("state", Text, nullable=False, server_default="dead"),
        *_job_columns(),
        Column("died_at", DateTime(timezone=True), nullable=False),
        Column("finished_at", DateTime(timezone=True), Computed("died_at", persisted=True)),
        Column("reason", Text, nullable=False),
        Column("result", JSONB),
        Column("error", Text),
        Column("errors", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
        CheckConstraint("state = 'dead'", name="dead_jobs_state"),
        CheckConstraint(
            "reason IN ('attempts', 'timeout', 'never', 'dead_letter', 'crashed', 'bad_row')", name="dead_jobs_reason"
        ),
        Index("dead_jobs_died_at", "died_at", "id"),
        Index("dead_jobs_task", "task", "died_at"),
    )

    Table(
        "workers",
        meta,
        Column("id", UUID, primary_key=True),
        Column("host", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("started_at", DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()")),
        Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()")),
        Column("expires_at", DateTime(timezone=True), nullable=False, comment="end of the lease"),
        Column("queues", ARRAY(Text), comment="null: all"),
        Column("tasks", ARRAY(Text), nullable=False),
        Column("concurrency", Integer, nullable=False),
        Column("stopping", Boolean, nullable=False, server_default=text("false")),
        Column("version", Text, nullable=False, comment="of pgqueue"),
    )

    Table(
        "sleepers",
        meta,
        Column("worker_id", UUID, primary_key=True),
        Column("queue", Text, primary_key=True, comment="'*': all"),
        Column("until", DateTime(timezone=True), nullable=False, comment="asleep until then, unless woken"),
        Index("sleepers_asleep", "queue", "until"),
        prefixes=["UNLOGGED"],
    )

    Table(
        "waiters",
        meta,
        Column("job_id", BigInteger, primary_key=True, autoincrement=False),
        Column("waiter", UUID, primary_key=True, comment="a process, which listens on a channel of that name"),
        Column("until", DateTime(timezone=True), nullable=False, comment="waits until then, unless it says so again"),
        Index("waiters_until", "until"),
        prefixes=["UNLOGGED"],
    )

    Table(
        "queues",
        meta,
        Column("name", Text, primary_key=True),
        Column("paused", Boolean, nullable=False, server_default=text("false")),
        Column("paused_at", DateTime(timezone=True)),
        Column("paused_by", Text),
        Column("paused_until", DateTime(timezone=True), comment="resumes by itself then; null: it does not"),
        CheckConstraint("isfinite(paused_until)", name="queues_paused_until"),
    )

    Table(
        "paused_tasks",
        meta,
        Column("task", Text, primary_key=True),
        Column("paused_at", DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()")),
        Column("paused_by", Text),
        Column("paused_until", DateTime(timezone=True), comment="resumes by itself then; null: it does not"),
        CheckConstraint("isfinite(paused_until)", name="paused_tasks_paused_until"),
    )

    Table(
        "retention",
        meta,
        Column("task", Text, primary_key=True),
        Column("keep", Integer, comment="newest finished jobs that stay; null: no limit"),
        Column("keep_for", Float, comment="seconds a finished job stays; null: the default"),
        Column("keep_dead", Integer, comment="newest dead jobs that stay; null: no limit"),
        Column("keep_dead_for", Float, comment="seconds a dead job stays; null: no limit"),
        Column("changed_at", DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()")),
        Column(
            "prune_at",
            DateTime(timezone=True),
            nullable=False,
            server_default=text("statement_timestamp()"),
            comment="whoever comes then prunes it, and moves this ahead",
        ),
        CheckConstraint(
            "keep >= 0 AND keep_for >= 0 AND keep_for < 'Infinity'::double precision", name="retention_keep"
        ),
        CheckConstraint(
            "keep_dead >= 0 AND keep_dead_for >= 0 AND keep_dead_for < 'Infinity'::double precision",
            name="retention_keep_dead",
        ),
    )

    Table(
        "unique_periods",
        meta,
        Column("key", Text, primary_key=True),
        Column("job_id", BigInteger, nullable=False),
        Column("task", Text, nullable=False),
        Column("queue", Text, nullable=False),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()")),
        Column("ends_at", DateTime(timezone=True), nullable=False, comment="from then on the key is free"),
        CheckConstraint("key <> ''", name="unique_periods_key"),
        CheckConstraint("isfinite(ends_at)", name="unique_periods_ends_at"),
        Index("unique_periods_over", "ends_at"),
    )

    Table(
        "schedules",
        meta,
        Column("name", Text, primary_key=True),
        Column("task", Text, nullable=False),
        Column("cron", Text, comment="five fields; or every"),
        Column("every", Float, comment="seconds; ticks are multiples of it since 1970; or cron"),
        Column("timezone", Text, nullable=False, server_default="UTC"),
        Column("args", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
        Column("queue", Text, nullable=False, server_default="default"),
        Column("priority", SmallInteger, nullable=False, server_default="0"),
        Column("max_attempts", Integer, nullable=False, server_default="4"),
        Column("expires_in", Float, comment="seconds after its tick, within which a job must start"),
        Column("timeout", Float, comment="seconds one attempt may run; null: the task's own"),
        Column("retry", JSONB),
        Column("tags", ARRAY(Text)),
        Column("meta", JSONB),
        Column("missed", Text, nullable=False, server_default="latest"),
        Column("missed_limit", Integer, nullable=False, server_default="100", comment="of missed all"),
        Column("overlap", Text, nullable=False, server_default="allow"),
        Column("paused", Boolean, nullable=False, server_default=text("false")),
        Column("paused_at", DateTime(timezone=True)),
        Column("declared", Boolean, nullable=False, server_default=text("false"), comment="in code; else added"),
        Column("orphaned_at", DateTime(timezone=True), comment="declared no more since then; null: it is"),
        Column(
            "since",
            DateTime(timezone=True),
            nullable=False,
            server_default=text("statement_timestamp()"),
            comment="ticks after this moment count",
        ),
        Column("next_tick", DateTime(timezone=True), comment="null: not worked out yet, or it fires no more"),
        Column("last_tick", DateTime(timezone=True), comment="the latest that was fired or skipped"),
        Column("fired_at", DateTime(timezone=True), comment="when the latest firing was"),
        Column("last_job", BigInteger),
        Column(
            "open_jobs",
            ARRAY(BigInteger),
            nullable=False,
            server_default=text("'{}'::bigint[]"),
            comment="those of which some may be live",
        ),
        Column("fired", BigInteger, nullable=False, server_default="0", comment="jobs made at ticks"),
        Column("skipped", BigInteger, nullable=False, server_default="0", comment="ticks without a job"),
        Column("problem", Text, comment="why a worker cannot tell its ticks"),
        Column("revision", BigInteger, Identity(), nullable=False, comment="another after each change and firing"),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()")),
        Column("changed_at", DateTime(timezone=True), nullable=False, server_default=text("statement_timestamp()")),
        CheckConstraint("name ~ '^[A-Za-z0-9_.:-]{1,128}$'", name="schedules_name"),
        CheckConstraint("(cron IS NULL) <> (every IS NULL)", name="schedules_time"),
        CheckConstraint("every >= 1 AND every < 'Infinity'::double precision", name="schedules_every"),
        CheckConstraint("jsonb_typeof(args) IN ('object', 'array')", name="schedules_args"),
        CheckConstraint("jsonb_typeof(meta) = 'object'", name="schedules_meta"),
        CheckConstraint("priority BETWEEN -100 AND 100", name="schedules_priority"),
        CheckConstraint("max_attempts >= 1", name="schedules_max_attempts"),
        CheckConstraint("timeout > 0 AND timeout < 'Infinity'::double precision", name="schedules_timeout"),
        CheckConstraint("expires_in > 0 AND expires_in < 'Infinity'::double precision", name="schedules_expires_in"),
        CheckConstraint("missed IN ('skip', 'latest', 'all')", name="schedules_missed"),
        CheckConstraint("missed_limit BETWEEN 1 AND 1000", name="schedules_missed_limit"),
        CheckConstraint("overlap IN ('allow', 'skip')", name="schedules_overlap"),
    )

    Table(
        "progress",
        meta,
        Column("job_id", BigInteger, primary_key=True, autoincrement=False),
        Column("fence", Integer, nullable=False, comment="of the claim under which it was said"),
        Column("attempt", Integer, nullable=False, comment="the attempt under which it was said"),
        Column("fraction", Float, nullable=False, comment="0 to 1"),
        Column("note", Text, comment="the job's own words"),
        Column("at", DateTime(timezone=True), nullable=False, comment="when it was written"),
        Column("said", BigInteger, nullable=False, server_default=text("0"), comment="orders the words of one claim"),
        CheckConstraint("fraction BETWEEN 0 AND 1", name="progress_fraction"),
    )

    Table(
        "job_logs",
        meta,
        Column("job_id", BigInteger, primary_key=True, autoincrement=False),
        Column("fence", Integer, primary_key=True, autoincrement=False, comment="of the claim under which it was said"),
        Column("n", Integer, primary_key=True, autoincrement=False, comment="from 1, in the order of the lines"),
        Column("attempt", Integer, nullable=False, comment="the attempt under which it was said"),
        Column("at", DateTime(timezone=True), nullable=False, comment="when it was said"),
        Column("level", Text, nullable=False, comment="INFO, WARNING, ERROR, …"),
        Column("message", Text, nullable=False),
    )
    return meta
