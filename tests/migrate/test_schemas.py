"""A schema of any name, and several in one database: the whole path of a job in each, and none sees the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier, Literal

from pgqueue import PgQueue, RetryPolicy, State, migrate
from pgqueue.testing import _new_database, _url
from tests.cli.conftest import Run, run

__all__ = ["run"]  # a fixture

NAMES = [
    'a"; drop table x; --',
    "100% %s %(x)s",
    " a b ",
    "MiXeD",
    "a:b ::c",
    "a.b",
    "it's",
    "back\\slash",
    "$$ $q$ $1",
    "{schema} {schema_literal}",
    "-- comment",
    "new\nline",
    "grün 日本",
    "x" * 40,
    "ü" * 20,
    "select",
    "public",
]


@pytest.fixture(scope="module")
def database(pgqueue_server: str) -> Iterator[str]:
    """One database for all of the schemas."""
    with _new_database(pgqueue_server) as name:
        yield _url(pgqueue_server, name)


@pytest.fixture
def looking(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def made(database: str, schema: str) -> PgQueue:
    """An app with tasks that succeed, retry, die."""
    migrate.upgrade(database, schema)
    app = PgQueue(database, schema=schema)

    @app.task(name="shop.double")
    def double(x: int) -> int:
        return 2 * x

    @app.task(name="shop.fails", max_attempts=2, retry=RetryPolicy(delay=0))
    async def fails(x: int) -> int:
        if x < 0:
            raise ValueError("negative")
        return x

    return app


def work(app: PgQueue) -> None:
    asyncio.run(app.worker(drain=True, poll_interval=0.02).run_async())


@pytest.mark.parametrize("schema", NAMES, ids=ascii)
def test_a_job_goes_all_the_way_in_a_schema_of_any_name(
    database: str, looking: psycopg.Connection[Any], schema: str
) -> None:
    app = made(database, schema)
    try:
        done = app.tasks["shop.double"].enqueue(looking, 21).id
        many = app.enqueue_many(looking, [app.tasks["shop.double"].job(1), app.tasks["shop.fails"].job(2)])
        dies = app.tasks["shop.fails"].delay(-1).id
        by_sql = looking.execute(
            SQL("select {}.enqueue('shop.double', '[4]', unique_key => 'k')").format(Identifier(schema))
        ).fetchone()
        held = app.tasks["shop.double"].options(delay=3600).delay(1).id
        keyed = app.tasks["shop.double"].options(unique_key="k").enqueue(looking, 4)
        assert by_sql == (keyed.id,)
        assert keyed.existing

        work(app)

        assert {job: app.jobs.get(job).result for job in (done, *many, keyed.id)} == {
            done: 42, many[0]: 2, many[1]: 2, keyed.id: 8
        }  # fmt: skip
        dead = app.jobs.get(dies)
        assert (dead.state, dead.reason, [one["attempt"] for one in dead.errors]) == (State.DEAD, "attempts", [1, 2])
        assert app.jobs.cancel(held)
        assert app.jobs.get(held).state is State.CANCELLED
        assert app.dead.redrive(dies, args={"x": 3}) == [dies]
        work(app)
        assert app.jobs.get(dies).result == 3
        redrive = SQL("select {}.redrive({})").format(Identifier(schema), Literal(dies))
        assert looking.execute(redrive).fetchone() == (False,)
        count = looking.execute(SQL("select count(*) from {}.workers").format(Identifier(schema))).fetchone()
        assert count == (0,)
    finally:
        app.close()


@pytest.mark.parametrize("schema", [name for name in NAMES if not name.isalpha() or len(name) == 40], ids=ascii)
def test_the_command_line_takes_a_schema_of_any_name(
    run: Run, database: str, looking: psycopg.Connection[Any], schema: str
) -> None:
    looking.execute("create table if not exists x ()")
    at = ("--database-url", database, "--schema", schema)
    in_environment = {"PGQUEUE_DATABASE_URL": database, "PGQUEUE_SCHEMA": schema}
    run("migrate", *at)
    assert f"at {migrate.head()}, as declared" in run("migrate", "--check", *at).stdout
    job = json.loads(run("enqueue", "shop.double", "[21]", "--unique-key", "cli", "--json", *at).stdout)["id"]
    again = json.loads(
        run("enqueue", "shop.double", "[21]", "--unique-key", "cli", "--json", env=in_environment).stdout
    )
    assert again == {"id": job, "existing": True}
    assert json.loads(run("jobs", "show", str(job), "--json", env=in_environment).stdout)["state"] == "queued"
    assert str(job) in run("jobs", "list", *at).stdout
    run("jobs", "cancel", str(job), *at)
    assert run("dead", "list", env=in_environment).stdout
    assert migrate.current(database, schema) == migrate.head()
    assert looking.execute("select to_regclass('public.x') is not null").fetchone() == (True,)


def test_schemas_of_one_database_do_not_see_each_others_jobs(pgqueue_blank_database: str) -> None:
    one, two = made(pgqueue_blank_database, "one"), made(pgqueue_blank_database, "two")
    try:
        first = one.tasks["shop.double"].options(unique_key="same").delay(1).id
        second = two.tasks["shop.double"].options(unique_key="same").delay(2)
        assert not second.existing
        assert second.id == first  # each counts for itself
        work(one)
        assert one.jobs.get(first).state is State.COMPLETED
        assert two.jobs.get(first).state is State.QUEUED
        migrate.downgrade(pgqueue_blank_database, "one")
        work(two)
        assert two.jobs.get(first).result == 4
    finally:
        one.close()
        two.close()
