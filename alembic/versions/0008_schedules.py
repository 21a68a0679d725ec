"""Schedules: what is enqueued at its time, the view schedule_stats, and the functions that steer them from SQL.

Revision 0008. The texts lie in 0008/ as they were when it was written.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

moment = sa.DateTime(timezone=True)
now = sa.text("statement_timestamp()")

VIEW = "90_schedule_stats.sql"
FUNCTIONS = {
    "90_add_schedule.sql": (
        "add_schedule(text, text, text, interval, text, jsonb, text, integer, integer, text, integer, text)"
    ),
    "91_pause_schedule.sql": "pause_schedule(text)",
    "92_resume_schedule.sql": "resume_schedule(text)",
    "93_remove_schedule.sql": "remove_schedule(text)",
    "94_run_schedule.sql": "run_schedule(text)",
}


# Asked of the server when it runs, since `migrate --sql` does not know on which it will.
INVOKER = """
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 150000 THEN
        ALTER VIEW {schema}.schedule_stats SET (security_invoker = true);
    END IF;
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("cron", sa.Text, comment="five fields; or every"),
        sa.Column("every", sa.Float, comment="seconds; ticks are multiples of it since 1970; or cron"),
        sa.Column("timezone", sa.Text, server_default="UTC", nullable=False),
        sa.Column("args", JSONB, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("queue", sa.Text, server_default="default", nullable=False),
        sa.Column("priority", sa.SmallInteger, server_default="0", nullable=False),
        sa.Column("max_attempts", sa.Integer, server_default="4", nullable=False),
        sa.Column("expires_in", sa.Float, comment="seconds after its tick, within which a job must start"),
        sa.Column("timeout", sa.Float, comment="seconds one attempt may run; null: the task's own"),
        sa.Column("retry", JSONB),
        sa.Column("tags", ARRAY(sa.Text)),
        sa.Column("meta", JSONB),
        sa.Column("missed", sa.Text, server_default="latest", nullable=False),
        sa.Column("missed_limit", sa.Integer, server_default="100", nullable=False, comment="of missed all"),
        sa.Column("overlap", sa.Text, server_default="allow", nullable=False),
        sa.Column("paused", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("paused_at", moment),
        sa.Column(
            "declared", sa.Boolean, server_default=sa.text("false"), nullable=False, comment="in code; else added"
        ),
        sa.Column("orphaned_at", moment, comment="declared no more since then; null: it is"),
        sa.Column("since", moment, server_default=now, nullable=False, comment="ticks after this moment count"),
        sa.Column("next_tick", moment, comment="null: not worked out yet, or it fires no more"),
        sa.Column("last_tick", moment, comment="the latest that was fired or skipped"),
        sa.Column("fired_at", moment, comment="when the latest firing was"),
        sa.Column("last_job", sa.BigInteger),
        sa.Column(
            "open_jobs",
            ARRAY(sa.BigInteger),
            server_default=sa.text("'{}'::bigint[]"),
            nullable=False,
            comment="those of which some may be live",
        ),
        sa.Column("fired", sa.BigInteger, server_default="0", nullable=False, comment="jobs made at ticks"),
        sa.Column("skipped", sa.BigInteger, server_default="0", nullable=False, comment="ticks without a job"),
        sa.Column("problem", sa.Text, comment="why a worker cannot tell its ticks"),
        sa.Column(
            "revision", sa.BigInteger, sa.Identity(), nullable=False, comment="another after each change and firing"
        ),
        sa.Column("created_at", moment, server_default=now, nullable=False),
        sa.Column("changed_at", moment, server_default=now, nullable=False),
        sa.CheckConstraint("name ~ '^[A-Za-z0-9_.:-]{1,128}$'", name="schedules_name"),
        sa.CheckConstraint("(cron IS NULL) <> (every IS NULL)", name="schedules_time"),
        sa.CheckConstraint("every >= 1 AND every < 'Infinity'::double precision", name="schedules_every"),
        sa.CheckConstraint("jsonb_typeof(args) IN ('object', 'array')", name="schedules_args"),
        sa.CheckConstraint("jsonb_typeof(meta) = 'object'", name="schedules_meta"),
        sa.CheckConstraint("priority BETWEEN -100 AND 100", name="schedules_priority"),
        sa.CheckConstraint("max_attempts >= 1", name="schedules_max_attempts"),
        sa.CheckConstraint("timeout > 0 AND timeout < 'Infinity'::double precision", name="schedules_timeout"),
        sa.CheckConstraint("expires_in > 0 AND expires_in < 'Infinity'::double precision", name="schedules_expires_in"),
        sa.CheckConstraint("missed IN ('skip', 'latest', 'all')", name="schedules_missed"),
        sa.CheckConstraint("missed_limit BETWEEN 1 AND 1000", name="schedules_missed_limit"),
        sa.CheckConstraint("overlap IN ('allow', 'skip')", name="schedules_overlap"),
        schema=context.config.attributes["schema"],
    )
    run(text_of(VIEW))
    run(INVOKER)
    for file, signature in FUNCTIONS.items():
        run(text_of(file))
        run(f"REVOKE EXECUTE ON FUNCTION {{schema}}.{signature} FROM PUBLIC")


def downgrade() -> None:
    for signature in FUNCTIONS.values():
        run(f"DROP FUNCTION {{schema}}.{signature}")
    run("DROP VIEW {schema}.schedule_stats")
    op.drop_table("schedules", schema=context.config.attributes["schema"])


def text_of(file: str) -> str:
    return (Path(__file__).parent / revision / file).read_text(encoding="utf-8")


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
