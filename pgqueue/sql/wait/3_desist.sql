-- desist: this process waits for these jobs no more, or for none. In: waiter uuid, ids bigint[] or null (all of them)
-- Out: nothing. Index: primary key. Caller: db.desist
delete from {schema}.waiters
where waiter = %(waiter)s::uuid and (%(ids)s::bigint[] is null or job_id = any(%(ids)s::bigint[]))
