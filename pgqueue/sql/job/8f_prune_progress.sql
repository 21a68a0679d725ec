-- prune_progress: removes up to `limit` words on their progress of jobs that have ended, an hour after the last one. A dead
-- job's stays with it: how far it got is worth knowing.
-- In: limit int, now timestamptz or null. Out: ids done. Index: primary key. Caller: db.prune_progress
-- A look by the primary key for each: NOT EXISTS may become a join that walks all of `jobs`.
-- No settle has to look here, then, and no index on `at` makes each word cost more than a new version on the same page.
with doomed as materialized (
    select job_id
    from {schema}.progress as known
    where at < coalesce(%(now)s::timestamptz, statement_timestamp()) - interval '1 hour'
        and (select id from {schema}.jobs where id = known.job_id) is null
        and (select id from {schema}.dead_jobs where id = known.job_id) is null
    order by job_id
    limit %(limit)s
    for update skip locked
)
delete from {schema}.progress
where job_id = any(array(select job_id from doomed))
returning job_id
