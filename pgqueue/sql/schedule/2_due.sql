-- due: the schedules of these tasks whose tick has come, and those whose next one nobody has worked out yet; when the next
-- one comes. Nothing is locked: who fires it is decided by fire.
-- In: tasks text[], limit int, now timestamptz or null. Out: one row at least: now, seconds until the next tick or null;
--     name, task, cron, every, timezone, missed, missed_limit, since, last_tick, next_tick, revision, problem, or nulls.
-- Caller: db.due
with active as materialized (
    select *
    from {schema}.schedules
    where not paused and orphaned_at is null and task = any(%(tasks)s::text[])
),
clock as (
    select coalesce(%(now)s::timestamptz, statement_timestamp()) as now
)
select clock.now,
    (select extract(epoch from min(next_tick) - clock.now)::float8 from active where next_tick > clock.now),
    found.name, found.task, found.cron, found.every, found.timezone, found.missed, found.missed_limit, found.since,
    found.last_tick, found.next_tick, found.revision, found.problem
from clock
left join lateral (
    select *
    from active
    where next_tick is null or next_tick <= clock.now
    order by problem is not null, next_tick nulls first
    limit %(limit)s::int
) as found on true
