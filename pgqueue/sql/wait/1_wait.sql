-- wait: a process waits for these jobs, for so long unless it says so again; whoever ends one has it look at once (answer).
-- In: waiter uuid, ids bigint[], seconds float8. Out: whether nobody else waits, of whom workers would know.
-- Index: primary key, waiters_until. Caller: db.wait
with written as (
    insert into {schema}.waiters as known (job_id, waiter, until)
    select id, %(waiter)s::uuid, statement_timestamp() + %(seconds)s::float8 * interval '1 second'
    from unnest(%(ids)s::bigint[]) as i (id)
    order by id
    on conflict (job_id, waiter) do update set until = excluded.until
)
select (
    select true
    from {schema}.waiters
    where until > statement_timestamp() and waiter <> %(waiter)s::uuid
    limit 1
) is null
