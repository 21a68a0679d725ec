-- schedule_stats: one row for each schedule. status: active; paused; orphaned (was declared in code, and is no more);
-- invalid (problem says why no worker can tell its ticks); unattended (no live worker knows its task, so nobody fires it).
-- next_tick is null until a worker has worked it out, within its sweep interval. live: how many of its jobs are.
create view {schema}.schedule_stats as
select
    name, task, cron, every, timezone, queue,
    case
        when orphaned_at is not null then 'orphaned'
        when paused then 'paused'
        when problem is not null then 'invalid'
        when not exists (
            select
            from {schema}.workers
            where workers.expires_at > statement_timestamp() and schedule.task = any(workers.tasks)
        ) then 'unattended'
        else 'active'
    end as status,
    paused, declared, orphaned_at is not null as orphaned, missed, missed_limit, overlap, next_tick, last_tick, fired_at,
    fired, skipped,
    (select count(*) from {schema}.jobs where jobs.id = any(schedule.open_jobs)) as live,
    last_job,
    coalesce(
        (select jobs.state from {schema}.jobs where jobs.id = schedule.last_job),
        (select dead_jobs.state from {schema}.dead_jobs where dead_jobs.id = schedule.last_job),
        (select finished_jobs.state from {schema}.finished_jobs where finished_jobs.id = schedule.last_job limit 1)
    ) as last_state,
    problem, changed_at, since
from {schema}.schedules as schedule
