-- enqueue_queued: -> queued. As enqueue_many, of jobs that hold their unique key until their first claim alone.
-- In: arrays of a job's columns, all of one length, unique_key being those keys. Out: key, id, run_at, created_at of each job; none for
--     one whose key a job that nobody has claimed yet, or an earlier one of the chunk, holds. Caller: db.enqueue_queued
-- Index: jobs_queued_key, which has the rows of fence 0 alone. The claim counts the fence up for every job, and nothing ever
-- counts it down: so the key is given up by a statement that knows nothing of keys, and no retry, release or rescue takes
-- it back. Keys are inserted in their order, as by enqueue_many.
with given as (
    select n, queue, task, priority, run_at, delay, max_attempts, expires_in, timeout, args, retry, unique_key, tags, meta,
        wake
    from unnest(
        %(queue)s::text[], %(task)s::text[], %(priority)s::int[], %(run_at)s::timestamptz[], %(delay)s::float8[],
        %(max_attempts)s::int[], %(expires_in)s::float8[], %(timeout)s::float8[], %(args)s::text[], %(retry)s::text[],
        %(unique_key)s::text[], %(tags)s::text[], %(meta)s::text[], %(wake)s::bool[]
    ) with ordinality as g (queue, task, priority, run_at, delay, max_attempts, expires_in, timeout, args, retry,
        unique_key, tags, meta, wake, n)
),
job as (
    insert into {schema}.jobs
        (queue, task, priority, run_at, max_attempts, expires_at, timeout, args, retry, queued_key, tags, meta)
    select
        queue, task, priority, due.at, max_attempts, due.at + expires_in * interval '1 second', timeout, args::jsonb,
        retry::jsonb, unique_key, tags::text[], meta::jsonb
    from given
    cross join lateral (
        select greatest(given.run_at, pg_catalog.statement_timestamp()) + given.delay * interval '1 second'
    ) as due (at)
    order by unique_key, n
    on conflict (queued_key) where queued_key is not null and fence = 0 do nothing
    returning id, queue, run_at, created_at, queued_key
),
woken as (
    select pg_catalog.pg_notify('pgqueue_' || pg_catalog.replace(sleeper.worker_id::text, '-', ''), '')
    from (
        select job.queue, pg_catalog.min(job.run_at) as run_at
        from job
        where queued_key = any(array(select unique_key from given where wake))
        group by job.queue
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
select queued_key, id, run_at, created_at, (select pg_catalog.count(*) from woken) from job
