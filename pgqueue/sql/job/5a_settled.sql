-- settled: which of these claims were settled already? Asked when a settle is repeated after a lost connection and finds
-- no row: the first one may have been committed. In: ids bigint[], fences int[]. Out: ids. Caller: db.settled
-- Looked up by id and fence in whatever the settle would have written.
with asked as (
    select * from unnest(%(ids)s::bigint[], %(fences)s::int[]) as a (id, fence)
)
select asked.id from asked join {schema}.finished_jobs as job on job.id = asked.id and job.fence = asked.fence
union
select asked.id from asked join {schema}.dead_jobs as job on job.id = asked.id and job.fence = asked.fence
union
select asked.id from asked join {schema}.job_errors as e on e.job_id = asked.id and e.fence = asked.fence
