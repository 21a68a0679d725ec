-- enqueue_many: -> queued. A chunk of jobs in one statement, ids in the order of the arrays, and one wake-up a queue.
-- In: arrays of a job's columns, all of one length; table, the quoted name of `jobs`, for its sequence. Out: one row for
--     each job, in input order: n (its place, from 1), id; no row for a job whose unique key a live job, or an earlier one
--     of the chunk, holds. Caller: db.enqueue_many
-- Keys are inserted in their order, so that two chunks with the same keys wait for each other and never deadlock; a chunk
-- whose holder ends before it is looked up is taken back and begun anew. Chunks of one transaction have no such order.
with counter as materialized (
    select pg_catalog.pg_get_serial_sequence(%(table)s, 'id')::regclass as name
),
given as (
    select n, pg_catalog.nextval((select name from counter)) as id, queue, task, priority, run_at, delay, max_attempts,
        expires_in, timeout, args, retry, unique_key, tags, meta, wake
    from unnest(
        %(queue)s::text[], %(task)s::text[], %(priority)s::int[], %(run_at)s::timestamptz[], %(delay)s::float8[],
        %(max_attempts)s::int[], %(expires_in)s::float8[], %(timeout)s::float8[], %(args)s::text[], %(retry)s::text[],
        %(unique_key)s::text[], %(tags)s::text[], %(meta)s::text[], %(wake)s::bool[]
    ) with ordinality as g (queue, task, priority, run_at, delay, max_attempts, expires_in, timeout, args, retry,
        unique_key, tags, meta, wake, n)
    order by n
),
job as (
    insert into {schema}.jobs
        (id, queue, task, priority, run_at, max_attempts, expires_at, timeout, args, retry, unique_key, tags, meta)
    select
        id, queue, task, priority, due.at, max_attempts, due.at + expires_in * interval '1 second', timeout,
        args::jsonb, retry::jsonb, unique_key, tags::text[], meta::jsonb
    from given
    cross join lateral (
        select greatest(given.run_at, pg_catalog.statement_timestamp()) + given.delay * interval '1 second'
    ) as due (at)
    order by unique_key nulls first, n
    on conflict (unique_key) where unique_key is not null do nothing
    returning id, queue, run_at
),
woken as (
    select pg_catalog.pg_notify('pgqueue_' || pg_catalog.replace(sleeper.worker_id::text, '-', ''), '')
    from (
        select queue, pg_catalog.min(job.run_at) as run_at from job join given using (id, queue) where wake group by queue
    ) as due
    cross join lateral (
        select worker_id
        from {schema}.sleepers
        where queue in (due.queue, '*') and until > pg_catalog.statement_timestamp() and until > due.run_at
            and not (
                due.run_at <= pg_catalog.statement_timestamp()
                and exists (
                    select from {schema}.sleepers as lookout
                    where lookout.queue in ('+' || due.queue, '+*') and lookout.until > pg_catalog.statement_timestamp()
                )
            )
        limit 1
    ) as sleeper
)
select given.n, job.id, (select pg_catalog.count(*) from woken)
from given
join job using (id)
order by given.n
