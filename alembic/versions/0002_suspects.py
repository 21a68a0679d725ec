"""An index of the jobs under which a process died: they run alone, and whoever looks for them must find them cheaply.

Revision 0002. Almost always empty, so it costs an ordinary job nothing.
"""

from __future__ import annotations

import sqlalchemy as sa

from alembic import context, op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "jobs_suspects",
        "jobs",
        ["crashes", sa.text("priority DESC"), "run_at", "id"],
        schema=context.config.attributes["schema"],
        postgresql_where=sa.text("state = 'queued' AND crashes > 0"),
    )


def downgrade() -> None:
    op.drop_index("jobs_suspects", "jobs", schema=context.config.attributes["schema"])
