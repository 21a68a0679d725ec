-- leave: removes worker rows; at a clean stop, or when their supervisor saw them die. In: ids uuid[]. Out: nothing.
-- Caller: db.leave
with asleep as (
    delete from {schema}.sleepers where worker_id = any(%(ids)s::uuid[])
)
delete from {schema}.workers where id = any(%(ids)s::uuid[])
