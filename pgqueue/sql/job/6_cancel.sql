-- cancel: queued, blocked -> cancelled. Nobody holds such a job, so the state is the guard. A job that runs is asked to
-- end: `cancelling` says why, and from then on every way out of running but completion leads to cancelled.
-- In: ids bigint[], error text (why), now timestamptz or null
-- Out: id, task, queue, attempt, fence, why (null: it was asked), worker_id (null: it has ended). Index: primary key.
-- Caller: db.cancel
-- The mark is in the row, not in a table beside it: a retry that waits for our lock sees the row as we leave it, and a
-- row that was put elsewhere it would not see. The state was seen under the lock; named again in the DELETE, it would be
-- that of before the lock was waited for.
with held as materialized (
    select id, state
    from {schema}.jobs
    where id = any(%(ids)s::bigint[])
    order by id
    for update
),
gone as (
    delete from {schema}.jobs
    where id = any(array(select id from held where state in ('queued', 'blocked')))
    returning *
),
failed as (
    delete from {schema}.job_errors
    where job_id = any(array(select id from gone where fence > 0))
),
asked as (
    update {schema}.jobs
    set cancelling = %(error)s::text
    where id = any(array(select id from held where state = 'running')) and cancelling is null
    returning id, task, queue, attempt, fence, worker_id
),
ended as (
    insert into {schema}.finished_jobs
        (id, state, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
        worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, finished_at, error, errors)
    select id, 'cancelled', queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
        worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta,
        coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp()), %(error)s::text,
        case when fence > 0 then (select errors from {schema}.job_history where job_id = gone.id) end
    from gone
    returning id, task, queue, attempt, fence, error
)
select id, task, queue, attempt, fence, error, null from ended
union all
select id, task, queue, attempt, fence, null, worker_id from asked
