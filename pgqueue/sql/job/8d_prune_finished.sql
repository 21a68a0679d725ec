-- prune_finished: removes ended jobs that are kept no longer. In: ids bigint[], finished_at timestamptz[]
-- Out: ids done. Found by the primary key, in the days in question alone. Caller: db.prune_finished
-- SKIP LOCKED: whoever holds such a row removes it, too.
with doomed as materialized (
    select job.id, job.finished_at
    from unnest(%(ids)s::bigint[], %(finished_at)s::timestamptz[]) as d (id, finished_at)
    cross join lateral (
        select id, finished_at
        from {schema}.finished_jobs
        where id = d.id and finished_at = d.finished_at
        for update skip locked
    ) as job
)
delete from {schema}.finished_jobs
where id = any(array(select id from doomed))
    and finished_at >= (select min(finished_at) from doomed) and finished_at <= (select max(finished_at) from doomed)
returning id
