-- hold: locks jobs that have not ended, before cancel: who waited for a retry's lock in one statement would not see the
-- error that it has just noted, and leave that behind. In: ids bigint[]. Out: id. Index: primary key. Caller: db.cancel
select id
from {schema}.jobs
where id = any(%(ids)s::bigint[])
order by id
for update
