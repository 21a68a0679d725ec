"""The history: what became of every row of a database under test, noted in the transaction in which it happened.

Triggers, so that nothing that was committed is missing and nothing that was rolled back is there. They see the same
for whoever writes: worker, operator or test.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psycopg

from tests.torture.checker import Change

_MAKE = """
create schema torture;
create table torture.history (
    seq bigint generated always as identity primary key,
    tx bigint not null default pg_current_xact_id()::text::bigint,
    at timestamptz not null default clock_timestamp(),
    said timestamptz not null default statement_timestamp(),
    place text not null,
    row_id text not null,
    old jsonb,
    new jsonb
);
create function torture.note() returns trigger language plpgsql as $$
declare
    -- Of the arguments only the key: a bad row's would not fit through Python's JSON.
    wanted text[] := '{state,task,attempt,max_attempts,fence,crashes,worker_id,run_at,started_at,expires_at,unique_key,'
        'reason,pid,stopping,cancelling}';
    was jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    is_ jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
begin
    insert into torture.history (place, row_id, old, new)
    select tg_argv[0], coalesce(is_, was) ->> 'id',
        (select jsonb_object_agg(key, value) from jsonb_each(was) where key = any(wanted))
            || jsonb_build_object('key', was -> 'args' ->> 'key'),
        (select jsonb_object_agg(key, value) from jsonb_each(is_) where key = any(wanted))
            || jsonb_build_object('key', is_ -> 'args' ->> 'key');
    return null;
end
$$;
"""
_TRIGGER = """
create trigger note after insert or update or delete on pgqueue.{0}
for each row execute function torture.note({0})
"""
_READ = """
select seq, tx, extract(epoch from at)::float8, extract(epoch from said)::float8, place, row_id, old, new
from torture.history
where seq > %s
order by seq
"""


def install(connection: psycopg.Connection[Any]) -> None:
    """From now on everything is noted."""
    connection.execute(_MAKE.replace("'\n        '", ""))
    for table in ("jobs", "finished_jobs", "dead_jobs", "workers"):
        connection.execute(_TRIGGER.format(table))


def last(connection: psycopg.Connection[Any]) -> int:
    """The number of the last change so far."""
    (row,) = connection.execute("select coalesce(max(seq), 0) from torture.history").fetchall()
    return row[0]  # type: ignore[no-any-return]


def read(connection: psycopg.Connection[Any], after: int = 0) -> list[Change]:
    """All of it, in order. Of the changes to one row that order is the one in which they were made."""
    return [
        Change(seq, tx, at, said, table, id, _seconds(old), _seconds(new))
        for seq, tx, at, said, table, id, old, new in connection.execute(_READ, [after])
    ]


def rows(connection: psycopg.Connection[Any]) -> dict[int, Mapping[str, Any]]:
    """Where each job is now."""
    names = "id", "state", "task", "attempt", "fence", "crashes", "reason", "ended_at"
    found = connection.execute(
        f"select {', '.join(names[:-1])}, extract(epoch from finished_at)::float8 from pgqueue.all_jobs"
    )
    return {row[0]: dict(zip(names, row, strict=True)) for row in found}


def _seconds(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is not None:
        for name in ("run_at", "started_at", "expires_at"):
            if row.get(name) is not None:
                row[name] = datetime.fromisoformat(row[name]).timestamp()
    return row
