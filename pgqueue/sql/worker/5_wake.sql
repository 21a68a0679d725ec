-- wake: wakes one sleeper for each of these queues, on its own channel and without data. For jobs that became due by
-- other ways than an enqueue, and to pass a wake-up on. In: queues text[], but uuid (not this one) or null.
-- Out: how many were woken. Caller: db.wake
select pg_catalog.count(pg_catalog.pg_notify('pgqueue_' || pg_catalog.replace(sleeper.worker_id::text, '-', ''), ''))
from (select distinct queue from pg_catalog.unnest(%(queues)s::text[]) as q (queue)) as due
cross join lateral (
    select worker_id
    from {schema}.sleepers
    where queue in (due.queue, '*') and until > pg_catalog.statement_timestamp()
        and worker_id is distinct from %(but)s::uuid
    limit 1
) as sleeper
