"""How far running jobs are, as they say themselves.

Revision 0011. Beside the jobs, whose own row would be written anew each time.
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import context, op
from pgqueue.sql import quote

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STORAGE = "fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    op.create_table(
        "progress",
        sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("fence", sa.Integer, nullable=False, comment="of the claim under which it was said"),
        sa.Column("attempt", sa.Integer, nullable=False, comment="the attempt under which it was said"),
        sa.Column("fraction", sa.Float, nullable=False, comment="0 to 1"),
        sa.Column("note", sa.Text, comment="the job's own words"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="when it was written"),
        sa.CheckConstraint("fraction BETWEEN 0 AND 1", name="progress_fraction"),
        schema=schema,
    )
    statement = f"ALTER TABLE {quote(schema)}.progress SET ({STORAGE})"
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))


def downgrade() -> None:
    op.drop_table("progress", schema=context.config.attributes["schema"])
