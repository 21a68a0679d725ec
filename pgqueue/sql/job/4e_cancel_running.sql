-- cancel_running: running -> cancelled, by the worker that holds the job. It leaves `jobs` for `finished_jobs`.
-- In: worker_id uuid, ids bigint[], fences int[], errors text[] (why), now timestamptz or null
-- Out: ids done. Index: primary key. Caller: db.cancel_running
with done as (
    select *
    from unnest(%(ids)s::bigint[], %(fences)s::int[], %(errors)s::text[]) as d (id, fence, why)
    order by id
),
held as materialized (
    select job.*, done.why
    from done
    cross join lateral (
        select *
        from {schema}.jobs
        where id = done.id and worker_id = %(worker_id)s and fence = done.fence
        for update
    ) as job
),
gone as (
    delete from {schema}.jobs
    where id = any(array(select id from held)) and worker_id = %(worker_id)s
),
failed as (
    delete from {schema}.job_errors
    where job_id = any(array(select id from held where fence > 1))
)
insert into {schema}.finished_jobs
    (id, state, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at, worker_id,
    expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, finished_at, error, errors)
select id, 'cancelled', queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
    worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta,
    coalesce(%(now)s::timestamptz, statement_timestamp()), why,
    case when fence > 1 then (select errors from {schema}.job_history where job_id = held.id) end
from held
returning id
