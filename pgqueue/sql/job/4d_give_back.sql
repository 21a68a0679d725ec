-- give_back: running -> queued, no attempt used: a snooze (with a delay) or a release at shutdown (without).
-- In: worker_id uuid, ids bigint[], fences int[], delays float8[] (seconds; null: run_at stays), now timestamptz or null
-- Out: id, queue. Index: primary key. Caller: db.give_back
with done as (
    select *
    from unnest(%(ids)s::bigint[], %(fences)s::int[], %(delays)s::float8[]) as d (id, fence, delay)
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
)
update {schema}.jobs as job
set state = 'queued', worker_id = null, attempt = greatest(attempt, 1) - 1,
    crashes = case when held.delay is null then crashes else 0 end, -- a snooze ended the attempt in good order
    run_at = coalesce(coalesce(%(now)s::timestamptz, statement_timestamp()) + held.delay * interval '1 second', run_at)
from held
where job.id = any(array(select id from held)) and job.id = held.id and job.worker_id = %(worker_id)s
returning job.id, job.queue
