"""A job's last word on its progress stands, also against an older one that was under way meanwhile.

Revision 0014. What a worker of before writes has 0, and is ordered by its fence alone, as it was.
"""

from __future__ import annotations

from alembic import context, op
from pgqueue.sql import quote

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not by Alembic's add_column, which takes a dot in a schema's name for the end of a database's.
    run("ALTER TABLE {schema}.progress ADD COLUMN said bigint DEFAULT 0 NOT NULL")
    run("COMMENT ON COLUMN {schema}.progress.said IS 'orders the words of one claim'")


def downgrade() -> None:
    run("ALTER TABLE {schema}.progress DROP COLUMN said")


def run(text: str) -> None:
    statement = text.replace("{schema}", quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
