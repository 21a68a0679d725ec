"""An application whose code is another version than its schema: each call works, or says which migration it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, SchemaError, Task, migrate

Call = Callable[[PgQueue, Task[..., Any], psycopg.Connection[Any]], object]

CALLS: dict[str, Call] = {
    "enqueue": lambda app, task, to: task.enqueue(to, 1),
    "enqueue_many": lambda app, task, to: task.enqueue_many(to, [(1,), (2,)]),
    "mixed": lambda app, task, to: app.enqueue_many(to, [task.job(1), task.options(priority=2).job(1)]),
    "unique_key": lambda app, task, to: task.options(unique_key="k").enqueue(to, 1),
    "on_conflict": lambda app, task, to: task.options(unique_key="k", on_conflict="replace").enqueue(to, 2),
    "many with keys": lambda app, task, to: task.options(unique=True).enqueue_many(to, [(1,), (1,)]),
    "unique_until": lambda app, task, to: task.options(unique=True, unique_until="claimed").enqueue(to, 1),
    "unique_for": lambda app, task, to: task.options(unique=True, unique_for=60).enqueue(to, 1),
    "many with periods": lambda app, task, to: task.options(unique=True, unique_for=60).enqueue_many(to, [(1,)]),
}
NEEDS = {"unique_until": "0013", "unique_for": "0013", "many with periods": "0013"}  # as the guide says


@pytest.fixture
def task(app: PgQueue) -> Task[..., Any]:
    return app.task(name="t")(lambda n: None)


def test_an_enqueue_works_on_every_schema_before_its_own_or_names_the_migration_that_it_needs(
    pgqueue_database: str, app: PgQueue, task: Task[..., Any]
) -> None:
    migrate.to(pgqueue_database, "pgqueue", "0001")
    for revision in migrate.revisions():
        migrate.to(pgqueue_database, "pgqueue", revision)
        for name, call in CALLS.items():
            with psycopg.connect(pgqueue_database) as mine:
                if revision < NEEDS.get(name, "0001"):
                    with pytest.raises(SchemaError, match=f"migration {migrate.head()}.*run `pgqueue migrate`"):
                        call(app, task, mine)
                else:
                    call(app, task, mine)
                    counted = mine.execute("select count(*) from pgqueue.jobs").fetchone()
                    assert counted is not None
                    assert counted[0] in (1, 2), (revision, name)
                mine.rollback()


def test_an_enqueue_works_on_a_newer_schema_whose_migrations_have_added_to_it(
    pgqueue_database: str, app: PgQueue, task: Task[..., Any], connection: psycopg.Connection[Any]
) -> None:
    connection.execute("alter table pgqueue.jobs add column colour text not null default 'red' check (colour <> '')")
    connection.execute("create table pgqueue.of_tomorrow (id bigint)")
    connection.execute("update pgqueue.alembic_version set version_num = '9999'")
    for call in CALLS.values():
        call(app, task, connection)
    assert connection.execute("select distinct colour from pgqueue.jobs").fetchall() == [("red",)]
