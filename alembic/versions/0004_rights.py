"""enqueue() and redrive() say which right a role lacks, and the GRANT.

Revision 0004. The functions' texts lie in 0004/ as they were when it was written; the way down takes those of 0001.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    replace("0004/1_enqueue.sql")
    replace("0004/2_redrive.sql")


def downgrade() -> None:
    replace("0001/3_enqueue.sql")
    replace("0001/4_redrive.sql")


def replace(file: str) -> None:
    """As it stands in the file; replaced, not dropped and made, so that who may call it still may."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    text = text.replace("create function", "create or replace function", 1)
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
