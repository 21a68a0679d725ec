"""`pgqueue doctor`: what is wrong with the database under the queue, and the statement that mends it.

Most of it is the view `health`, which everybody can ask. Here is what only somebody from outside can tell: whether the
schema is the one that this version declares, whether a pooler is between, whether the two clocks agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg

from pgqueue import migrate, monitor
from pgqueue.drivers import look
from pgqueue.drivers import perform_raw as perform
from pgqueue.errors import MissingRight, SchemaError
from pgqueue.monitor import Finding
from pgqueue.settings import DEFAULT_SCHEMA, conninfo_from_url, schema_name
from pgqueue.sql import Statements, statements
from pgqueue.versions import head

SKEW = 2.0  # seconds by which a clock may differ from the server's
ROUND_TRIP = 0.05  # seconds; past that a claim and a settle take longer than most jobs
MOST_MISSING = 20  # differences that are named where the schema is not whole
LOOKS = 5  # at the clock; the quickest answer counts, being the least delayed

_WORST_FIRST = ("critical", "warning", "note", "ok")


def examine(
    url: str, schema: str = DEFAULT_SCHEMA, *, quick: bool = False, clock: Callable[[], float] = time.time
) -> list[Finding]:
    """Everything that was looked at, what needs somebody first. quick: without comparing the schema, which makes
    temporary tables and takes as long as all the rest. clock: this machine's, in seconds since 1970.

    Raises SchemaError where pgqueue cannot work at all: another server or encoding, a standby, no tables, another
    version's; MissingRight; psycopg.OperationalError.
    """
    sql = statements(schema_name(schema))
    with psycopg.connect(
        conninfo_from_url(url), autocommit=True, connect_timeout=10, application_name="pgqueue doctor"
    ) as raw:
        raw.prepare_threshold = None  # there may be a pooler
        perform(raw, monitor.check_server(sql))
        try:
            perform(raw, monitor.check_schema(sql, head()))
            found = _health(raw, sql, url)
        except psycopg.errors.UndefinedTable:
            raise SchemaError(f'schema "{schema}" holds no pgqueue tables: run `pgqueue migrate`') from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise perform(raw, monitor.refusal(sql, ("schema_version", "health"), error)) from None
        found += _from_outside(raw, sql, clock)
    found += [] if quick else _drift(url, schema)
    return sorted(found, key=lambda one: _WORST_FIRST.index(one.level))


def _health(raw: psycopg.Connection[tuple[object, ...]], sql: Statements, url: str) -> list[Finding]:
    try:
        return look(raw, monitor.health(sql))
    except MissingRight:
        raise
    except SchemaError as error:  # a view goes with what it reads: what is missing is not what this names
        missing = migrate.check(url, sql.schema).differences[:MOST_MISSING] or [str(error)]
        raise SchemaError(
            f'schema "{sql.schema}" stands at the right migration and is not whole ({"; ".join(missing)}): '
            "restore it, or remove what is left and run `pgqueue migrate`"
        ) from None


def _from_outside(
    raw: psycopg.Connection[tuple[object, ...]], sql: Statements, clock: Callable[[], float]
) -> list[Finding]:
    looks = []
    for _ in range(LOOKS):
        before = clock()
        theirs, backend = perform(raw, monitor.server_clock(sql))
        after = clock()
        looks.append((after - before, (before + after) / 2 - theirs, backend))
    trip, skew, backend = min(looks)
    ahead = "ahead of" if skew > 0 else "behind"
    pooled = backend != raw.info.backend_pid
    return [
        Finding(
            "clock",
            "warning" if abs(skew) > SKEW + trip else "ok",
            abs(skew),
            "seconds",
            f"this machine's clock is {abs(skew):.1f} s {ahead} the server's, by which jobs are due",
            None,
        ),
        Finding(
            "round_trip",
            "note" if trip > ROUND_TRIP else "ok",
            trip,
            "seconds",
            f"the server answers after {trip * 1000:.1f} ms",
            None,
        ),
        Finding(
            "pooler",
            "note" if pooled else "ok",
            None,
            None,
            "a pooler is between: workers poll and do not listen, unless --listen-url gives them a direct way"
            if pooled
            else "no pooler is between",
            None,
        ),
    ]


def _drift(url: str, schema: str) -> list[Finding]:
    compared = migrate.check(url, schema)
    if not compared.differences:
        return [Finding("schema", "ok", None, None, f"at migration {compared.version}, as declared", None)]
    return [Finding("schema", "warning", None, None, f"not as declared: {one}", None) for one in compared.differences]
