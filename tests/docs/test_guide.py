"""The examples of docs/guide.md run one after the other in one module; the queries of docs/sql.md run as they stand."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import psycopg
import pytest
from alembic.config import Config

from alembic import command
from pgqueue import db, migrate, rights
from pgqueue.app import OF_A_WORKER
from pgqueue.sql import statements
from tests.docs.test_readme import BLOCK, ROOT
from tests.helpers import run

A_FILE = "# migrations/"  # the first line of an example that is a file of its own


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def test_the_examples_of_the_guide_run(pgqueue_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", pgqueue_database)
    examples = [text for text in blocks(ROOT / "docs" / "guide.md", "python") if not text.startswith(A_FILE)]
    assert len(examples) >= 4
    module = ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", module)
    try:
        for number, text in enumerate(examples):
            exec(compile(text, f"docs/guide.md, example {number + 1}", "exec"), module.__dict__)
    finally:
        module.app.close()


def test_the_files_for_an_applications_own_alembic_history_make_one(
    pgqueue_blank_database: str, tmp_path: Path
) -> None:
    files = [text for text in blocks(ROOT / "docs" / "guide.md", "python") if text.startswith(A_FILE)]
    assert len(files) == 2
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    for text in files:
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
    config = Config()
    config.set_main_option("script_location", str(tmp_path / "migrations"))
    url = pgqueue_blank_database.replace("postgresql:", "postgresql+psycopg:", 1)
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")
    assert migrate.current(pgqueue_blank_database) == migrate.head()  # the guide names the newest
    assert migrate.check(pgqueue_blank_database).differences == []
    command.check(config)
    command.downgrade(config, "base")
    assert migrate.current(pgqueue_blank_database) is None


def test_the_queries_of_the_sql_page_run(pgqueue_database: str) -> None:
    every = blocks(ROOT / "docs" / "sql.md", "sql")
    queries = "".join(text for text in every if "CREATE ROLE" not in text).split(";")
    with psycopg.connect(pgqueue_database) as connection:
        for query in filter(str.strip, queries):
            connection.execute(query)
    assert len(queries) > 6


def test_the_roles_of_the_sql_page_may_do_what_it_says_and_no_more(pgqueue_database: str) -> None:
    (text,) = [text for text in blocks(ROOT / "docs" / "sql.md", "sql") if "CREATE ROLE" in text]
    sql = statements("pgqueue")
    enqueues, looks = (
        ("enqueue", "enqueue_many", "enqueue_alike", "holder"),
        ("find_jobs", "find_dead", "queue_depth", "why"),
    )
    may = {
        "shop_web": enqueues,
        "shop_worker": (*OF_A_WORKER, *enqueues),
        "shop_monitor": looks,
        "shop_watch": ("why",),
    }
    with psycopg.connect(pgqueue_database) as connection:
        connection.execute(text.encode())  # rolled back: roles are the whole server's
        for role, verbs in may.items():
            connection.execute(f"set local role {role}".encode())
            for verb in ("schema_version", *verbs):
                run(
                    connection, db.could_run(sql, verb)
                )  # whoever enqueues, and whoever watches, has some columns alone
                if role not in ("shop_web", "shop_watch"):
                    assert run(connection, db.missing_rights(sql, rights.of(sql[verb]))) == ([], ""), (role, verb)
            for verb in () if role == "shop_worker" else ("claim", "redrive", "purge"):
                assert run(connection, db.missing_rights(sql, rights.of(sql[verb])))[0], (role, verb)
            connection.execute("reset role")
        connection.rollback()


def test_the_functions_of_the_sql_page_have_the_parameters_that_it_names(pgqueue_database: str) -> None:
    page = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    with psycopg.connect(pgqueue_database) as connection:
        found = connection.execute(
            "SELECT proname, proargnames[:pronargs] FROM pg_proc WHERE pronamespace = 'pgqueue'::regnamespace"
        ).fetchall()
    assert {"enqueue", "redrive", "prune"} <= {name for name, _ in found}
    for name, parameters in found:
        assert f"`pgqueue.{name}({', '.join(parameters)})" in page


def test_every_column_of_the_public_tables_and_views_is_documented(pgqueue_database: str) -> None:
    page = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    with psycopg.connect(pgqueue_database) as connection:
        found = connection.execute(
            "SELECT DISTINCT column_name FROM information_schema.columns WHERE table_schema = 'pgqueue'"
            " AND table_name IN ('jobs', 'finished_jobs', 'dead_jobs', 'job_errors', 'workers', 'queues',"
            " 'queue_stats', 'task_stats', 'worker_stats', 'failed_attempts', 'schedule_stats', 'health')"
        ).fetchall()
    assert found
    assert [name for (name,) in found if name not in page] == []
