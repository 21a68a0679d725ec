-- picture: everything that `pgqueue top` shows, in one snapshot. In: seconds float8 (of the past, for what ended), most int
--     (running jobs, the oldest first). Out: kind, row as JSON: see stats.Picture. Caller: db.picture
-- What ended is counted by queue, worker and second, over the few seconds since the last picture. Of queue_stats and
-- worker_stats not the columns that look a minute back: the server leaves out what nobody asks for.
select 'clock', pg_catalog.jsonb_build_array(extract(epoch from pg_catalog.statement_timestamp()))::text
union all
select 'queue', pg_catalog.jsonb_build_array(
    queue, queued, scheduled, running, blocked, dead, extract(epoch from oldest_age), paused
)::text
from {schema}.queue_stats
union all
select 'worker', pg_catalog.jsonb_build_array(
    id, host, pid, concurrency, running, extract(epoch from oldest_run), extract(epoch from heartbeat_age), alive, stopping,
    queues
)::text
from {schema}.worker_stats
union all
select 'job', pg_catalog.jsonb_build_array(
    id, task, queue, attempt, max_attempts, worker_id,
    extract(epoch from pg_catalog.statement_timestamp()) - extract(epoch from started_at)
)::text
from (
    select id, task, queue, attempt, max_attempts, worker_id, started_at
    from {schema}.jobs
    where state = 'running'
    order by started_at, id
    limit %(most)s::int
) as held
union all
select 'completed', pg_catalog.jsonb_build_array(queue, worker_id, second, pg_catalog.count(*))::text
from (
    select queue, worker_id, pg_catalog.floor(extract(epoch from finished_at)) as second
    from {schema}.finished_jobs
    where state = 'completed' and finished_at > pg_catalog.statement_timestamp() - %(seconds)s::float8 * interval '1 second'
) as ended
group by queue, worker_id, second
union all
select 'failed', pg_catalog.jsonb_build_array(queue, second, pg_catalog.count(*))::text
from (
    select job.queue, pg_catalog.floor(extract(epoch from attempt.at)) as second
    from {schema}.failed_attempts as attempt
    join {schema}.jobs as job on job.id = attempt.job_id
    where attempt.place = 'jobs' and attempt.at > pg_catalog.statement_timestamp() - %(seconds)s::float8 * interval '1 second'
    union all
    select job.queue, pg_catalog.floor(extract(epoch from attempt.at))
    from {schema}.failed_attempts as attempt
    join {schema}.dead_jobs as job on job.id = attempt.job_id and job.died_at = attempt.ended_at
    where attempt.place = 'dead_jobs'
        and attempt.ended_at > pg_catalog.statement_timestamp() - %(seconds)s::float8 * interval '1 second'
        and attempt.at > pg_catalog.statement_timestamp() - %(seconds)s::float8 * interval '1 second'
        and job.died_at > pg_catalog.statement_timestamp() - %(seconds)s::float8 * interval '1 second'
    union all
    select job.queue, pg_catalog.floor(extract(epoch from attempt.at))
    from {schema}.failed_attempts as attempt
    join {schema}.finished_jobs as job on job.id = attempt.job_id and job.finished_at = attempt.ended_at
    where attempt.place = 'finished_jobs'
        and attempt.ended_at > pg_catalog.statement_timestamp() - %(seconds)s::float8 * interval '1 second'
        and attempt.at > pg_catalog.statement_timestamp() - %(seconds)s::float8 * interval '1 second'
        and job.finished_at > pg_catalog.statement_timestamp() - %(seconds)s::float8 * interval '1 second'
) as attempts
group by queue, second
