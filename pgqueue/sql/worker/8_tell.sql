-- tell: has these workers ask for their orders now instead of within a second; on channels of their own and without data.
-- In: workers uuid[] or null (all of them). Out: how many there were. Caller: db.tell
select pg_catalog.count(pg_catalog.pg_notify('pgqueue_orders_' || pg_catalog.replace(id::text, '-', ''), ''))
from {schema}.workers
where %(workers)s::uuid[] is null or id = any(%(workers)s::uuid[])
