-- cancel_running: running -> cancelled, by the worker that holds the job. It leaves `jobs` for `finished_jobs`.
-- In: worker_id uuid, ids bigint[], fences int[], errors text[] (why), now timestamptz or null
-- Out: ids done. Index: primary key. Caller: db.cancel_running
with done as (
    select * from unnest(%(ids)s::bigint[], %(fences)s::int[], %(errors)s::text[]) as d (id, fence, error)
),
held as materialized (
    select job.id, job.fence, done.error
    from {schema}.jobs as job
    join done on done.id = job.id and done.fence = job.fence
    where job.worker_id = %(worker_id)s
    order by job.id
    for update of job
),
gone as (
    delete from {schema}.jobs as job
    using held
    where job.id = held.id and job.worker_id = %(worker_id)s and job.fence = held.fence
    returning job.*, held.error as why
),
failed as (
    delete from {schema}.job_errors
    where job_id = any(array(select id from gone where fence > 1))
)
insert into {schema}.finished_jobs
    (id, state, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at, worker_id,
    expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, finished_at, error, errors)
select id, 'cancelled', queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
    worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta,
    coalesce(%(now)s::timestamptz, statement_timestamp()), why,
    case when fence > 1 then (select errors from {schema}.job_history where job_id = gone.id) end
from gone
returning id
