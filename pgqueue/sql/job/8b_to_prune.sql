-- to_prune: takes on the tasks whose turn it is to be pruned; for `pause` seconds no other worker does. Finding what to
-- remove may scan all of finished_jobs, so that once for the whole fleet is enough.
-- In: pause float8 (seconds), now timestamptz or null. Out: task, whether it limits finished jobs. Caller: db.to_prune
with due as materialized (
    select task
    from {schema}.retention
    where prune_at <= coalesce(%(now)s::timestamptz, statement_timestamp())
    order by task
    for update skip locked
)
update {schema}.retention
set prune_at = coalesce(%(now)s::timestamptz, statement_timestamp()) + %(pause)s::float8 * interval '1 second'
where task = any(array(select task from due))
returning task, keep is not null or keep_for is not null
