"""task_stats and worker_stats; queue_stats by way of failed_attempts; on PostgreSQL 15 and newer the views are their
invoker's, so that they show a role no more than the tables do.

Revision 0006. The texts lie in 0006/ as they were when they were written; the way down takes that of 0005.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Asked of the server when it runs, since `migrate --sql` does not know on which it will.
INVOKER = """
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 150000 THEN
        ALTER VIEW {schema}.[view] SET (security_invoker = true);
    END IF;
END
$$
"""


def upgrade() -> None:
    run(text_of("0006/1_failed_attempts.sql"))
    run(text_of("0006/2_queue_stats.sql").replace("create view", "create or replace view", 1))
    run(text_of("0006/3_task_stats.sql"))
    run(text_of("0006/4_worker_stats.sql"))
    for view in ("job_history", "all_jobs", "queue_stats", "task_stats", "worker_stats"):
        run(INVOKER.replace("[view]", view))


def downgrade() -> None:
    run("DROP VIEW {schema}.worker_stats")
    run("DROP VIEW {schema}.task_stats")
    run(text_of("0005/2_queue_stats.sql").replace("create view", "create or replace view", 1))
    run("DROP VIEW {schema}.failed_attempts")
    for view in ("job_history", "all_jobs", "queue_stats"):
        run(INVOKER.replace("[view]", view).replace("SET (security_invoker = true)", "RESET (security_invoker)"))


def text_of(file: str) -> str:
    return (Path(__file__).parent / file).read_text(encoding="utf-8")


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
