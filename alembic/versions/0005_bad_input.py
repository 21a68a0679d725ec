"""enqueue() refuses what Python refuses, names a transaction that cannot write, and can do without a NOTIFY;
errors of a dead job that plain SQL wrote do not stop queue_stats.

Revision 0005. enqueue() gets a parameter, so it is another function for PostgreSQL: who might call the old one may call
the new one. The texts lie in 0005/ as they were when they were written; the way down takes those of 0004 and 0001.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

OLD = "enqueue(text, jsonb, text, integer, timestamptz, integer, text, timestamptz, double precision, text[], jsonb)"
NEW = f"{OLD[:-1]}, boolean)"

# [from] and [to]: signatures. Each who may call the one may call the other, by the same right to pass it on.
SAME_RIGHTS = """
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS role,
            CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS too
        FROM pg_proc, aclexplode(proacl)
        WHERE pg_proc.oid = to_regprocedure(format('%I.[from]', {schema_literal})) AND grantee <> proowner
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %I.[to] TO ', {schema_literal}) || given.role || given.too;
    END LOOP;
END
$$
"""


def upgrade() -> None:
    change_enqueue(OLD, NEW, "0005/1_enqueue.sql")
    run(text_of("0005/2_queue_stats.sql").replace("create view", "create or replace view", 1))


def downgrade() -> None:
    run(text_of("0001/2_queue_stats.sql").replace("create view", "create or replace view", 1))
    change_enqueue(NEW, OLD, "0004/1_enqueue.sql")


def change_enqueue(old: str, new: str, file: str) -> None:
    run(text_of(file))
    run(f"REVOKE EXECUTE ON FUNCTION {{schema}}.{new} FROM PUBLIC")
    run(SAME_RIGHTS.replace("[from]", old).replace("[to]", new))
    run(f"DROP FUNCTION {{schema}}.{old}")


def text_of(file: str) -> str:
    return (Path(__file__).parent / file).read_text(encoding="utf-8")


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
