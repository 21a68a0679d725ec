-- enqueue_alike: -> queued. A chunk of jobs that differ in their arguments alone, as task.enqueue_many makes them.
-- In: a job's columns, once for all, args being their JSON texts, a line each. Out: id, ascending in the order of the
--     lines. Caller: db.enqueue_alike
-- One text instead of 14 arrays: taking arrays to pieces, here and in the client, cost as much as the insert itself.
with job as (
    insert into {schema}.jobs
        (queue, task, priority, run_at, max_attempts, expires_at, timeout, args, retry, unique_key, tags, meta)
    select
        %(queue)s::text, %(task)s::text, %(priority)s::int, due.at, %(max_attempts)s::int,
        due.at + %(expires_in)s::float8 * interval '1 second', %(timeout)s::float8, line.args::jsonb,
        %(retry)s::text::jsonb, %(unique_key)s::text, %(tags)s::text[], %(meta)s::text::jsonb
    from pg_catalog.string_to_table(%(args)s::text, pg_catalog.chr(10)) with ordinality as line (args, n)
    cross join (
        select greatest(%(run_at)s::timestamptz, pg_catalog.statement_timestamp())
            + %(delay)s::float8 * interval '1 second'
    ) as due (at)
    order by line.n
    returning id, queue, run_at
),
woken as (
    select pg_catalog.pg_notify('pgqueue_' || pg_catalog.replace(sleeper.worker_id::text, '-', ''), '')
    from (select queue, run_at from job limit 1) as due
    cross join lateral (
        select worker_id
        from {schema}.sleepers
        where %(wake)s::bool and queue in (due.queue, '*')
            and until > pg_catalog.statement_timestamp() and until > due.run_at
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
select id, (select pg_catalog.count(*) from woken) from job order by id
