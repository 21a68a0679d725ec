-- prune_dead: removes up to `limit` dead jobs beyond the newest `keep_dead` of their task, or older than its keep_dead_for.
-- In: tasks text[], limit int, now timestamptz or null. Out: ids done. Caller: db.prune_dead
-- By dead_jobs_task: without the OFFSET a walk along dead_jobs_died_at would save a sort, and read everybody's. And by the
-- primary key: IS NOT DISTINCT FROM keeps the planner from an index that has died_at in its second place.
-- SKIP LOCKED: one that is being redriven or purged is left to that. The moment it died is named again: a job that was
-- redriven and died once more since is another matter.
with surplus as materialized (
    select job.id, job.died_at
    from {schema}.retention as own
    cross join lateral (
        select id, died_at, row_number() over (order by died_at desc, id desc) as place
        from (select id, died_at from {schema}.dead_jobs where task = own.task offset 0) as mine
    ) as job
    where own.task = any(%(tasks)s::text[])
        and (
            job.place > own.keep_dead
            or job.died_at < coalesce(%(now)s::timestamptz, statement_timestamp())
                - own.keep_dead_for * interval '1 second'
        )
    limit %(limit)s
),
doomed as materialized (
    select job.id
    from surplus
    cross join lateral (
        select id
        from {schema}.dead_jobs
        where id = surplus.id and died_at is not distinct from surplus.died_at
        for update skip locked
    ) as job
)
delete from {schema}.dead_jobs
where id = any(array(select id from doomed)) and state = 'dead'
returning id
