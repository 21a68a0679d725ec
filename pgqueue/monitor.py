"""The operator's eyes: one function for each question. `app.jobs` and `app.dead` ask them on the app's connection."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from pgqueue import db, rights
from pgqueue.drivers import NO_RIGHT, STANDBY, Rows, Steps, sqlstate
from pgqueue.errors import MAX_ID, InvalidOption, JobNotFound, MissingRight, SchemaError, checked_id, checked_ids, whole
from pgqueue.job import Job, LogLine, Progress, State
from pgqueue.logs import one_line
from pgqueue.rights import Right
from pgqueue.settings import MIN_SERVER
from pgqueue.sql import Statements

# What it says in version() -> its name. Yugabyte and Redshift begin with "PostgreSQL", too.
_OTHER_PRODUCTS = {"CockroachDB": "CockroachDB", "-YB-": "YugabyteDB", "Redshift": "Amazon Redshift"}


def find(
    sql: Statements,
    *,
    ids: list[int] | None = None,
    state: str | None = None,
    task: str | None = None,
    queue: str | None = None,
    before: int | None = None,
    limit: int = 50,
    bare: bool = False,
) -> Steps[list[Job]]:
    """Jobs in any state, newest first. before: only ids below, to read on. limit: 1 to 1,000. bare: with a marker in
    place of their JSON. Raises InvalidOption at once, before any step."""
    if state is not None and state not in {known.value for known in State}:
        raise InvalidOption(f"state must be one of {', '.join(known.value for known in State)}, not {state!r}")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 1_000:
        raise InvalidOption(f"limit must be a whole number between 1 and 1,000, not {limit!r}")
    if ids is not None:
        ids = checked_ids(ids)
    if before is not None:
        whole("before", before, 0, MAX_ID)
    rows = db.find_jobs(sql, ids=ids, state=state, task=task, queue=queue, before=before, limit=limit, bare=bare)
    return _read_jobs(rows, bare=bare)


def _read_jobs(steps: Steps[Rows], *, bare: bool) -> Steps[list[Job]]:
    rows = yield from steps
    if bare:
        return [replace(_job(row), args=TOO_LARGE, meta=TOO_LARGE, result=TOO_LARGE) for row in rows]
    return [_job(row) for row in rows]


def one(sql: Statements, job_id: int) -> Steps[Job]:
    """The job, in whatever state. Raises InvalidOption at once; JobNotFound."""
    return _only(find(sql, ids=[job_id]), job_id)


def _only(steps: Steps[list[Job]], job_id: int) -> Steps[Job]:
    found = yield from steps
    if not found:
        raise JobNotFound(f"there is no job {job_id}")
    return found[0]


class Cause(NamedTuple):
    """One thing that keeps a job from running, or what became of it. cause: a word of docs/sql.md, "Why". detail: for
    people; of the first cause a sentence that stands by itself. since: when it began; None where nobody knows."""

    cause: str
    detail: str
    since: datetime | None


def why(sql: Statements, job_id: int) -> Steps[list[Cause]]:
    """Why a job is not running, the weightiest cause first; "unknown" of one that never was."""
    if isinstance(job_id, bool) or not isinstance(job_id, int):
        raise InvalidOption(f"job_id must be a whole number, not {job_id!r}")
    if not -(2**63) <= job_id < 2**63:
        return [Cause("unknown", f"there is no job {job_id}", None)]
    return [Cause(*row) for row in (yield from db.why(sql, job_id))]


class Finding(NamedTuple):
    """One measure of the database under the queue. level: critical, warning, note or ok. value: in `unit`; None where
    there is no number. fix: the statement that mends it; None where none does."""

    finding: str
    level: str
    value: float | None
    unit: str | None
    detail: str
    fix: str | None


def health(sql: Statements) -> Steps[list[Finding]]:
    """What the view `health` says, what needs somebody first."""
    return [Finding(*row) for row in (yield from db.health(sql))]


def server_clock(sql: Statements) -> Steps[tuple[float, int]]:
    """(seconds since 1970 by the server's clock, the process that answers)."""
    return (yield from db.server_clock(sql))


def progress(sql: Statements, job_id: int) -> Steps[Progress | None]:
    """How far a job is, as it said itself; None of one that said nothing, or ended a while ago."""
    if isinstance(job_id, bool) or not isinstance(job_id, int):
        raise InvalidOption(f"job_id must be a whole number, not {job_id!r}")
    if not -(2**63) <= job_id < 2**63:
        return None
    row = yield from db.progress_of(sql, job_id)
    return None if row is None else Progress(*row)


def log_of(sql: Statements, job_id: int, *, attempt: int | None = None, limit: int = 10_000) -> Steps[list[LogLine]]:
    """What a job said in its log, oldest first: the last `limit` lines. Raises InvalidOption at once."""
    checked_id(job_id)
    if attempt is not None:
        whole("attempt", attempt, 0, 2**31 - 1)
    whole("limit", limit, 1, 100_000)
    return _log_of(db.log_of(sql, job_id, attempt, limit))


def _log_of(steps: Steps[Rows]) -> Steps[list[LogLine]]:
    return [LogLine(*row) for row in (yield from steps)]


def check_server(sql: Statements) -> Steps[None]:
    """Raises SchemaError unless this is a PostgreSQL on which pgqueue can work."""
    why = unusable(*(yield from db.server(sql)))
    if why is not None:
        raise SchemaError(why)


def unusable(version: str, number: int, encoding: str, standby: bool) -> str | None:
    """Why pgqueue cannot work on a server that says this of itself; None when it can."""
    needs = f"pgqueue needs PostgreSQL {MIN_SERVER} or newer"
    for mark, product in _OTHER_PRODUCTS.items():
        if mark in version:
            return f"the server is {product}, which speaks PostgreSQL's protocol and does not lock as it does: {needs}"
    if not version.startswith("PostgreSQL "):
        name = one_line(version.split(" ", 1)[0][:40]) or "something else"
        return f"the server is {name}, not PostgreSQL: {needs}"
    if number < MIN_SERVER * 10_000:
        return f"the server is PostgreSQL {version.split()[1].rstrip(',')}: {needs}"
    if encoding != "UTF8":
        return (
            f"the database's encoding is {encoding}, which cannot hold every text: pgqueue needs one made with "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    if standby:
        return f"{STANDBY} (in a URL of several hosts: ?target_session_attrs=read-write)"
    return None


def check_statements(sql: Statements, verbs: Iterable[str]) -> Steps[None]:
    """Raises SchemaError when one of the statements could not run: half a schema, or rights that the role lacks."""
    verbs = list(verbs)
    for verb in verbs:
        try:
            yield from db.could_run(sql, verb)
        except Exception as error:
            state, said = sqlstate(error) or "", _said(error)
            if state in ("57014", "55P03"):
                return  # somebody locks a table: nothing can be told, and the worker will wait as it would later
            if state == NO_RIGHT:
                raise (yield from refusal(sql, verbs, error)) from None
            if state in ("42P01", "42703", "42883", "3F000"):
                raise SchemaError(
                    f'schema "{sql.schema}" stands at the right migration and is not whole ({verb}): {said}; '
                    "restore it, or remove what is left and run `pgqueue migrate`"
                ) from None
            raise


def refusal(sql: Statements, verbs: Iterable[str], error: Exception, also: Iterable[Right] = ()) -> Steps[SchemaError]:
    """The error for a role that was refused one of these statements: everything that it lacks for all of them at once.
    also: rights beside them."""
    wanted = dict.fromkeys([*also, *(right for verb in verbs for right in rights.of(sql[verb]))])
    lacking, role = yield from db.missing_rights(sql, list(wanted))
    said = error.said if isinstance(error, MissingRight) else _said(error)
    if not lacking:  # a policy of somebody's, say
        return SchemaError(f"the role may not do this: {said}")
    return rights.refused(said, lacking, role)


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def version(sql: Statements) -> Steps[str]:
    """The migration the schema stands at. Raises SchemaError when it was migrated away."""
    found = yield from db.schema_version(sql)
    if found is None:
        raise SchemaError(f'schema "{sql.schema}" holds no pgqueue tables: run `pgqueue migrate`')
    return found


def check_schema(sql: Statements, head: str) -> Steps[None]:
    """Raises SchemaError unless the schema stands at the migration this version was written for."""
    found = yield from version(sql)
    if found != head:
        raise SchemaError(
            f'schema "{sql.schema}" stands at migration {found}, this version of pgqueue needs {head}: '
            + ("run `pgqueue migrate`" if found < head else "install the version that migrated it")
        )


TOO_LARGE = {"$pgqueue": "unreadable", "why": "larger than the server can hold as text"}


def _job(row: tuple[Any, ...]) -> Job:
    errors = read(row[20])
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
        worker_id=UUID(row[12]) if isinstance(row[12], str) else row[12],  # psycopg2 gives text
        unique_key=row[13],
        concurrency_key=row[14],
        tags=tuple(row[15] or ()),
        meta=read(row[16]),
        args=read(row[17]),
        result=read(row[18]),
        error=row[19],
        errors=[one for one in errors if isinstance(one, dict)] if isinstance(errors, list) else [],
        reason=row[21],
    )


def read(text: str | None) -> Any:
    """Stored JSON; a marker in its place when Python cannot read it, so that the job is seen all the same."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # thousands of digits or levels, or cut for its length
        return {"$pgqueue": "unreadable", "why": type(error).__name__}
