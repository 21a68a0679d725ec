-- crash: running -> queued, no attempt used, one crash more: the process that a job had to itself has died under it. It runs
-- alone from now on (claim_suspect), and its neighbours are not suspected.
-- In: worker_id uuid, ids bigint[], fences int[], errors text[] (how it died), now timestamptz or null
-- Out: ids done. Index: primary key. Caller: db.crash
with done as (
    select *
    from unnest(%(ids)s::bigint[], %(fences)s::int[], %(errors)s::text[]) as d (id, fence, error)
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
    set state = 'queued', worker_id = null, attempt = greatest(attempt, 1) - 1, crashes = least(crashes, 32766) + 1
    from held
    where job.id = any(array(select id from held)) and job.id = held.id and job.worker_id = %(worker_id)s
    returning job.id, job.fence, job.attempt, held.error
)
insert into {schema}.job_errors (job_id, fence, attempt, at, error, worker_id)
select id, fence, attempt + 1, coalesce(%(now)s::timestamptz, statement_timestamp()), error, %(worker_id)s
from back
returning job_id
