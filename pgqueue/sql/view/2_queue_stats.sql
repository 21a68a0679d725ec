-- queue_stats: one row for each queue with a live or dead job or a row in `queues`. Counts are exact.
-- queued: due now; scheduled: due later; oldest_age: how long the oldest due job has been due; completed_1m: jobs
-- completed, failed_1m: attempts failed, both within the last minute.
create view {schema}.queue_stats as
with live as (
    select queue,
        count(*) filter (where state = 'queued' and run_at <= statement_timestamp()) as queued,
        count(*) filter (where state = 'queued' and run_at > statement_timestamp()) as scheduled,
        count(*) filter (where state = 'running') as running,
        count(*) filter (where state = 'blocked') as blocked,
        statement_timestamp() - min(run_at) filter (where state = 'queued' and run_at <= statement_timestamp())
            as oldest_age
    from {schema}.jobs
    group by queue
),
dead as (
    select queue, count(*) as dead from {schema}.dead_jobs group by queue
),
completed as (
    select queue, count(*) as completed
    from {schema}.finished_jobs
    where state = 'completed' and finished_at > statement_timestamp() - interval '1 minute'
    group by queue
),
failed as (
    select queue, count(*) as failed
    from (
        select job.queue, error.at
        from {schema}.job_errors as error
        join {schema}.jobs as job on job.id = error.job_id
        where error.at > statement_timestamp() - interval '1 minute'
        union all
        -- The day is added to the first of its month: there is no 31st of February that could fail the cast, and with it
        -- all the other queues. What plain SQL wrote in another shape is not counted.
        select ended.queue, case
            when error ->> 'at' ~ '^[1-9][0-9]{3}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?[+-](0[0-9]|1[0-4]):[0-5][0-9]$'
            then overlay(error ->> 'at' placing '01' from 9)::timestamptz
                + (substr(error ->> 'at', 9, 2)::int - 1) * interval '24 hours'
        end
        from (
            select queue, errors from {schema}.dead_jobs where died_at > statement_timestamp() - interval '1 minute'
            union all
            select queue, errors
            from {schema}.finished_jobs
            where finished_at > statement_timestamp() - interval '1 minute' and errors is not null
        ) as ended
        cross join lateral jsonb_array_elements(
            case jsonb_typeof(ended.errors) when 'array' then ended.errors else '[]' end
        ) as error
    ) as attempts
    where at > statement_timestamp() - interval '1 minute'
    group by queue
),
known as (
    select queue from live
    union
    select queue from dead
    union
    select name from {schema}.queues
)
select
    queue,
    coalesce(queued, 0) as queued,
    coalesce(scheduled, 0) as scheduled,
    coalesce(running, 0) as running,
    coalesce(blocked, 0) as blocked,
    coalesce(dead, 0) as dead,
    oldest_age,
    coalesce(queues.paused, false) as paused,
    coalesce(completed, 0) as completed_1m,
    coalesce(failed, 0) as failed_1m
from known
left join live using (queue)
left join dead using (queue)
left join completed using (queue)
left join failed using (queue)
left join {schema}.queues on queues.name = queue
