-- run_now: a job of a schedule, due now, whatever the time and whether it is paused; its ticks stay as they are.
-- In: name, now timestamptz or null. Out: id, task, queue, priority, run_at, max_attempts, created_at, tags, meta as text;
--     no row: there is no such schedule. Index: primary key. Caller: db.run_now
with held as materialized (
    select schedule.*
    from {schema}.schedules as schedule
    where schedule.name = %(name)s
    for update
),
job as (
    insert into {schema}.jobs (queue, task, priority, run_at, max_attempts, expires_at, timeout, args, retry, tags, meta)
    select queue, task, priority, due.at, max_attempts, due.at + expires_in * interval '1 second', timeout, args, retry,
        tags, coalesce(meta, '{}') || pg_catalog.jsonb_build_object('schedule', name)
    from held
    cross join (select coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())) as due (at)
    returning id, task, queue, priority, run_at, max_attempts, created_at, tags, meta
),
woken as (
    select pg_catalog.pg_notify('pgqueue_' || pg_catalog.replace(sleeper.worker_id::text, '-', ''), '')
    from job
    cross join lateral (
        select worker_id
        from {schema}.sleepers
        where queue in (job.queue, '*') and until > pg_catalog.statement_timestamp()
        limit 1
    ) as sleeper
),
noted as (
    -- Which of its jobs are live, for overlap skip. A firing that began before knows nothing of this one: the revision
    -- is another, and it begins anew.
    update {schema}.schedules as schedule
    set last_job = job.id, revision = default,
        open_jobs = array(select live.id from {schema}.jobs as live where live.id = any(schedule.open_jobs)) || job.id
    from job
    where schedule.name = %(name)s
)
select id, task, queue, priority, run_at, max_attempts, created_at, tags, meta::text,
    (select pg_catalog.count(*) from woken)
from job
