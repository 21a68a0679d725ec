"""Roles for tests: a role belongs to the whole server, so each has a name of its own and is gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg.sql import SQL, Identifier


@contextmanager
def new_role(url: str, *rights: str) -> Iterator[str]:
    """The name of a role that can log in and may do nothing in the database of `url` but what `rights` grant it:
    `new_role(url, "usage on schema pgqueue")`."""
    name = f"pgqueue_test_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SQL("create role {} login").format(Identifier(name)))
        for right in rights:
            connection.execute(SQL("grant {} to {}").format(SQL(right), Identifier(name)))
    try:
        yield name
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(SQL("drop owned by {} cascade").format(Identifier(name)))
            connection.execute(SQL("drop role {}").format(Identifier(name)))
