-- dead_letter: running -> dead. The job leaves `jobs` and arrives in `dead_jobs` with its reason and every attempt's
-- error, in one statement: it is never in both, never in neither.
-- In: worker_id uuid, ids bigint[], fences int[], reasons text[], errors text[], tracebacks text[],
--     now timestamptz or null. Out: ids done. Index: primary key. Caller: db.dead_letter
with done as (
    select *
    from unnest(
        %(ids)s::bigint[], %(fences)s::int[], %(reasons)s::text[], %(errors)s::text[], %(tracebacks)s::text[]
    ) as d (id, fence, why, last_error, last_traceback)
    order by id
),
held as materialized (
    select job.*, done.why, done.last_error, done.last_traceback
    from done
    cross join lateral (
        select *
        from {schema}.jobs
        where id = done.id and worker_id = %(worker_id)s and fence = done.fence and cancelling is null
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
insert into {schema}.dead_jobs
    (id, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at, worker_id,
    expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, died_at, reason, error, errors)
select id, queue, task, priority, run_at, attempt, max_attempts, fence,
    least(crashes, 32766) + (why = 'crashed')::int, -- of the process that it had to itself
    created_at, started_at, worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta,
    coalesce(%(now)s::timestamptz, statement_timestamp()), why, last_error,
    coalesce((select errors from {schema}.job_history where job_id = held.id), '[]'::jsonb) || jsonb_build_object(
        'attempt', attempt, 'fence', fence, 'at', coalesce(%(now)s::timestamptz, statement_timestamp()),
        'error', last_error, 'traceback', last_traceback
    )
from held
returning id
