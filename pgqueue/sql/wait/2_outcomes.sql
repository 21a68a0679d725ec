-- outcomes: what has become of these jobs; of those that have not ended there is no row.
-- In: ids bigint[], bare bool (null for the result). Out: id, state (null: it is nowhere), result as text, reason, error,
--     the oldest transaction that has not ended, and the highest id that a job has had. Index: primary keys.
-- Caller: db.outcomes
-- Partitions are probed for what has gone from `jobs`, and for nothing else.
select asked.id, coalesce(done.state, dead.state), pg_catalog.left(done.result, 1000000), dead.reason,
    pg_catalog.left(coalesce(done.error, dead.error), 10000),
    pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint,
    (select case when is_called then last_value else 0 end from {schema}.jobs_id_seq)
from (
    select id
    from pg_catalog.unnest(%(ids)s::bigint[]) as i (id)
    where (select true from {schema}.jobs where jobs.id = i.id) is null
    offset 0
) as asked
left join lateral (
    select state, case when not %(bare)s::bool then result::text end as result, error
    from {schema}.finished_jobs
    where finished_jobs.id = asked.id
    limit 1
) as done on true
left join lateral (
    select state, reason, error
    from {schema}.dead_jobs
    where dead_jobs.id = asked.id
    limit 1
) as dead on true
