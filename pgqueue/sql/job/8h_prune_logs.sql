-- prune_logs: removes what jobs said that are kept no longer, of the next `limit` jobs that said anything.
-- In: after bigint (the last one that was looked at, or 0), limit int. Out: the last one looked at; null: there are no more
-- Index: primary key. Caller: db.prune_logs
-- From one job to the next by the index, whatever each has said; NOT EXISTS may become a join that walks all of `jobs`.
with recursive looked as (
    select (select min(job_id) from {schema}.job_logs where job_id > %(after)s::bigint) as job_id, 1 as place
    union all
    select (select min(job_id) from {schema}.job_logs where job_id > looked.job_id), place + 1
    from looked
    where job_id is not null and place < %(limit)s::int
),
gone as (
    delete from {schema}.job_logs
    where job_id = any(array(
        select job_id
        from looked
        where job_id is not null
            and (select id from {schema}.jobs where id = looked.job_id) is null
            and (select id from {schema}.finished_jobs where id = looked.job_id limit 1) is null
            and (select id from {schema}.dead_jobs where id = looked.job_id) is null
    ))
)
select case when bool_and(job_id is not null) then max(job_id) end from looked
