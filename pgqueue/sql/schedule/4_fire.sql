-- fire: a schedule's ticks become jobs, and it moves on to the next one: one statement, so both or neither. Guard: the
-- revision, which each change and each firing makes another, and the tick that is due. Who comes second finds neither, and
-- who comes at the same time passes the locked row by: a tick makes one job, however many workers see it come.
-- A job's run_at is its tick, and its meta says schedule and tick. overlap skip: only the last of the ticks, and none
-- while a job of this schedule is live.
-- In: name, revision bigint, next_tick timestamptz (which is due), ticks timestamptz[] (to be fired, in order; may be
--     empty), following timestamptz or null (what is next), decided timestamptz (the last tick that this decides on),
--     passed int (ticks it skips), now timestamptz or null. Out: one row if it was ours: busy, ids bigint[], queue.
-- Index: primary key. Caller: db.fire
with held as materialized (
    select schedule.*, schedule.overlap = 'skip' and exists (
        select from {schema}.jobs where jobs.id = any(schedule.open_jobs)
    ) as busy
    from {schema}.schedules as schedule
    where schedule.name = %(name)s and schedule.revision = %(revision)s::bigint
        and schedule.next_tick = %(next_tick)s::timestamptz
        and not schedule.paused and schedule.orphaned_at is null
    for update of schedule skip locked
),
job as (
    insert into {schema}.jobs
        (queue, task, priority, run_at, max_attempts, expires_at, timeout, args, retry, tags, meta)
    select queue, task, priority, tick.at, max_attempts, tick.at + expires_in * interval '1 second', timeout, args, retry,
        tags, coalesce(meta, '{}') || jsonb_build_object(
            'schedule', name, 'tick', to_char(tick.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        )
    from held
    cross join unnest(%(ticks)s::timestamptz[]) with ordinality as tick (at, n)
    where not held.busy and (held.overlap = 'allow' or tick.n = cardinality(%(ticks)s::timestamptz[]))
    order by tick.at
    returning id, queue, run_at
),
woken as (
    select pg_notify('pgqueue_' || replace(sleeper.worker_id::text, '-', ''), '')
    from (select queue from job limit 1) as lane
    cross join lateral (
        select worker_id
        from {schema}.sleepers
        where queue in (lane.queue, '*') and until > statement_timestamp()
        limit 1
    ) as sleeper
),
moved as (
    update {schema}.schedules as schedule
    set next_tick = %(following)s::timestamptz, last_tick = greatest(schedule.last_tick, %(decided)s::timestamptz),
        problem = null, revision = default,
        last_job = coalesce((select max(id) from job), schedule.last_job),
        fired_at = case
            when exists (select from job) then coalesce(%(now)s::timestamptz, statement_timestamp())
            else schedule.fired_at
        end,
        open_jobs = case
            when not exists (select from job) then schedule.open_jobs
            else array(select id from job order by id)
        end,
        fired = schedule.fired + (select count(*) from job),
        skipped = schedule.skipped + %(passed)s::int + cardinality(%(ticks)s::timestamptz[]) - (select count(*) from job)
    from held
    where schedule.name = held.name
)
select busy, array(select id from job order by id), queue, (select count(*) from woken)
from held
