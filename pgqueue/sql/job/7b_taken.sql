-- taken: the first of these dead jobs whose unique key a live job holds. Asked before a redrive, to name both of them;
-- what takes a key in between is stopped by its index. In: ids bigint[]. Out: id, id of the holder; no row: none.
-- Index: primary key, jobs_unique. Caller: db.redrive
select corpse.id, holder.id
from {schema}.dead_jobs as corpse
join {schema}.jobs as holder using (unique_key)
where corpse.id = any(%(ids)s::bigint[])
order by corpse.id
limit 1
