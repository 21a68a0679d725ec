-- purge: removes jobs from the dead-letter table for good. In: ids bigint[]. Out: ids done. Caller: db.purge
delete from {schema}.dead_jobs
where id = any(%(ids)s::bigint[]) and state = 'dead'
returning id
