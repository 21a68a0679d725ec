"""pytest fixtures for pgqueue's own tests and for yours: `pytest_plugins = ["pgqueue.testing"]` in a conftest.py.

A test asks for `pgqueue_database` and gets the URL of a database of its own, with pgqueue's tables in it, dropped
afterwards; copying a migrated template makes that a matter of milliseconds. The server is PGQUEUE_TEST_DATABASE_URL
where that is set (a superuser, or a role that may create databases), and otherwise an embedded one, which every
pytest-xdist worker starts for itself. The only module of pgqueue that imports pytest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url

from pgqueue.embedded import EmbeddedPostgres

# Test data may die with the machine: nothing waits for a disk.
_SETTINGS = {
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",  # it may lie in memory (see _temp_dir)
    "max_connections": "200",  # the default of 100 is soon used up by a few workers with their pools
}


@pytest.fixture(scope="session")
def pgqueue_server() -> Iterator[str]:
    """URL of the server's maintenance database, for creating others: PGQUEUE_TEST_DATABASE_URL, else an embedded
    server's. Errors: EmbeddedPostgresError when there is nothing to run."""
    if given := os.environ.get("PGQUEUE_TEST_DATABASE_URL"):
        yield _url(given)
        return
    with EmbeddedPostgres(temp_dir=_temp_dir(), fsync=False, settings=_SETTINGS) as server:
        yield server.url()


@pytest.fixture(scope="session")
def pgqueue_template(pgqueue_server: str) -> Iterator[str]:
    """Name of a database with pgqueue's schema and no rows, to be copied; a copy fails while anybody is connected."""
    from pgqueue.migrate import upgrade  # not above: who tests without pgqueue's tables need not load Alembic

    with _new_database(pgqueue_server) as name:
        upgrade(_url(pgqueue_server, name), schema="pgqueue")
        yield name


@pytest.fixture
def pgqueue_database(pgqueue_server: str, pgqueue_template: str) -> Iterator[str]:
    """URL of a fresh database with pgqueue's schema and no rows; dropped afterwards, whoever is still connected."""
    with _new_database(pgqueue_server, pgqueue_template) as name:
        yield _url(pgqueue_server, name)


@pytest.fixture
def pgqueue_blank_database(pgqueue_server: str) -> Iterator[str]:
    """URL of a fresh, empty database; dropped afterwards, whoever is still connected."""
    with _new_database(pgqueue_server) as name:
        yield _url(pgqueue_server, name)


def _temp_dir() -> Path | None:
    """Memory, if there are 2 GB of it in the usual place. A database has 300 files, and for each new one ext4 searches
    past all that were deleted in the last minutes: the tests' own. A database took 280 ms in /tmp, and 13 ms here."""
    memory = Path("/dev/shm")  # noqa: S108  the directory below it has a random name and mode 0700
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= 2 << 30
    return memory if roomy else None


@contextmanager
def _new_database(server: str, template: str = "template0") -> Iterator[str]:
    """A database for the time being; its name. template0 is the one that nobody can be connected to."""
    name = f"pgqueue_test_{uuid4().hex}"  # not a counter: several runs may share PGQUEUE_TEST_DATABASE_URL
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template)))
    try:
        yield name
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def _url(url: str, database: str | None = None) -> str:
    """`url`, of another database if named, in the form that psycopg reads as well as SQLAlchemy."""
    return make_url(url).set(drivername="postgresql", database=database).render_as_string(hide_password=False)
