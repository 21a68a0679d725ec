-- answer: has those look at once who wait for one of these jobs, which have ended; on channels of their own and without
-- data. In: ids bigint[]. Out: how many there were. Index: the primary key of `waiters`. Caller: db.answer
-- In a settle it would be paid for by each batch: a worker runs it only while it knows that somebody waits (orders).
select pg_catalog.count(pg_catalog.pg_notify('pgqueue_waiter_' || pg_catalog.replace(waiter::text, '-', ''), ''))
from (
    select distinct waiter
    from {schema}.waiters
    where job_id = any(%(ids)s::bigint[]) and until > pg_catalog.statement_timestamp()
) as waiting
