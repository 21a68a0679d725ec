-- cancel_asked: running -> cancelled, by the worker that holds the job, for what was asked to end before its worker knew:
-- a retry, a dead letter, a snooze or a release has passed it by.
-- In: worker_id uuid, ids bigint[], fences int[], again boolean (also those that this did before, when its answer was
--     lost), now timestamptz or null
-- Out: id, task, queue, attempt, fence, why. Index: primary key, or jobs_cancelling, which holds nothing else. Caller: db.cancel_asked
with done as (
    select *
    from unnest(%(ids)s::bigint[], %(fences)s::int[]) as d (id, fence)
    order by id
),
held as materialized (
    select job.*
    from done
    cross join lateral (
        select *
        from {schema}.jobs
        where id = done.id and worker_id = %(worker_id)s and fence = done.fence and cancelling is not null
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
),
ended as (
    insert into {schema}.finished_jobs
        (id, state, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at, worker_id,
        expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, finished_at, error, errors)
    select id, 'cancelled', queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
        worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta,
        coalesce(%(now)s::timestamptz, statement_timestamp()), cancelling,
        case when fence > 1 then (select errors from {schema}.job_history where job_id = held.id) end
    from held
    returning id, task, queue, attempt, fence, error
)
select id, task, queue, attempt, fence, error from ended
union all
select job.id, job.task, job.queue, job.attempt, job.fence, job.error
from done
join {schema}.finished_jobs as job on job.id = done.id
where %(again)s::boolean and job.state = 'cancelled' and job.worker_id = %(worker_id)s and job.fence = done.fence
