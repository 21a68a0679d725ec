"""Unique jobs: a key that is held until the first claim, or for a period; enqueue() takes both.

Revision 0013. enqueue() gets parameters, so it is another function for PostgreSQL: who might call the old one may
call the new one. Its text lies in 0013/ as it was when it was written; the way down takes that of 0010.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from alembic import context, op
from pgqueue.sql import quote, render

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

OLD = (
    "enqueue(text, jsonb, text, integer, timestamptz, integer, text, timestamptz, double precision, text[], jsonb,"
    " boolean)"
)
NEW = f"{OLD[:-1]}, text[], text, double precision, text, double precision)"

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
    schema = context.config.attributes["schema"]
    # By hand: Alembic does not quote a schema's name with a dot in an ALTER TABLE.
    run("ALTER TABLE {schema}.jobs ADD COLUMN queued_key text")
    run("COMMENT ON COLUMN {schema}.jobs.queued_key IS 'a unique key that is held until the first claim alone'")
    op.create_index(
        "jobs_queued_key",
        "jobs",
        ["queued_key"],
        unique=True,
        postgresql_where=sa.text("queued_key IS NOT NULL AND fence = 0"),
        schema=schema,
    )
    now = sa.text("statement_timestamp()")
    op.create_table(
        "unique_periods",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("job_id", sa.BigInteger, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False, comment="from then on the key is free"),
        sa.CheckConstraint("key <> ''", name="unique_periods_key"),
        sa.CheckConstraint("isfinite(ends_at)", name="unique_periods_ends_at"),
        schema=schema,
    )
    op.create_index("unique_periods_over", "unique_periods", ["ends_at"], schema=schema)
    change_enqueue(OLD, NEW, "0013/1_enqueue.sql")


def downgrade() -> None:
    schema = context.config.attributes["schema"]
    change_enqueue(NEW, OLD, "0010/1_enqueue.sql")
    op.drop_table("unique_periods", schema=schema)
    op.drop_index("jobs_queued_key", table_name="jobs", schema=schema)
    run("ALTER TABLE {schema}.jobs DROP COLUMN queued_key")


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
