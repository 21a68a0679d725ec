"""enqueue() notifies nobody of a due job while a worker is on the lookout, as an enqueue from Python.

Revision 0010. The text lies in 0010/ as it was when it was written; the way down takes that of 0005.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    replace_enqueue("0010/1_enqueue.sql")


def downgrade() -> None:
    replace_enqueue("0005/1_enqueue.sql")


def replace_enqueue(file: str) -> None:
    """In its place, so that who may call it still may."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    run(text.replace("create function", "create or replace function", 1))


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
