"""Django: `django.db.connection`, or one of `connections`, in `atomic` or out of it.

The statement runs on the driver's connection beneath, so that neither the query log nor `connection.queries` gets a
job's arguments to see; errors are wrapped as Django wraps them.
"""

from __future__ import annotations

from typing import Any

import psycopg
from django.core.exceptions import SynchronousOnlyOperation
from django.db.utils import DatabaseError

from pgqueue.drivers.psycopg import open_sync as open_psycopg
from pgqueue.drivers.psycopg import role as role_of_psycopg
from pgqueue.drivers.steps import NO_TRANSACTION, Call, Rows, Run, sqlstate
from pgqueue.errors import UnusableConnection


def open_sync(connection: Any) -> Run:
    """What runs a statement on the connection. Raises UnusableConnection when it could take none."""
    vendor = getattr(connection, "vendor", None)
    if vendor != "postgresql":
        raise UnusableConnection(
            f"Django's connection is to {vendor or 'no database'}; pgqueue needs one to PostgreSQL"
        )
    try:
        connection.validate_thread_sharing()
    except DatabaseError as error:
        raise UnusableConnection(
            "Django's connection was made in another thread: use django.db.connection, of which each thread has its own"
        ) from error
    if connection.closed_in_transaction:
        raise UnusableConnection("Django's connection was closed inside its atomic block: leave it before you enqueue")
    if connection.needs_rollback:
        raise UnusableConnection(
            "the atomic block was broken by an earlier error: leave it before you enqueue, "
            "and put what may fail into an atomic block of its own"
        )
    try:
        connection.ensure_connection()
    except SynchronousOnlyOperation as error:
        raise UnusableConnection(
            "Django's connection cannot be used where an event loop runs: enqueue inside sync_to_async"
        ) from error
    raw = connection.connection
    if not isinstance(raw, psycopg.Connection):  # Django takes psycopg 3 where it is installed, as it is here
        raise UnusableConnection(
            f"Django's connection runs on {type(raw).__module__}; pgqueue needs psycopg 3 below it"
        )
    run_raw = open_psycopg(raw)

    def run(call: Call) -> Rows:
        try:
            return run_raw(call)
        except Exception as error:
            if sqlstate(error) == NO_TRANSACTION:
                raise  # enqueue_many asks in this way; Django is not to suspect the connection
            with connection.wrap_database_errors:
                raise

    return run


def role(connection: Any) -> str | None:
    """Who has logged in."""
    return role_of_psycopg(connection.connection)
