-- find_workers: the workers as people see them. In: nothing. Out: the columns of worker_stats, ages in seconds; by host,
-- process and id. Caller: db.find_workers
select id, host, pid, version, queues, tasks, concurrency, started_at, heartbeat_at, expires_at,
    extract(epoch from heartbeat_age)::float8, alive, stopping, running, free, extract(epoch from oldest_run)::float8,
    completed_1m
from {schema}.worker_stats
order by host, pid, id
