-- all_jobs: live, ended and dead jobs in one shape; NULL where a column does not apply.
create view {schema}.all_jobs as
select id, task, queue, priority, state, args, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
    worker_id, expires_at, timeout, unique_key, concurrency_key, tags, meta,
    null::timestamptz as finished_at, null::jsonb as result, null::text as error,
    null::timestamptz as died_at, null::text as reason,
    (select history.errors from {schema}.job_history as history where history.job_id = jobs.id) as errors
from {schema}.jobs
union all
select id, task, queue, priority, state, args, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
    worker_id, expires_at, timeout, unique_key, concurrency_key, tags, meta,
    finished_at, result, error, null, null, errors
from {schema}.finished_jobs
union all
select id, task, queue, priority, state, args, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
    worker_id, expires_at, timeout, unique_key, concurrency_key, tags, meta,
    finished_at, result, error, died_at, reason, errors
from {schema}.dead_jobs
