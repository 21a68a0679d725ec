"""What jobs say in their logs, of tasks that keep it.

Revision 0015. Insert-only, and beside the jobs: a line costs no version of theirs.
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import context, op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_logs",
        sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column(
            "fence", sa.Integer, primary_key=True, autoincrement=False, comment="of the claim under which it was said"
        ),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False, comment="from 1, in the order of the lines"),
        sa.Column("attempt", sa.Integer, nullable=False, comment="the attempt under which it was said"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="when it was said"),
        sa.Column("level", sa.Text, nullable=False, comment="INFO, WARNING, ERROR, …"),
        sa.Column("message", sa.Text, nullable=False),
        schema=context.config.attributes["schema"],
    )


def downgrade() -> None:
    op.drop_table("job_logs", schema=context.config.attributes["schema"])
