-- holders_periods: as holders, of keys that are held for a period; the job may have ended. Of one that is kept no longer
-- there is what its key says, and it counts as completed.
-- In: keys text[]. Out: as holders. Index: primary key of unique_periods; those of the tables. Caller: db.holders_periods
-- Not from all_jobs: a role that enqueues would have to be allowed all of its columns.
select held.job_id, held.task, held.queue, coalesce(live.state, ended.state, dead.state, 'completed'),
    coalesce(live.priority, ended.priority, dead.priority, 0), coalesce(live.run_at, ended.run_at, dead.run_at),
    coalesce(live.attempt, ended.attempt, dead.attempt, 0),
    coalesce(live.max_attempts, ended.max_attempts, dead.max_attempts, 4),
    coalesce(live.created_at, ended.created_at, dead.created_at, held.created_at), held.key
from {schema}.unique_periods as held
left join {schema}.jobs as live on live.id = held.job_id
left join {schema}.finished_jobs as ended on ended.id = held.job_id
left join {schema}.dead_jobs as dead on dead.id = held.job_id
where held.key = any(%(keys)s::text[]) and held.ends_at > pg_catalog.statement_timestamp()
