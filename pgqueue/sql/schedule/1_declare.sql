-- declare: a schedule's row, written by a worker that starts (declared) or by app.schedules.add. The last one that starts
-- counts. What is written already is not written again; what belongs to the other of the two is left alone. Another time
-- (cron, every, timezone), or one that was orphaned, counts from now on: no tick of before is fired for it.
-- In: name, task, cron text or null, every float8 (seconds) or null, timezone, args, queue, priority, max_attempts,
--     expires_in, timeout, retry, tags, meta, missed, missed_limit, overlap, declared bool, now timestamptz or null
-- Out: added, changed, same or taken; revision, since, last_tick, next_tick. No row: somebody added it just now.
-- Caller: db.declare
with written as (
    insert into {schema}.schedules as schedule
        (name, task, cron, every, timezone, args, queue, priority, max_attempts, expires_in, timeout, retry, tags, meta,
        missed, missed_limit, overlap, declared, since, changed_at)
    select
        %(name)s::text, %(task)s::text, %(cron)s::text, %(every)s::float8, %(timezone)s::text, %(args)s::text::jsonb,
        %(queue)s::text, %(priority)s::int, %(max_attempts)s::int, %(expires_in)s::float8, %(timeout)s::float8,
        %(retry)s::text::jsonb, %(tags)s::text[], %(meta)s::text::jsonb, %(missed)s::text, %(missed_limit)s::int,
        %(overlap)s::text, %(declared)s::bool, clock.now, clock.now
    from (select coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())) as clock (now)
    on conflict (name) do update
    set task = excluded.task, cron = excluded.cron, every = excluded.every, timezone = excluded.timezone,
        args = excluded.args, queue = excluded.queue, priority = excluded.priority, max_attempts = excluded.max_attempts,
        expires_in = excluded.expires_in, timeout = excluded.timeout, retry = excluded.retry, tags = excluded.tags,
        meta = excluded.meta, missed = excluded.missed, missed_limit = excluded.missed_limit,
        overlap = excluded.overlap, changed_at = excluded.changed_at, orphaned_at = null, problem = null,
        since = case
            when schedule.orphaned_at is null and (schedule.cron, schedule.every, schedule.timezone)
                is not distinct from (excluded.cron, excluded.every, excluded.timezone) then schedule.since
            else excluded.since
        end,
        next_tick = case
            when schedule.orphaned_at is null and (schedule.cron, schedule.every, schedule.timezone)
                is not distinct from (excluded.cron, excluded.every, excluded.timezone) then schedule.next_tick
        end,
        revision = default
    where schedule.declared = excluded.declared and (
        schedule.orphaned_at is not null
        or (schedule.task, schedule.cron, schedule.every, schedule.timezone, schedule.args, schedule.queue,
            schedule.priority, schedule.max_attempts, schedule.expires_in, schedule.timeout, schedule.retry,
            schedule.tags, schedule.meta, schedule.missed, schedule.missed_limit, schedule.overlap)
        is distinct from
            (excluded.task, excluded.cron, excluded.every, excluded.timezone, excluded.args, excluded.queue,
            excluded.priority, excluded.max_attempts, excluded.expires_in, excluded.timeout, excluded.retry,
            excluded.tags, excluded.meta, excluded.missed, excluded.missed_limit, excluded.overlap)
    )
    returning xmax = 0 as added, revision, since, last_tick, next_tick
)
select case when added then 'added' else 'changed' end, revision, since, last_tick, next_tick
from written
union all
select case when declared = %(declared)s::bool then 'same' else 'taken' end, revision, since, last_tick, next_tick
from {schema}.schedules
where name = %(name)s and not exists (select from written)
