"""The view health judges active replication slots, paused tasks and pauses that have ended, and tells how large tables
are; why() counts what is really ahead of a job, and names the columns that a role lacks.

Revision 0016. The texts lie in 0016/ as they were when they were written; the way down takes those of 0009 and 0012.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0016"
down_revision = "0015"
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
    replace_view("0016/1_health.sql")
    replace_function("0016/2_why.sql")


def downgrade() -> None:
    replace_function("0012/9_why.sql")
    replace_view("0009/1_health.sql")


def replace_view(file: str) -> None:
    """Replaced, not dropped and made, so that who may read it still may; its options are lost with that, see 0006."""
    run(text_of(file).replace("create view", "create or replace view", 1))
    run(INVOKER)


def replace_function(file: str) -> None:
    """Replaced as well, so that who may call it still may."""
    run(text_of(file).replace("create function", "create or replace function", 1))


def text_of(file: str) -> str:
    return (Path(__file__).parent / file).read_text(encoding="utf-8")


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
