"""health: what the database under the queue is like, a row a measure, with the statement that mends it.

Revision 0009. The view's text lies in 0009/ as it was when it was written.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Asked of the server when it runs, since `migrate --sql` does not know on which it will.
INVOKER = """
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 150000 THEN
        ALTER VIEW {schema}.health SET (security_invoker = true);
    END IF;
END
$$
"""


def upgrade() -> None:
    run((Path(__file__).parent / "0009" / "1_health.sql").read_text(encoding="utf-8"))
    run(INVOKER)


def downgrade() -> None:
    run("DROP VIEW {schema}.health")


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
