"""Steering: what is paused and until when, which running jobs were asked to end, and the functions that say so.

Revision 0012. Column and index are empty for all jobs but those that are being cancelled. The texts of functions and
view lie in 0012/ as they were when they were written; the way down takes those of 0006 and 0007.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

moment = sa.DateTime(timezone=True)
until = "resumes by itself then; null: it does not"
# Asked of the server when it runs, since `migrate --sql` does not know on which it will.
INVOKER = """
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 150000 THEN
        ALTER VIEW {schema}.queue_stats SET (security_invoker = true);
    END IF;
END
$$
"""
FUNCTIONS = (
    "pause(text, timestamptz, text)",
    "resume(text)",
    "pause_task(text, timestamptz, text)",
    "resume_task(text)",
    "cancel(bigint, text)",
    "change(bigint, integer, timestamptz)",
    "retry_now(bigint)",
)


def upgrade() -> None:
    # Not by Alembic's add_column, which takes a dot in a schema's name for the end of a database's.
    run("ALTER TABLE {schema}.jobs ADD COLUMN cancelling text")
    comment = "why it was asked to end while it runs; null: it was not"
    run(f"COMMENT ON COLUMN {{schema}}.jobs.cancelling IS '{comment}'")
    run("CREATE INDEX jobs_cancelling ON {schema}.jobs (worker_id, id) WHERE cancelling IS NOT NULL")
    run(
        "ALTER TABLE {schema}.queues ADD COLUMN paused_until timestamptz"
        " CONSTRAINT queues_paused_until CHECK (isfinite(paused_until))"
    )
    run(f"COMMENT ON COLUMN {{schema}}.queues.paused_until IS '{until}'")
    op.create_table(
        "paused_tasks",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("paused_at", moment, server_default=sa.text("statement_timestamp()"), nullable=False),
        sa.Column("paused_by", sa.Text),
        sa.Column("paused_until", moment, comment=until),
        sa.CheckConstraint("isfinite(paused_until)", name="paused_tasks_paused_until"),
        schema=context.config.attributes["schema"],
    )
    replace_view("0012/1_queue_stats.sql")
    replace_why("0012/9_why.sql")
    for file in sorted((Path(__file__).parent / "0012").glob("[2-8]_*.sql")):
        run(file.read_text(encoding="utf-8"))
    for function in FUNCTIONS:
        run(f"REVOKE EXECUTE ON FUNCTION {{schema}}.{function} FROM PUBLIC")


def downgrade() -> None:
    for function in reversed(FUNCTIONS):
        run(f"DROP FUNCTION {{schema}}.{function}")
    replace_why("0007/1_why.sql")
    replace_view("0006/2_queue_stats.sql")
    op.drop_table("paused_tasks", schema=context.config.attributes["schema"])
    run("ALTER TABLE {schema}.queues DROP COLUMN paused_until")
    run("ALTER TABLE {schema}.jobs DROP COLUMN cancelling")  # and its index with it


def replace_view(file: str) -> None:
    """Replaced, not dropped and made, so that who may read it still may; its options are lost with that, see 0006."""
    run(text_of(file).replace("create view", "create or replace view", 1))
    run(INVOKER)


def replace_why(file: str) -> None:
    """Replaced as well, so that who may call it still may."""
    run(text_of(file).replace("create function", "create or replace function", 1))


def text_of(file: str) -> str:
    return (Path(__file__).parent / file).read_text(encoding="utf-8")


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
