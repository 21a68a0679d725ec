-- register: a worker's row, written before its first claim; its lease begins. Written again after a COMMIT whose answer
-- was lost, it is the same row.
-- In: id uuid, host text, pid int, lease float8 (seconds), queues text[] or null, tasks text[], concurrency int,
--     version text, now timestamptz or null. Out: nothing. Caller: db.register
insert into {schema}.workers (id, host, pid, started_at, heartbeat_at, expires_at, queues, tasks, concurrency, version)
select %(id)s::uuid, %(host)s::text, %(pid)s::int, clock.now, clock.now,
    clock.now + %(lease)s::float8 * interval '1 second', %(queues)s::text[], %(tasks)s::text[], %(concurrency)s::int,
    %(version)s::text
from (select coalesce(%(now)s::timestamptz, statement_timestamp())) as clock (now)
on conflict (id) do update set heartbeat_at = excluded.heartbeat_at, expires_at = excluded.expires_at
