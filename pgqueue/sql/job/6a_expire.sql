-- expire: queued -> expired. Jobs that were not started in time; a claim passes them by already.
-- In: limit int, now timestamptz or null. Out: id, task, queue. Index: jobs_expiring, then the primary key. Caller: db.expire
-- The state was seen under the lock; named again, it would let the planner walk the whole of jobs_due.
with late as materialized (
    select id
    from {schema}.jobs
    where state = 'queued' and expires_at <= coalesce(%(now)s::timestamptz, statement_timestamp())
    order by id
    limit %(limit)s
    for update skip locked
),
gone as (
    delete from {schema}.jobs
    where id = any(array(select id from late))
    returning *
),
failed as (
    delete from {schema}.job_errors
    where job_id = any(array(select id from gone where fence > 0))
)
insert into {schema}.finished_jobs
    (id, state, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at, worker_id,
    expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, finished_at, error, errors)
select id, 'expired', queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
    worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta,
    coalesce(%(now)s::timestamptz, statement_timestamp()), 'not started before it expired',
    case when fence > 0 then (select errors from {schema}.job_history where job_id = gone.id) end
from gone
returning id, task, queue
