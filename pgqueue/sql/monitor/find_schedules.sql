-- find_schedules: the schedules as people see them. In: names text[] or null (all)
-- Out: the columns of schedule_stats, by name. Caller: db.find_schedules
select name, task, cron, every, timezone, queue, status, paused, declared, orphaned, missed, missed_limit, overlap,
    next_tick, last_tick, fired_at, fired, skipped, live, last_job, last_state, problem, changed_at, since
from {schema}.schedule_stats
where %(names)s::text[] is null or name = any(%(names)s::text[])
order by name
