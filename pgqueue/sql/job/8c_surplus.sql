-- surplus: finished jobs that are kept no longer: beyond the newest `keep` of their task, or older than its keep_for.
-- And of days that prune leaves standing for a task with a longer keep_for: the jobs of all tasks that have none.
-- In: tasks text[], retention float8 (seconds), limit int, now timestamptz or null. Out: id, finished_at.
-- Caller: db.surplus
-- There is no index on the task: it would cost every settle, and this is asked once a minute at most, for tasks with a
-- policy of their own. One scan for all of them, and an answer of many ids, however many chunks they are deleted in.
-- `finished_at > '-infinity'` is always true, and lets a session without sequential scans read in order, by the BRIN.
with clock as (
    select coalesce(%(now)s::timestamptz, statement_timestamp()) as now
),
ranked as (
    select job.id, job.finished_at, own.keep, own.keep_for,
        row_number() over (partition by job.task order by job.finished_at desc, job.id desc) as place
    from {schema}.finished_jobs as job
    join {schema}.retention as own on own.task = job.task
    where job.task = any(%(tasks)s::text[]) and job.finished_at > '-infinity'
)
(
    select id, finished_at
    from ranked
    where place > keep or finished_at < (select now from clock) - keep_for * interval '1 second'
    limit %(limit)s
)
union all
(
    select job.id, job.finished_at
    from {schema}.finished_jobs as job
    where job.finished_at < (
            select date_trunc('day', (now - %(retention)s::float8 * interval '1 second') at time zone 'UTC')
                at time zone 'UTC'
            from clock
        )
        and exists (select from {schema}.retention where keep_for > %(retention)s::float8)
        and not exists (select from {schema}.retention as own where own.task = job.task and own.keep_for is not null)
    limit %(limit)s
)
