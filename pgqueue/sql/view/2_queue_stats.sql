-- queue_stats: one row for each queue with a live or dead job or a row in `queues`. Counts are exact.
-- queued: due now; scheduled: due later; oldest_age: how long the oldest due job has been due; completed_1m: jobs
-- completed, failed_1m: attempts failed, both within the last minute.
-- Counted by state first, and by queue then: with a condition on each count a million jobs took 1.3 times as long.
create view {schema}.queue_stats as
with counted as (
    select queue, state, run_at <= statement_timestamp() as due, count(*) as jobs, min(run_at) as oldest
    from {schema}.jobs
    group by 1, 2, 3
),
live as (
    select queue,
        sum(jobs) filter (where state = 'queued' and due) as queued,
        sum(jobs) filter (where state = 'queued' and not due) as scheduled,
        sum(jobs) filter (where state = 'running') as running,
        sum(jobs) filter (where state = 'blocked') as blocked,
        statement_timestamp() - min(oldest) filter (where state = 'queued' and due) as oldest_age
    from counted
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
        select job.queue
        from {schema}.failed_attempts as attempt
        join {schema}.jobs as job on job.id = attempt.job_id
        where attempt.place = 'jobs' and attempt.at > statement_timestamp() - interval '1 minute'
        union all
        select job.queue
        from {schema}.failed_attempts as attempt
        join {schema}.dead_jobs as job on job.id = attempt.job_id and job.died_at = attempt.ended_at
        where attempt.place = 'dead_jobs' and attempt.ended_at > statement_timestamp() - interval '1 minute'
            and attempt.at > statement_timestamp() - interval '1 minute'
            and job.died_at > statement_timestamp() - interval '1 minute'
        union all
        select job.queue
        from {schema}.failed_attempts as attempt
        join {schema}.finished_jobs as job on job.id = attempt.job_id and job.finished_at = attempt.ended_at
        where attempt.place = 'finished_jobs' and attempt.ended_at > statement_timestamp() - interval '1 minute'
            and attempt.at > statement_timestamp() - interval '1 minute'
            and job.finished_at > statement_timestamp() - interval '1 minute'
    ) as attempts
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
    coalesce(queued, 0)::bigint as queued,
    coalesce(scheduled, 0)::bigint as scheduled,
    coalesce(running, 0)::bigint as running,
    coalesce(blocked, 0)::bigint as blocked,
    coalesce(dead, 0) as dead,
    oldest_age,
    coalesce(queues.paused and (queues.paused_until is null or queues.paused_until > statement_timestamp()), false) as paused,
    coalesce(completed, 0) as completed_1m,
    coalesce(failed, 0) as failed_1m
from known
left join live using (queue)
left join dead using (queue)
left join completed using (queue)
left join failed using (queue)
left join {schema}.queues on queues.name = queue
