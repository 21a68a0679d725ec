-- holders_queued: as holders, of keys that are held until the first claim.
-- In: keys text[]. Out: as holders. Index: jobs_queued_key. Caller: db.holders_queued
select id, task, queue, state, priority, run_at, attempt, max_attempts, created_at, queued_key
from {schema}.jobs
where queued_key = any(%(keys)s::text[]) and fence = 0
