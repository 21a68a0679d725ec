"""The operator's eyes: one function for each question. `app.jobs` and `app.dead` ask them on the app's connection."""

from __future__ import annotations

import json
from typing import Any

from pgqueue import db
from pgqueue.drivers import Steps
from pgqueue.errors import InvalidOption, SchemaError
from pgqueue.job import Job, State
from pgqueue.sql import Statements


def find(
    sql: Statements,
    *,
    ids: list[int] | None = None,
    state: str | None = None,
    task: str | None = None,
    queue: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> Steps[list[Job]]:
    """Jobs in any state, newest first. before: only ids below, to read on. limit: 1 to 1,000."""
    if state is not None and state not in {known.value for known in State}:
        raise InvalidOption(f"state must be one of {', '.join(known.value for known in State)}, not {state!r}")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 1_000:
        raise InvalidOption(f"limit must be a whole number between 1 and 1,000, not {limit!r}")
    rows = yield from db.find_jobs(sql, ids=ids, state=state, task=task, queue=queue, before=before, limit=limit)
    return [_job(row) for row in rows]


def check_schema(sql: Statements, head: str) -> Steps[None]:
    """Raises SchemaError unless the schema stands at the migration this version was written for."""
    version = yield from db.schema_version(sql)
    if version is None:
        raise SchemaError(f'schema "{sql.schema}" holds no pgqueue tables: run `pgqueue migrate`')
    if version != head:
        raise SchemaError(
            f'schema "{sql.schema}" stands at migration {version}, this version of pgqueue needs {head}: '
            + ("run `pgqueue migrate`" if version < head else "install the version that migrated it")
        )


def _job(row: tuple[Any, ...]) -> Job:
    errors = _read(row[20])
    return Job(
        id=row[0],
        task=row[1],
        queue=row[2],
        state=State(row[3]),
        priority=row[4],
        run_at=row[5],
        attempt=row[6],
        max_attempts=row[7],
        fence=row[8],
        created_at=row[9],
        started_at=row[10],
        finished_at=row[11],
        worker_id=row[12],
        unique_key=row[13],
        concurrency_key=row[14],
        tags=tuple(row[15] or ()),
        meta=_read(row[16]),
        args=_read(row[17]),
        result=_read(row[18]),
        error=row[19],
        errors=errors if isinstance(errors, list) else [],
        reason=row[21],
    )


def _read(text: str | None) -> Any:
    """Stored JSON; a marker in its place when Python cannot read it, so that the job is seen all the same."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # thousands of digits or levels, or cut for its length
        return {"$pgqueue": "unreadable", "why": type(error).__name__}
