-- enqueue_periods: -> queued. As enqueue_many, of jobs that hold their unique key for so many seconds from now, whatever
-- becomes of them.
-- In: arrays of a job's columns, all of one length, unique_key being those keys, each of them once; unique_for
--     float8[] (seconds); table, the quoted name of `jobs`, for its sequence. Out: as
--     enqueue_queued; none for one whose key is held. Index: primary key of unique_periods. Caller: db.enqueue_periods
-- A period that is over is taken over where it stands; who waited for another's commit sees what that wrote. A key that is
-- held would stay locked until the caller commits: so holders_periods is asked first.
with given as (
    select n, queue, task, priority, run_at, delay, max_attempts, expires_in, timeout, args, retry, unique_key, tags, meta,
        wake, unique_for
    from unnest(
        %(queue)s::text[], %(task)s::text[], %(priority)s::int[], %(run_at)s::timestamptz[], %(delay)s::float8[],
        %(max_attempts)s::int[], %(expires_in)s::float8[], %(timeout)s::float8[], %(args)s::text[], %(retry)s::text[],
        %(unique_key)s::text[], %(tags)s::text[], %(meta)s::text[], %(wake)s::bool[], %(unique_for)s::float8[]
    ) with ordinality as g (queue, task, priority, run_at, delay, max_attempts, expires_in, timeout, args, retry,
        unique_key, tags, meta, wake, unique_for, n)
),
period as (
    insert into {schema}.unique_periods as held (key, job_id, task, queue, ends_at)
    select
        unique_key, pg_catalog.nextval(pg_catalog.pg_get_serial_sequence(%(table)s, 'id')::regclass), task, queue,
        pg_catalog.statement_timestamp() + unique_for * interval '1 second'
    from given
    order by unique_key
    on conflict (key) do update
    set job_id = excluded.job_id, task = excluded.task, queue = excluded.queue, created_at = excluded.created_at,
        ends_at = excluded.ends_at
    where held.ends_at <= pg_catalog.statement_timestamp()
    returning key, job_id
),
job as (
    insert into {schema}.jobs
        (id, queue, task, priority, run_at, max_attempts, expires_at, timeout, args, retry, tags, meta)
    select
        period.job_id, queue, task, priority, due.at, max_attempts, due.at + expires_in * interval '1 second', timeout,
        args::jsonb, retry::jsonb, tags::text[], meta::jsonb
    from period
    join given on given.unique_key = period.key
    cross join lateral (
        select greatest(given.run_at, pg_catalog.statement_timestamp()) + given.delay * interval '1 second'
    ) as due (at)
    returning id, queue, run_at, created_at
),
made as (
    select period.key, job.id, job.queue, job.run_at, job.created_at, given.wake
    from job
    join period on period.job_id = job.id
    join given on given.unique_key = period.key
),
woken as (
    select pg_catalog.pg_notify('pgqueue_' || pg_catalog.replace(sleeper.worker_id::text, '-', ''), '')
    from (select queue, pg_catalog.min(run_at) as run_at from made where wake group by queue) as due
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
select key, id, run_at, created_at, (select pg_catalog.count(*) from woken) from made
