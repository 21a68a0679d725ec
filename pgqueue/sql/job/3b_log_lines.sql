-- log_lines: writes down what jobs said in their logs, of tasks that keep it. No edge: the job goes on.
-- In: worker_id uuid, ids bigint[], fences int[], numbers int[], ages float8[] (seconds since each was said), levels text[],
--     messages text[], now timestamptz or null
-- Out: ids of which something was new. Index: primary key. Caller: db.log_lines
-- Guarded as progress is: of a claim that was lost nothing is written. One that has ended under this worker counts as held,
-- since its own transaction may have ended it. A line that an earlier call has written, whose answer was lost, stays.
-- OFFSET 0: as a join it would walk all of `jobs`, in a plan that was made while few waited and is kept.
with said as (
    select *
    from unnest(%(ids)s::bigint[], %(fences)s::int[], %(numbers)s::int[], %(ages)s::float8[], %(levels)s::text[],
            %(messages)s::text[])
        as s (id, fence, n, age, level, message)
),
held as materialized (
    select claim.id, claim.fence, job.attempt
    from (select distinct id, fence from said) as claim
    cross join lateral (
        select attempt
        from {schema}.jobs
        where id = claim.id and worker_id = %(worker_id)s and fence = claim.fence
        union all
        select attempt
        from {schema}.finished_jobs
        where id = claim.id and worker_id = %(worker_id)s and fence = claim.fence
        limit 1 offset 0
    ) as job
)
insert into {schema}.job_logs (job_id, fence, n, attempt, at, level, message)
select said.id, said.fence, said.n, held.attempt,
    coalesce(%(now)s::timestamptz, statement_timestamp()) - said.age * interval '1 second', said.level, said.message
from said
join held on held.id = said.id and held.fence = said.fence
on conflict do nothing
returning job_id
