"""psycopg2: the application's own connection; without the library's help, whose cursors an application may replace."""

from __future__ import annotations

import gc
from typing import Any

from psycopg2 import extensions

from pgqueue.drivers.steps import ABORTED, CLOSED, READ_ONLY, STANDBY, TWO_PHASE, Call, Rows, Run, check_process
from pgqueue.errors import UnusableConnection


def open_sync(raw: Any) -> Run:
    """What runs a statement on the connection. Raises UnusableConnection when it could take none."""
    check(raw)

    def run(call: Call) -> Rows:
        if call.notifies and _in_two_phases(raw):
            raise UnusableConnection(TWO_PHASE)
        # The plain class, whatever cursor_factory the application has set: rows are to be tuples.
        with raw.cursor(cursor_factory=extensions.cursor) as cursor:
            cursor.execute(call.text, dict(call.params))
            return cursor.fetchall() if cursor.description else []

    return run


def check(raw: Any) -> None:
    """Raises UnusableConnection, without asking the server, when the connection can take no job."""
    if raw.closed:
        raise UnusableConnection(CLOSED)
    if getattr(raw, "async_", 0):
        raise UnusableConnection("an asynchronous psycopg2 connection takes no transactions: open it without async_")
    check_process(raw, raw.fileno)
    status = raw.info.transaction_status
    if status == extensions.TRANSACTION_STATUS_INERROR:
        raise UnusableConnection(ABORTED)
    if raw.info.parameter_status("in_hot_standby") == "on":
        raise UnusableConnection(STANDBY)
    read_only = raw.readonly
    if read_only is None and status == extensions.TRANSACTION_STATUS_IDLE:
        read_only = raw.info.parameter_status("default_transaction_read_only") == "on"
    if read_only:
        raise UnusableConnection(READ_ONLY)


def role(raw: Any) -> str | None:
    """Who has logged in."""
    name: str | None = raw.info.parameter_status("session_authorization") or raw.info.user
    return name


def _in_two_phases(raw: Any) -> bool:
    """Between tpc_begin and its end. No attribute tells; but the connection holds its Xid, as the collector knows."""
    return any(isinstance(held, extensions.Xid) for held in gc.get_referents(raw))
