-- redrive: dead -> queued, due now. The id stays, the fence goes on; state, attempt and crashes start anew.
-- The row is deleted and inserted in one statement, so two operators who click at once make one job.
-- In: ids bigint[], args jsonb or null (as they were), now timestamptz or null. Out: id, task, queue, fence. Raises 23505
--     when a live job holds the unique key: nothing is redriven then. Caller: db.redrive
with corpse as materialized (
    select id
    from {schema}.dead_jobs
    where id = any(%(ids)s::bigint[])
    order by id
    for update
),
gone as (
    delete from {schema}.dead_jobs
    where id = any(array(select id from corpse)) and state = 'dead'
    returning *
)
insert into {schema}.jobs
    (id, queue, task, priority, run_at, max_attempts, fence, created_at, timeout, args, retry, unique_key,
    concurrency_key, tags, meta)
select id, queue, task, priority, coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp()), max_attempts, fence,
    created_at, timeout, coalesce(%(args)s::jsonb, args), retry, unique_key, concurrency_key, tags, meta
from gone
order by unique_key nulls first, id
returning id, task, queue, fence
