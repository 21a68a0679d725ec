"""A schedule from SQL says what its jobs are like: expires_in, timeout, tags, meta.

Revision 0017. add_schedule() gets parameters, so it is another function for PostgreSQL: who might call the old one may
call the new one. Its text lies in 0017/ as it was when it was written; the way down takes that of 0008.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

OLD = "add_schedule(text, text, text, interval, text, jsonb, text, integer, integer, text, integer, text)"
NEW = f"{OLD[:-1]}, interval, double precision, text[], jsonb)"

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
    change(OLD, NEW, "0017/1_add_schedule.sql")


def downgrade() -> None:
    change(NEW, OLD, "0008/90_add_schedule.sql")


def change(old: str, new: str, file: str) -> None:
    run((Path(__file__).parent / file).read_text(encoding="utf-8"))
    run(f"REVOKE EXECUTE ON FUNCTION {{schema}}.{new} FROM PUBLIC")
    run(SAME_RIGHTS.replace("[from]", old).replace("[to]", new))
    run(f"DROP FUNCTION {{schema}}.{old}")


def run(text: str) -> None:
    """A statement as it stands: no parameters, so a colon or a percent sign means itself."""
    statement = render(text, quote(context.config.attributes["schema"]))
    if context.is_offline_mode():
        op.get_context().impl.static_output(f"{statement};\n")
    else:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%"))
