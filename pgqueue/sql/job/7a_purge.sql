-- purge: removes jobs from the dead-letter table for good. In: ids bigint[]. Out: ids done. Caller: db.purge
-- Locked in id order, as a redrive does, or the two deadlock.
with corpse as materialized (
    select id
    from {schema}.dead_jobs
    where id = any(%(ids)s::bigint[])
    order by id
    for update
)
delete from {schema}.dead_jobs
where id = any(array(select id from corpse)) and state = 'dead'
returning id
