-- find_tasks: what became of each task's jobs within the last hour. In: nothing. Out: the columns of task_stats, times in
-- seconds; the busiest first. Caller: db.find_tasks
select task, count, failures, extract(epoch from wait_p50)::float8, extract(epoch from wait_p95)::float8,
    extract(epoch from wait_p99)::float8, extract(epoch from run_p50)::float8, extract(epoch from run_p95)::float8,
    extract(epoch from run_p99)::float8
from {schema}.task_stats
order by count desc, task
