-- orders: what a worker is to obey beside its jobs, asked each second: which queues and tasks are paused, which of its
-- jobs were asked to end, and whether anybody waits for a job. All of them are empty almost always.
-- In: worker_id uuid. Out: kind (queue, task, cancel, wait), name (of queue or task; why), id, fence (null but for a
--     cancel), seconds until it resumes by itself (null: it does not). Index: jobs_cancelling. Caller: db.orders
select 'queue', name, null::bigint, null::int, extract(epoch from paused_until - statement_timestamp())::float8
from {schema}.queues
where paused and (paused_until is null or paused_until > statement_timestamp())
union all
select 'task', task, null, null, extract(epoch from paused_until - statement_timestamp())::float8
from {schema}.paused_tasks
where paused_until is null or paused_until > statement_timestamp()
union all
select 'cancel', left(cancelling, 10000), id, fence, null
from {schema}.jobs
where cancelling is not null and worker_id = %(worker_id)s
union all
select 'wait', '', null, null, null
where (select true from {schema}.waiters where until > statement_timestamp() limit 1)
