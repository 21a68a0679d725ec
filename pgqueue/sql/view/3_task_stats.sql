-- task_stats: one row for each task of which an attempt ended within the last hour. count: attempts that ended, well or
-- badly; failures: those that failed. wait: from due to start, run: from start to end, both of the last attempt of the
-- jobs that completed or died within that hour (null when none did); percentiles between two jobs are interpolated.
-- A task that keeps nothing of its completed jobs (keep=0) shows here what failed only. Cost: it reads the hour's jobs.
create view {schema}.task_stats as
with ended as (
    select task, true as completed, started_at - run_at as wait, finished_at - started_at as run
    from {schema}.finished_jobs
    where state = 'completed' and finished_at > statement_timestamp() - interval '1 hour'
    union all
    select task, false, started_at - run_at, died_at - started_at
    from {schema}.dead_jobs
    where died_at > statement_timestamp() - interval '1 hour'
),
times as (
    select task, count(*) filter (where completed) as completed,
        percentile_cont(array[0.5, 0.95, 0.99]) within group (order by extract(epoch from wait)::double precision) as wait,
        percentile_cont(array[0.5, 0.95, 0.99]) within group (order by extract(epoch from run)::double precision) as run
    from ended
    group by task
),
failed as (
    select task, count(*) as failures
    from (
        select job.task
        from {schema}.failed_attempts as attempt
        join {schema}.jobs as job on job.id = attempt.job_id
        where attempt.place = 'jobs' and attempt.at > statement_timestamp() - interval '1 hour'
        union all
        select job.task
        from {schema}.failed_attempts as attempt
        join {schema}.dead_jobs as job on job.id = attempt.job_id and job.died_at = attempt.ended_at
        where attempt.place = 'dead_jobs' and attempt.ended_at > statement_timestamp() - interval '1 hour'
            and attempt.at > statement_timestamp() - interval '1 hour'
            and job.died_at > statement_timestamp() - interval '1 hour'
        union all
        select job.task
        from {schema}.failed_attempts as attempt
        join {schema}.finished_jobs as job on job.id = attempt.job_id and job.finished_at = attempt.ended_at
        where attempt.place = 'finished_jobs' and attempt.ended_at > statement_timestamp() - interval '1 hour'
            and attempt.at > statement_timestamp() - interval '1 hour'
            and job.finished_at > statement_timestamp() - interval '1 hour'
    ) as attempts
    group by task
)
select
    task,
    coalesce(completed, 0) + coalesce(failures, 0) as count,
    coalesce(failures, 0) as failures,
    make_interval(secs => wait[1]) as wait_p50,
    make_interval(secs => wait[2]) as wait_p95,
    make_interval(secs => wait[3]) as wait_p99,
    make_interval(secs => run[1]) as run_p50,
    make_interval(secs => run[2]) as run_p95,
    make_interval(secs => run[3]) as run_p99
from times
full join failed using (task)
where completed > 0 or failures > 0
