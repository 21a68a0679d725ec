-- holders: as holder, of several keys; a statement of its own for the same reason, and it locks no row either.
-- In: keys text[]. Out: as holder, then unique_key. Index: jobs_unique. Caller: db.holders
select id, task, queue, state, priority, run_at, attempt, max_attempts, created_at, unique_key
from {schema}.jobs
where unique_key = any(%(keys)s::text[])
