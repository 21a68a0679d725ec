"""An application with an Alembic of its own keeps pgqueue's tables in its own history: a line in a revision, a line in
env.py; up, down, offline, autogenerate; and `pgqueue migrate` agrees with it about where they stand."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import psycopg
import pytest
from alembic.config import Config
from sqlalchemy import make_url

from alembic import command
from pgqueue import ConfigurationError, MissingRight, PgQueue, migrate
from tests.migrate.pictures import picture
from tests.roles import new_role

# What `alembic init` makes, with the line of pgqueue's in it.
ENV = """
from logging import getLogger
from alembic import context
from sqlalchemy import BigInteger, Column, Integer, MetaData, NullPool, Table, create_engine, pool
from sqlalchemy.ext.asyncio import create_async_engine
import asyncio
from pgqueue.migrate import leave_out

target_metadata = MetaData()
Table("orders", target_metadata, Column("id", Integer, primary_key=True))
Table("jobs", target_metadata, Column("id", BigInteger, primary_key=True), schema="pgqueue")  # to look with
Table("views", target_metadata, Column("id", Integer), info={"skip": True})
options = dict(
    target_metadata=target_metadata,
    include_schemas=True,
    **leave_out(
        include_name=lambda name, kind, parents: name != "legacy",
        include_object=lambda item, name, kind, reflected, other: not item.info.get("skip"),
    ),
)
url = context.config.get_main_option("sqlalchemy.url")

def work(connection):
    context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()

async def work_async():
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(work)
    await engine.dispose()

if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
elif "async" in url:
    asyncio.run(work_async())
else:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        work(connection)
    engine.dispose()
"""

TEMPLATE = '''
"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}

def upgrade():
    ${upgrades if upgrades else "pass"}

def downgrade():
    ${downgrades if downgrades else "pass"}
'''

REVISION = """
from alembic import op
import sqlalchemy as sa
from pgqueue import migrate

revision = {revision!r}
down_revision = {down!r}

def upgrade():
    {up}

def downgrade():
    {back}
"""

HEAD = migrate.head()

HISTORY = [
    ("a1", None, 'op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))', 'op.drop_table("orders")'),
    ("b2", "a1", 'migrate.op_upgrade("0001")', 'migrate.op_downgrade("base", since="0001")'),
    (
        "c3",
        "b2",
        f'migrate.op_upgrade("{HEAD}", since="0001"); op.execute("create table legacy (id int)")',
        f'op.execute("drop table legacy"); migrate.op_downgrade("0001", since="{HEAD}")',
    ),
]


class Application:
    """A small application: alembic.ini (as a Config), env.py, models, three revisions."""

    def __init__(self, folder: Path, url: str) -> None:
        self.versions = folder / "versions"
        self.versions.mkdir(parents=True)
        (folder / "env.py").write_text(ENV)
        (folder / "script.py.mako").write_text(TEMPLATE)
        for revision, down, up, back in HISTORY:
            self.revision(revision, down, up, back)
        (folder / "alembic.ini").write_text(
            dedent(
                f"""
                [alembic]
                script_location = {folder}
                path_separator = os
                sqlalchemy.url = {url.replace("%", "%%")}
                """
            )
        )
        self.config = Config(folder / "alembic.ini")

    def revision(self, revision: str, down: str | None, up: str, back: str) -> None:
        text = REVISION.format(revision=revision, down=down, up=up, back=back)
        (self.versions / f"{revision}.py").write_text(text)

    def printed(self, way: Any, revision: str) -> str:
        out = io.StringIO()
        self.config.output_buffer = out
        way(self.config, revision, sql=True)
        self.config.output_buffer = None
        return out.getvalue()


@pytest.fixture(params=["psycopg", "psycopg2", "asyncpg", "psycopg_async"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def application(folder: Path, url: str, driver: str = "psycopg") -> Application:
    # psycopg and psycopg2 are asked by libpq's query; asyncpg knows host and port in it, too
    return Application(folder, url.replace("postgresql://", f"postgresql+{driver}://", 1))


@pytest.fixture
def eyes(pgqueue_blank_database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pgqueue_blank_database, autocommit=True) as connection:
        yield connection


def tables(connection: psycopg.Connection[Any]) -> set[str]:
    query = "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
    return {name for (name,) in connection.execute(query).fetchall()}


def test_an_applications_history_takes_ours_up_and_down_on_each_driver(
    tmp_path: Path, pgqueue_blank_database: str, eyes: psycopg.Connection[Any], driver: str
) -> None:
    app = application(tmp_path / "app", pgqueue_blank_database, driver)
    url = pgqueue_blank_database
    command.upgrade(app.config, "b2")
    assert migrate.current(url) == "0001"
    command.upgrade(app.config, "head")
    assert migrate.current(url) == HEAD
    made = picture(eyes)
    migrate.upgrade(url)  # as `pgqueue migrate` sees it, there is nothing to do
    assert picture(eyes) == made
    found = migrate.check(url)
    assert (found.differences, found.notes) == ([], [])
    ours = PgQueue(url)
    ours.task(name="t")(lambda: None).delay()
    ours.close()
    command.downgrade(app.config, "b2")
    assert migrate.current(url) == "0001"
    command.downgrade(app.config, "base")
    assert migrate.current(url) is None
    assert tables(eyes) == {"alembic_version"}
    command.upgrade(app.config, "head")
    assert picture(eyes) == made


def test_autogenerate_finds_nothing_of_ours_and_still_everything_of_theirs(
    tmp_path: Path, pgqueue_blank_database: str, eyes: psycopg.Connection[Any]
) -> None:
    app = application(tmp_path / "app", pgqueue_blank_database)
    command.upgrade(app.config, "head")  # `legacy` is a table that their own filter leaves out
    command.check(app.config)
    script = command.revision(app.config, "nothing", autogenerate=True)
    text = Path(script.path).read_text()  # type: ignore[union-attr]
    assert text.count("pass") == 2
    assert "pgqueue" not in text
    Path(script.path).unlink()  # type: ignore[union-attr]
    eyes.execute("create table theirs (id int)")
    script = command.revision(app.config, "something", autogenerate=True)
    text = Path(script.path).read_text()  # type: ignore[union-attr]
    assert "drop_table('theirs'" in text
    assert "pgqueue" not in text


def test_their_sql_for_a_dba_has_ours_in_it_and_makes_the_same(
    tmp_path: Path, pgqueue_blank_database: str, eyes: psycopg.Connection[Any]
) -> None:
    app = application(tmp_path / "app", pgqueue_blank_database)
    text = app.printed(command.upgrade, "head")
    assert (text.count("BEGIN;"), text.count("COMMIT;")) == (1, 1)
    eyes.execute(text)
    printed = picture(eyes)
    assert migrate.current(pgqueue_blank_database) == HEAD
    command.upgrade(app.config, "head")
    eyes.execute(app.printed(command.downgrade, "c3:base"))
    assert migrate.current(pgqueue_blank_database) is None
    assert tables(eyes) == {"alembic_version"}
    command.upgrade(app.config, "head")
    assert picture(eyes) == printed


def test_it_is_their_transaction_a_failure_later_in_it_takes_ours_back(
    tmp_path: Path, pgqueue_blank_database: str, eyes: psycopg.Connection[Any]
) -> None:
    app = application(tmp_path / "app", pgqueue_blank_database)
    app.revision("d4", "c3", 'op.execute("select 1 / 0")', "pass")
    with pytest.raises(Exception, match="division by zero"):
        command.upgrade(app.config, "head")
    assert eyes.execute("select to_regnamespace('pgqueue')").fetchone() == (None,)
    assert tables(eyes) == set()


def test_a_role_that_may_not_is_told_the_grant_and_nothing_of_either_was_made(
    tmp_path: Path, pgqueue_blank_database: str, eyes: psycopg.Connection[Any], driver: str
) -> None:
    with new_role(pgqueue_blank_database, "usage, create on schema public") as role:
        url = make_url(pgqueue_blank_database).set(username=role).render_as_string(hide_password=False)
        app = application(tmp_path / "app", url, driver)
        with pytest.raises(MissingRight) as caught:
            command.upgrade(app.config, "head")
        assert "nothing was changed: permission denied for database" in str(caught.value)
        assert tables(eyes) == set()
        eyes.execute(str(caught.value).partition("what it lacks: ")[2].encode())
        command.upgrade(app.config, "head")
        assert migrate.current(url) == HEAD


def test_what_pgqueue_migrate_made_before_is_taken_over(tmp_path: Path, pgqueue_blank_database: str) -> None:
    app = application(tmp_path / "app", pgqueue_blank_database)
    migrate.upgrade(pgqueue_blank_database)
    command.upgrade(app.config, "head")
    assert migrate.current(pgqueue_blank_database) == HEAD
    command.downgrade(app.config, "a1")
    assert migrate.current(pgqueue_blank_database) is None


SETTINGS = {"lock_timeout": "7s", "statement_timeout": "5min", "search_path": "theirs, public"}


@pytest.mark.parametrize("offline", [False, True], ids=["run", "printed"])
def test_the_rest_of_their_transaction_has_its_settings_as_before(
    tmp_path: Path, pgqueue_blank_database: str, eyes: psycopg.Connection[Any], offline: bool
) -> None:
    app = application(tmp_path / "app", pgqueue_blank_database)
    before = "; ".join(f"select set_config('{name}', '{value}', true)" for name, value in SETTINGS.items())
    after = ", ".join(f"current_setting('{name}') as {name}" for name in SETTINGS)
    act = f'op.execute("create schema theirs; {before}"); migrate.op_upgrade("{HEAD}")'
    app.revision("b2", "a1", f'{act}; op.execute("create table seen as select {after}")', "pass")
    (app.versions / "c3.py").unlink()
    if offline:
        eyes.execute(app.printed(command.upgrade, "head"))
    else:
        command.upgrade(app.config, "head")
    assert eyes.execute("select * from theirs.seen").fetchone() == tuple(SETTINGS.values())
    assert picture(eyes)


def test_a_connection_that_commits_by_itself_is_refused_before_anything_is_made(
    tmp_path: Path, pgqueue_blank_database: str, eyes: psycopg.Connection[Any]
) -> None:
    app = application(tmp_path / "app", pgqueue_blank_database)
    act = f'migrate.op_upgrade("{HEAD}")'
    app.revision("b2", "a1", f"with op.get_context().autocommit_block(): {act}", "pass")
    (app.versions / "c3.py").unlink()
    with pytest.raises(ConfigurationError, match="commits each statement by itself"):
        command.upgrade(app.config, "head")
    assert eyes.execute("select to_regnamespace('pgqueue')").fetchone() == (None,)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ('migrate.op_upgrade("head")', "revision must be one of pgqueue's migrations base, 0001"),
        (f'migrate.op_upgrade("{HEAD}", since="9999")', "since must be one of pgqueue's migrations base, 0001"),
        (f'migrate.op_upgrade("{HEAD}", schema="public")', "give pgqueue a schema of its own"),
        (f'migrate.op_upgrade("{HEAD}", schema="x" * 41)', "schema must"),
    ],
)
def test_what_cannot_stay_true_in_a_history_is_refused(
    tmp_path: Path, pgqueue_blank_database: str, eyes: psycopg.Connection[Any], call: str, says: str
) -> None:
    app = application(tmp_path / "app", pgqueue_blank_database)
    app.revision("b2", "a1", call, "pass")
    with pytest.raises(ConfigurationError, match=says):
        command.upgrade(app.config, "head")
    assert tables(eyes) == set()
