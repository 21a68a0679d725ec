-- cancel: queued, blocked -> cancelled. Nobody holds such a job, so the state is the guard.
-- In: ids bigint[], error text (why), now timestamptz or null. Out: ids done. Index: primary key. Caller: db.cancel
with held as materialized (
    select id
    from {schema}.jobs
    where id = any(%(ids)s::bigint[]) and state in ('queued', 'blocked')
    order by id
    for update
),
gone as (
    delete from {schema}.jobs
    where id = any(array(select id from held)) and state in ('queued', 'blocked')
    returning *
),
failed as (
    delete from {schema}.job_errors
    where job_id = any(array(select id from gone where fence > 0))
)
insert into {schema}.finished_jobs
    (id, state, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at, worker_id,
    expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, finished_at, error, errors)
select id, 'cancelled', queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
    worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta,
    coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp()), %(error)s::text,
    case when fence > 0 then (select errors from {schema}.job_history where job_id = gone.id) end
from gone
returning id
