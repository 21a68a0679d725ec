"""The path of a job: live, finished and dead jobs, workers, sleepers, queues; the first functions and views.

Revision 0001. The texts of its functions and views lie in 0001/ as they were when it was written.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

moment = sa.DateTime(timezone=True)
now = sa.text("statement_timestamp()")

STORAGE = {
    "jobs": (
        "fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, "
        "autovacuum_analyze_scale_factor = 0.05"
    ),
    "workers": "fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200",
    "sleepers": "fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200",
}

FUNCTIONS = (
    "enqueue(text, jsonb, text, integer, timestamptz, integer, text, timestamptz, double precision, text[], jsonb)",
    "redrive(bigint)",
    "prune(integer, double precision)",
)


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("state", sa.Text, server_default="queued", nullable=False),
        *job_columns(),
        sa.CheckConstraint("state IN ('queued', 'running', 'blocked')", name="jobs_state"),
        sa.CheckConstraint("(state = 'running') = (worker_id IS NOT NULL)", name="jobs_owner"),
        sa.CheckConstraint("priority BETWEEN -100 AND 100", name="jobs_priority"),
        sa.CheckConstraint("max_attempts >= 1", name="jobs_max_attempts"),
        sa.CheckConstraint("isfinite(run_at)", name="jobs_run_at"),
        sa.CheckConstraint("timeout > 0 AND timeout < 'Infinity'::double precision", name="jobs_timeout"),
        sa.CheckConstraint("jsonb_typeof(args) IN ('object', 'array')", name="jobs_args"),
        sa.CheckConstraint("unique_key <> ''", name="jobs_unique_key"),
        schema=schema,
    )
    index("jobs_due", "jobs", "queue", sa.text("priority DESC"), "run_at", "id", postgresql_where="state = 'queued'")
    index("jobs_running", "jobs", "worker_id", "id", postgresql_where="state = 'running'")
    index("jobs_unique", "jobs", "unique_key", unique=True, postgresql_where="unique_key IS NOT NULL")
    index("jobs_expiring", "jobs", "expires_at", postgresql_where="expires_at IS NOT NULL AND state = 'queued'")

    op.create_table(
        "job_errors",
        sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("fence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("traceback", sa.Text),
        sa.Column("worker_id", sa.UUID),
        schema=schema,
    )
    index("job_errors_at", "job_errors", "at", postgresql_using="brin")

    op.create_table(
        "finished_jobs",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state", sa.Text, nullable=False),
        *job_columns(),
        sa.Column("finished_at", moment, primary_key=True, nullable=False),
        sa.Column("result", JSONB),
        sa.Column("error", sa.Text),
        sa.Column("errors", JSONB, comment="failed attempts before the end; null: none"),
        sa.CheckConstraint("state IN ('completed', 'cancelled', 'expired')", name="finished_jobs_state"),
        schema=schema,
        postgresql_partition_by="RANGE (finished_at)",
    )
    index("finished_jobs_finished_at", "finished_jobs", "finished_at", postgresql_using="brin")

    op.create_table(
        "dead_jobs",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state", sa.Text, server_default="dead", nullable=False),
        *job_columns(),
        sa.Column("died_at", moment, nullable=False),
        sa.Column("finished_at", moment, sa.Computed("died_at", persisted=True)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("result", JSONB),
        sa.Column("error", sa.Text),
        sa.Column("errors", JSONB, server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.CheckConstraint("state = 'dead'", name="dead_jobs_state"),
        sa.CheckConstraint(
            "reason IN ('attempts', 'timeout', 'never', 'dead_letter', 'crashed', 'bad_row')", name="dead_jobs_reason"
        ),
        schema=schema,
    )
    index("dead_jobs_died_at", "dead_jobs", "died_at", "id")
    index("dead_jobs_task", "dead_jobs", "task", "died_at")

    op.create_table(
        "workers",
        sa.Column("id", sa.UUID, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("started_at", moment, server_default=now, nullable=False),
        sa.Column("heartbeat_at", moment, server_default=now, nullable=False),
        sa.Column("expires_at", moment, nullable=False, comment="end of the lease"),
        sa.Column("queues", ARRAY(sa.Text), comment="null: all"),
        sa.Column("tasks", ARRAY(sa.Text), nullable=False),
        sa.Column("concurrency", sa.Integer, nullable=False),
        sa.Column("stopping", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("version", sa.Text, nullable=False, comment="of pgqueue"),
        schema=schema,
    )
    op.create_table(
        "sleepers",
        sa.Column("worker_id", sa.UUID, primary_key=True),
        sa.Column("queue", sa.Text, primary_key=True, comment="'*': all"),
        sa.Column("until", moment, nullable=False, comment="asleep until then, unless woken"),
        schema=schema,
        prefixes=["UNLOGGED"],
    )
    index("sleepers_asleep", "sleepers", "queue", "until")
    op.create_table(
        "queues",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("paused", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("paused_at", moment),
        sa.Column("paused_by", sa.Text),
        schema=schema,
    )
    for table, parameters in STORAGE.items():
        run(f"ALTER TABLE {{schema}}.{table} SET ({parameters})")
    for file in sorted((Path(__file__).parent / "0001").glob("*.sql")):
        run(file.read_text(encoding="utf-8"))
    # EXECUTE is granted to PUBLIC by default; who may call them is for the owner to say.
    for function in FUNCTIONS:
        run(f"REVOKE EXECUTE ON FUNCTION {{schema}}.{function} FROM PUBLIC")
    run("SELECT FROM {schema}.prune(7, 86400)")


def downgrade() -> None:
    schema = context.config.attributes["schema"]
    for function in reversed(FUNCTIONS):
        run(f"DROP FUNCTION {{schema}}.{function}")
    for view in ("queue_stats", "all_jobs", "job_history"):
        run(f"DROP VIEW {{schema}}.{view}")
    for table in ("queues", "sleepers", "workers", "dead_jobs", "finished_jobs", "job_errors", "jobs"):
        op.drop_table(table, schema=schema)


def job_columns() -> list[sa.Column]:
    return [
        sa.Column("queue", sa.Text, server_default="default", nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("priority", sa.SmallInteger, server_default="0", nullable=False),
        sa.Column("run_at", moment, server_default=now, nullable=False),
        sa.Column("attempt", sa.Integer, server_default="0", nullable=False),
        sa.Column("max_attempts", sa.Integer, server_default="4", nullable=False),
        sa.Column("fence", sa.Integer, server_default="0", nullable=False, comment="counts claims; never given back"),
        sa.Column(
            "crashes", sa.SmallInteger, server_default="0", nullable=False, comment="process deaths under this job"
        ),
        sa.Column("created_at", moment, server_default=now, nullable=False),
        sa.Column("started_at", moment, comment="of the latest attempt"),
        sa.Column("worker_id", sa.UUID, comment="who holds the job; in an ended job: who ran it last"),
        sa.Column("expires_at", moment, comment="not started by then: expired"),
        sa.Column("timeout", sa.Float, comment="seconds one attempt may run; null: the task's own"),
        sa.Column("args", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("retry", JSONB, comment="the policy of this one job; null: the task's own"),
        sa.Column("unique_key", sa.Text),
        sa.Column("concurrency_key", sa.Text),
        sa.Column("tags", ARRAY(sa.Text)),
        sa.Column("meta", JSONB),
    ]


def index(name: str, table: str, *columns: object, postgresql_where: str | None = None, **options: object) -> None:
    if postgresql_where is not None:
        options["postgresql_where"] = sa.text(postgresql_where)
    op.create_index(name, table, list(columns), schema=context.config.attributes["schema"], **options)


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
