-- replace: queued -> queued. Jobs that hold a unique key get the arguments, the time, or both, of later calls: one call or
-- several each, in their order. One that somebody runs stays as it is: the state is the guard, seen under the lock.
-- In: ids bigint[], args text[] (null: they stay), moved text[] ('to': its time is
--     this one; 'later': if that is later; null: it stays), run_at timestamptz[], delay float8[], debounce_for float8[]
--     (seconds after created_at, up to which 'later' moves it; null: no limit), wake bool[]; an element a call.
--     Caller: db.replace
-- Out: as holder, for each job that was changed. A row that is missing may be locked all the same: whoever claimed it at this
--     instant would wait for us with its settle, so the caller goes back to a savepoint. Index: primary key
-- Locked in id order, as settles and cancels do; a claim passes these rows by until the caller commits. What a job may
-- start by moves along with its time. A plain state = 'queued' would let the planner walk the whole of jobs_due; CASE does not.
with given as materialized (
    select id, n, args, moved, debounce_for, wake,
        greatest(run_at, pg_catalog.statement_timestamp()) + delay * interval '1 second' as at,
        pg_catalog.max(n) filter (where moved = 'to') over (partition by id) as placed
    from unnest(
        %(ids)s::bigint[], %(args)s::text[], %(moved)s::text[], %(run_at)s::timestamptz[], %(delay)s::float8[],
        %(debounce_for)s::float8[], %(wake)s::bool[]
    ) with ordinality as g (id, args, moved, run_at, delay, debounce_for, wake, n)
),
held as materialized (
    select id, run_at, created_at
    from {schema}.jobs
    where id = any(%(ids)s::bigint[])
        and case state when 'queued' then queued_key is null or fence = 0 else false end
    order by id
    for update
),
next as materialized (
    select held.id, pg_catalog.bool_or(given.wake) as wake,
        (pg_catalog.array_agg(given.args order by given.n desc) filter (where given.args is not null))[1] as args,
        greatest(
            coalesce(pg_catalog.max(given.at) filter (where given.n = given.placed), held.run_at),
            pg_catalog.max(least(given.at, held.created_at + given.debounce_for * interval '1 second'))
                filter (where given.moved = 'later' and given.n > coalesce(given.placed, 0))
        ) as run_at
    from held
    join given on given.id = held.id
    group by held.id, held.run_at, held.created_at
),
changed as (
    update {schema}.jobs as job
    set args = coalesce(next.args::jsonb, job.args), run_at = next.run_at,
        expires_at = job.expires_at + (next.run_at - job.run_at)
    from next
    where job.id = any(array(select id from held)) and job.id = next.id
    returning job.id, job.task, job.queue, job.state, job.priority, job.run_at, job.attempt, job.max_attempts,
        job.created_at, next.wake
),
woken as (
    select pg_catalog.pg_notify('pgqueue_' || pg_catalog.replace(sleeper.worker_id::text, '-', ''), '')
    from (select queue, pg_catalog.min(run_at) as run_at from changed where wake group by queue) as due
    cross join lateral (
        select worker_id
        from {schema}.sleepers
        where queue in (due.queue, '*') and until > pg_catalog.statement_timestamp() and until > due.run_at
            and not (
                due.run_at <= pg_catalog.statement_timestamp()
                and exists (
                    select from {schema}.sleepers as lookout
                    where lookout.queue in ('+' || due.queue, '+*') and lookout.until > pg_catalog.statement_timestamp()
                )
            )
        limit 1
    ) as sleeper
)
select id, task, queue, state, priority, run_at, attempt, max_attempts, created_at,
    (select pg_catalog.count(*) from woken)
from changed
