"""Who waits for which job's end, so that whoever ends one can say so; cancel() does.

Revision 0018. UNLOGGED, since it is a hint: who waits looks by itself, too. The text of cancel() lies in 0018/ as it
was when it was written; the way down takes that of 0012.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

STORAGE = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    op.create_table(
        "waiters",
        sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("waiter", sa.UUID, primary_key=True, comment="a process, which listens on a channel of that name"),
        sa.Column(
            "until", sa.DateTime(timezone=True), nullable=False, comment="waits until then, unless it says so again"
        ),
        schema=schema,
        prefixes=["UNLOGGED"],
    )
    op.create_index("waiters_until", "waiters", ["until"], schema=schema)
    run(f"ALTER TABLE {{schema}}.waiters SET ({STORAGE})")
    replace_cancel("0018/1_cancel.sql")


def downgrade() -> None:
    replace_cancel("0012/6_cancel.sql")
    op.drop_table("waiters", schema=context.config.attributes["schema"])


def replace_cancel(file: str) -> None:
    """Replaced, not dropped and made, so that who may call it still may."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    run(text.replace("create function", "create or replace function", 1))


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
