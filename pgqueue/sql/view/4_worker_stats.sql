-- worker_stats: one row for each worker that has one in `workers`. alive: its lease holds; one that is not alive is gone
-- with the next sweep of another. heartbeat_age: since it last renewed; running: jobs it holds, among them those that it
-- claimed ahead of its slots; free: slots left; oldest_run: since the earliest of them was started; completed_1m: jobs it
-- completed within the last minute.
create view {schema}.worker_stats as
with held as (
    select worker_id, count(*) as running, min(started_at) as oldest
    from {schema}.jobs
    where state = 'running'
    group by worker_id
),
completed as (
    select worker_id, count(*) as completed
    from {schema}.finished_jobs
    where state = 'completed' and finished_at > statement_timestamp() - interval '1 minute'
    group by worker_id
)
select
    worker.id,
    worker.host,
    worker.pid,
    worker.version,
    worker.queues,
    worker.tasks,
    worker.concurrency,
    worker.started_at,
    worker.heartbeat_at,
    worker.expires_at,
    statement_timestamp() - worker.heartbeat_at as heartbeat_age,
    worker.expires_at > statement_timestamp() as alive,
    worker.stopping,
    coalesce(held.running, 0) as running,
    greatest(worker.concurrency - coalesce(held.running, 0), 0) as free,
    statement_timestamp() - held.oldest as oldest_run,
    coalesce(completed.completed, 0) as completed_1m
from {schema}.workers as worker
left join held on held.worker_id = worker.id
left join completed on completed.worker_id = worker.id
