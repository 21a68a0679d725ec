-- change: queued -> queued, with another priority or another time. Nobody holds such a job, so the state is the guard; one
-- that could not start in time then stays as it is.
-- In: ids bigint[], priority int or null (as it is), run_at timestamptz or null, delay float8 (seconds) or null; neither:
--     its time stays; now timestamptz or null. Out: id, queue. Index: primary key. Caller: db.change
-- A plain state = 'queued' would let the planner walk the whole of jobs_due; CASE does not, and it is seen under the lock.
with held as materialized (
    select id,
        coalesce(
            %(run_at)s::timestamptz,
            coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())
                + %(delay)s::float8 * interval '1 second',
            run_at
        ) as due
    from {schema}.jobs
    where id = any(%(ids)s::bigint[])
        and case state
            when 'queued' then expires_at is null or expires_at > greatest(
                coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp()),
                %(run_at)s::timestamptz,
                coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())
                    + %(delay)s::float8 * interval '1 second'
            )
            else false
        end
    order by id
    for update
)
update {schema}.jobs as job
set priority = coalesce(%(priority)s::int, priority), run_at = held.due
from held
where job.id = any(array(select id from held)) and job.id = held.id
returning job.id, job.queue
