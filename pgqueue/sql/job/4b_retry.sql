-- retry: running -> queued at now + delay. The attempt is used, its error kept beside the job, its crashes forgiven.
-- In: worker_id uuid, ids bigint[], fences int[], delays float8[] (seconds), errors text[], tracebacks text[],
--     now timestamptz or null. Out: ids done. Index: primary key. Caller: db.retry
-- run_at goes by the server's clock: a worker's own may be a day off.
with done as (
    select *
    from unnest(
        %(ids)s::bigint[], %(fences)s::int[], %(delays)s::float8[], %(errors)s::text[], %(tracebacks)s::text[]
    ) as d (id, fence, delay, error, traceback)
    order by id
),
held as materialized (
    select done.*
    from done
    cross join lateral (
        select id
        from {schema}.jobs
        where id = done.id and worker_id = %(worker_id)s and fence = done.fence and cancelling is null
        for update
    ) as job
),
back as (
    update {schema}.jobs as job
    set state = 'queued', worker_id = null, crashes = 0,
        run_at = coalesce(%(now)s::timestamptz, statement_timestamp()) + held.delay * interval '1 second'
    from held
    where job.id = any(array(select id from held)) and job.id = held.id and job.worker_id = %(worker_id)s
    returning job.id, job.fence, job.attempt, held.error, held.traceback
)
insert into {schema}.job_errors (job_id, fence, attempt, at, error, traceback, worker_id)
select id, fence, attempt, coalesce(%(now)s::timestamptz, statement_timestamp()), error, traceback, %(worker_id)s
from back
returning job_id
