"""why(): what keeps a job from running.

Revision 0007. The function's text lies in 0007/ as it was when it was written.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run((Path(__file__).parent / "0007" / "1_why.sql").read_text(encoding="utf-8"))
    run("REVOKE EXECUTE ON FUNCTION {schema}.why(bigint) FROM PUBLIC")


def downgrade() -> None:
    run("DROP FUNCTION {schema}.why(bigint)")


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
