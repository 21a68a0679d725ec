-- holder: the live job that holds a unique key. A second statement after enqueue, because the one that waited for an
-- uncommitted holder does not see it. The row is not locked: SKIP LOCKED would pass it by.
-- In: unique_key. Out: id, task, queue, state, priority, run_at, attempt, max_attempts, created_at. Caller: db.holder
select id, task, queue, state, priority, run_at, attempt, max_attempts, created_at
from {schema}.jobs
where unique_key = %(unique_key)s
