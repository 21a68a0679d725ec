-- find_queues: the queues as people see them. In: nothing. Out: the columns of queue_stats, the age in seconds; by name.
-- Caller: db.find_queues
select queue, queued, scheduled, running, blocked, dead, extract(epoch from oldest_age)::float8, paused, completed_1m,
    failed_1m
from {schema}.queue_stats
order by queue
