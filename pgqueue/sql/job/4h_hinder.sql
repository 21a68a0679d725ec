-- hinder: running -> queued, no attempt used: the database or the machine ended the run, and not the job. Its error is kept
-- beside the job. So often and no more: a job whose own statement brings the server down would do so for ever.
-- In: worker_id uuid, ids bigint[], fences int[], delays float8[] (seconds; doubled each time), errors text[],
--     tracebacks text[], most int (times), longest float8 (seconds), now timestamptz or null
-- Out: id, whether it was given back; else it has been so often, and nothing was changed. Index: primary key.
-- Caller: db.hinder
-- How often: a used attempt leaves one row in job_errors, and so does each return and each crash, which use none.
with done as (
    select *
    from unnest(
        %(ids)s::bigint[], %(fences)s::int[], %(delays)s::float8[], %(errors)s::text[], %(tracebacks)s::text[]
    ) as d (id, fence, delay, error, traceback)
    order by id
),
held as materialized (
    select done.*, (select count(*) from {schema}.job_errors where job_id = done.id) - greatest(job.attempt, 1) + 1 as times
    from done
    cross join lateral (
        select id, attempt
        from {schema}.jobs
        where id = done.id and worker_id = %(worker_id)s and fence = done.fence and cancelling is null
        for update
    ) as job
),
back as (
    update {schema}.jobs as job
    set state = 'queued', worker_id = null, attempt = greatest(attempt, 1) - 1,
        run_at = coalesce(%(now)s::timestamptz, statement_timestamp())
            + least(held.delay * 2 ^ greatest(times, 0), %(longest)s::float8) * interval '1 second'
    from held
    where job.id = any(array(select id from held where times < %(most)s::int))
        and job.id = held.id and job.worker_id = %(worker_id)s
    returning job.id, job.fence, job.attempt, held.error, held.traceback
),
noted as (
    insert into {schema}.job_errors (job_id, fence, attempt, at, error, traceback, worker_id)
    select id, fence, attempt + 1, coalesce(%(now)s::timestamptz, statement_timestamp()), error, traceback, %(worker_id)s
    from back
)
select id, true from back
union all
select id, false from held where times >= %(most)s::int
