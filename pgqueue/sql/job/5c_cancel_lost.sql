-- cancel_lost: running -> cancelled, for jobs that were asked to end and whose workers are certainly gone, which ended
-- them. Before rescue, in its transaction. In: workers uuid[], now timestamptz or null
-- Out: id, task, queue, attempt, fence, crashes, dead (no), why. Index: jobs_cancelling. Caller: db.rescue
-- SKIP LOCKED, as in rescue: what it passes by is found by the next sweep.
with held as materialized (
    select *
    from {schema}.jobs
    where cancelling is not null and worker_id = any(%(workers)s::uuid[])
    order by id
    for update skip locked
),
gone as (
    delete from {schema}.jobs
    where id = any(array(select id from held)) and worker_id = any(%(workers)s::uuid[])
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
    coalesce(%(now)s::timestamptz, statement_timestamp()), cancelling,
    case when fence > 1 then (select errors from {schema}.job_history where job_id = held.id) end
from held
returning id, task, queue, attempt, fence, crashes, false, error
