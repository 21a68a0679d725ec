-- enqueue: -> queued. One job, and a wake-up for one idle worker that could take it before its next look.
-- In: a job's columns; run_at null or past = now; delay seconds on top of it; expires_in seconds after it is due;
--     wake bool, false: no wake-up, for a transaction that is to be prepared
-- Out: id, run_at, created_at; no row when a live job holds the unique key. Caller: db.enqueue
-- JSON comes as text: an application's own codec for jsonb (asyncpg's usual way) would encode it again.
-- `sleepers` is only read, never locked, and while nobody sleeps nothing is notified: a NOTIFY takes a cluster-wide
-- lock until its commit is flushed, and would serialise the application's commits (0.12 of the rate at a 1 ms flush).
-- Nor while a worker is on the lookout ('+' before the queue): it finds by itself, within milliseconds, what is due.
with job as (
    insert into {schema}.jobs
        (queue, task, priority, run_at, max_attempts, expires_at, timeout, args, retry, unique_key, tags, meta)
    select
        %(queue)s::text, %(task)s::text, %(priority)s::int, due.at, %(max_attempts)s::int,
        due.at + %(expires_in)s::float8 * interval '1 second', %(timeout)s::float8, %(args)s::text::jsonb,
        %(retry)s::text::jsonb, %(unique_key)s::text, %(tags)s::text[], %(meta)s::text::jsonb
    from (
        select greatest(%(run_at)s::timestamptz, pg_catalog.statement_timestamp())
            + %(delay)s::float8 * interval '1 second'
    ) as due (at)
    on conflict (unique_key) where unique_key is not null do nothing
    returning id, queue, run_at, created_at
),
woken as (
    select pg_catalog.pg_notify('pgqueue_' || pg_catalog.replace(sleeper.worker_id::text, '-', ''), '')
    from job
    cross join lateral (
        select worker_id
        from {schema}.sleepers
        where %(wake)s::bool and queue in (job.queue, '*')
            and until > pg_catalog.statement_timestamp() and until > job.run_at
            and not (
                job.run_at <= pg_catalog.statement_timestamp()
                and exists (
                    select from {schema}.sleepers as lookout
                    where lookout.queue in ('+' || job.queue, '+*') and lookout.until > pg_catalog.statement_timestamp()
                )
            )
        limit 1
    ) as sleeper
)
select id, run_at, created_at, (select pg_catalog.count(*) from woken) from job
