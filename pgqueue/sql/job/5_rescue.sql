-- rescue: running -> queued, no attempt used; or dead_letter: running -> dead, reason crashed, with the crashes used up.
-- For workers that are certainly gone: their rows are deleted, or were never there.
-- In: workers uuid[], crashed boolean (a supervisor saw the process die), why text, max_crashes int,
--     now timestamptz or null
-- Out: id, task, queue, attempt, fence, crashes, dead. Index: jobs_running. Caller: db.rescue
-- SKIP LOCKED: a frozen worker may still hold a row's lock; the next sweep finds that job without an owner.
with lost as materialized (
    select id, crashes + %(crashed)s::boolean::int as crashes
    from {schema}.jobs
    where state = 'running' and worker_id = any(%(workers)s::uuid[]) and cancelling is null -- cancel_lost takes those
    order by id
    for update skip locked
),
doomed as (
    delete from {schema}.jobs
    where id = any(array(select id from lost where %(crashed)s::boolean and crashes >= %(max_crashes)s::int))
        and worker_id = any(%(workers)s::uuid[])
    returning *
),
spared as (
    update {schema}.jobs
    set state = 'queued', worker_id = null, attempt = greatest(attempt, 1) - 1,
        crashes = crashes + %(crashed)s::boolean::int
    where id = any(array(select id from lost where not %(crashed)s::boolean or crashes < %(max_crashes)s::int))
        and worker_id = any(%(workers)s::uuid[])
    returning id, task, queue, attempt, fence, crashes
),
noted as (
    insert into {schema}.job_errors (job_id, fence, attempt, at, error)
    select id, fence, attempt + 1, coalesce(%(now)s::timestamptz, statement_timestamp()), %(why)s::text
    from spared
    where %(crashed)s::boolean
    on conflict do nothing
),
failed as (
    delete from {schema}.job_errors
    where job_id = any(array(select id from doomed))
),
buried as (
    insert into {schema}.dead_jobs
        (id, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at, worker_id,
        expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, died_at, reason, error, errors)
    select id, queue, task, priority, run_at, attempt, max_attempts, fence, least(crashes, 32766) + 1, created_at, started_at,
        worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta,
        coalesce(%(now)s::timestamptz, statement_timestamp()), 'crashed', %(why)s::text,
        coalesce((select errors from {schema}.job_history where job_id = doomed.id), '[]'::jsonb) || jsonb_build_object(
            'attempt', attempt, 'fence', fence, 'at', coalesce(%(now)s::timestamptz, statement_timestamp()),
            'error', %(why)s::text, 'traceback', null
        )
    from doomed
    returning id, task, queue, attempt, fence, crashes
)
select id, task, queue, attempt, fence, crashes, false from spared
union all
select id, task, queue, attempt, fence, crashes, true from buried
order by 1
