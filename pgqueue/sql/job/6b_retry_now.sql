-- retry_now: queued -> queued, due now instead of later. Nobody holds such a job, so the state is the guard; one that is
-- due already, or can no longer start in time, stays as it is.
-- In: ids bigint[], now timestamptz or null. Out: id, queue. Index: primary key. Caller: db.retry_now
-- A plain state = 'queued' would let the planner walk the whole of jobs_due; CASE does not, and it is seen under the lock.
with held as materialized (
    select id
    from {schema}.jobs
    where id = any(%(ids)s::bigint[])
        and case state
            when 'queued' then run_at > coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())
                and (expires_at is null or expires_at > coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp()))
            else false
        end
    order by id
    for update
)
update {schema}.jobs
set run_at = coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())
where id = any(array(select id from held))
returning id, queue
