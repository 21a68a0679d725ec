-- prune_waiters: removes the rows of processes that waited for a job and are gone.
-- In: nothing. Out: job ids. Index: waiters_until. Caller: db.prune_waiters
-- One that is just being renewed is passed by. A minute late: a row that has lapsed is renewed as well as any.
with gone as materialized (
    select job_id, waiter
    from {schema}.waiters
    where until < statement_timestamp() - interval '1 minute'
    order by job_id, waiter
    for update skip locked
)
delete from {schema}.waiters
using gone
where waiters.job_id = gone.job_id and waiters.waiter = gone.waiter
returning waiters.job_id
