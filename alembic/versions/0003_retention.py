"""How long ended jobs are kept, for each task that says so; prune() leaves the days standing that one of them needs.

Revision 0003. The text of the function lies in 0003/ as it was when it was written; the way down takes that of 0001.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

moment = sa.DateTime(timezone=True)
now = sa.text("statement_timestamp()")


def upgrade() -> None:
    op.create_table(
        "retention",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("keep", sa.Integer, comment="newest finished jobs that stay; null: no limit"),
        sa.Column("keep_for", sa.Float, comment="seconds a finished job stays; null: the default"),
        sa.Column("keep_dead", sa.Integer, comment="newest dead jobs that stay; null: no limit"),
        sa.Column("keep_dead_for", sa.Float, comment="seconds a dead job stays; null: no limit"),
        sa.Column("changed_at", moment, server_default=now, nullable=False),
        sa.Column(
            "prune_at",
            moment,
            server_default=now,
            nullable=False,
            comment="whoever comes then prunes it, and moves this ahead",
        ),
        sa.CheckConstraint(
            "keep >= 0 AND keep_for >= 0 AND keep_for < 'Infinity'::double precision", name="retention_keep"
        ),
        sa.CheckConstraint(
            "keep_dead >= 0 AND keep_dead_for >= 0 AND keep_dead_for < 'Infinity'::double precision",
            name="retention_keep_dead",
        ),
        schema=context.config.attributes["schema"],
    )
    replace_prune("0003/1_prune.sql")


def downgrade() -> None:
    replace_prune("0001/5_prune.sql")
    op.drop_table("retention", schema=context.config.attributes["schema"])


def replace_prune(file: str) -> None:
    """As it stands in the file; replaced, not dropped and made, so that who may call it still may."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    text = text.replace("create function", "create or replace function", 1)
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
