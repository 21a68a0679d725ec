-- settled: which of these claims were settled already? Asked when a settle is repeated after a lost connection and finds
-- no row: the first one may have been committed. In: ids bigint[], fences int[], worker_id uuid
-- Out: id, certain; an id that is missing was lost to somebody else. Caller: db.settled
-- While this worker's row stands nobody has rescued anything from it: a claim that it holds no more it has settled itself,
-- whatever became of the job since. With the row gone it is looked up by id, fence and owner in whatever the settle would
-- have written. By the fence alone it might be another's: a rescue leaves it as it is, and the job may be cancelled or
-- expire before its next claim; but its owner is gone then. A retry's error may have moved on by now, with a job that has
-- ended since: there the fence is enough. A job that is nowhere has ended, and its task keeps nothing, or it was pruned
-- since; it may as well have been rescued and have ended elsewhere: not certain.
-- (Scalar subqueries: NOT EXISTS would become a join, and that may walk all of an index.)
with asked as (
    select id, fence, jsonb_build_array(jsonb_build_object('fence', fence)) as error
    from unnest(%(ids)s::bigint[], %(fences)s::int[]) as a (id, fence)
)
select asked.id, true
from asked
join {schema}.finished_jobs as job on job.id = asked.id
where job.fence = asked.fence and job.worker_id = %(worker_id)s or job.errors @> asked.error
union
select asked.id, true
from asked
join {schema}.dead_jobs as job on job.id = asked.id
where job.fence = asked.fence and job.worker_id = %(worker_id)s or job.errors @> asked.error
union
select asked.id, true
from asked
join {schema}.job_errors as e on e.job_id = asked.id and e.fence = asked.fence and e.worker_id = %(worker_id)s
union
select asked.id, true
from asked
where (select true from {schema}.workers where id = %(worker_id)s)
union
select asked.id, false
from asked
where (select true from {schema}.workers where id = %(worker_id)s) is null
    and (select true from {schema}.jobs where id = asked.id limit 1) is null
    and (select true from {schema}.finished_jobs where id = asked.id limit 1) is null
    and (select true from {schema}.dead_jobs where id = asked.id limit 1) is null
