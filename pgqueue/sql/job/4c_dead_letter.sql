-- dead_letter: running -> dead. The job leaves `jobs` and arrives in `dead_jobs` with its reason and every attempt's
-- error, in one statement: it is never in both, never in neither.
-- In: worker_id uuid, ids bigint[], fences int[], reasons text[], errors text[], tracebacks text[],
--     now timestamptz or null. Out: ids done. Index: primary key. Caller: db.dead_letter
with done as (
    select *
    from unnest(
        %(ids)s::bigint[], %(fences)s::int[], %(reasons)s::text[], %(errors)s::text[], %(tracebacks)s::text[]
    ) as d (id, fence, reason, error, traceback)
),
held as materialized (
    select job.id, job.fence, done.reason, done.error, done.traceback
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
    returning job.*, held.reason as why, held.error as last_error, held.traceback as last_traceback
),
failed as (
    delete from {schema}.job_errors
    where job_id = any(array(select id from gone where fence > 1))
)
insert into {schema}.dead_jobs
    (id, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at, worker_id,
    expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, died_at, reason, error, errors)
select id, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at, worker_id,
    expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta,
    coalesce(%(now)s::timestamptz, statement_timestamp()), why, last_error,
    coalesce((select errors from {schema}.job_history where job_id = gone.id), '[]'::jsonb) || jsonb_build_object(
        'attempt', attempt, 'fence', fence, 'at', coalesce(%(now)s::timestamptz, statement_timestamp()),
        'error', last_error, 'traceback', last_traceback
    )
from gone
returning id
