-- retain: a worker writes down how long the ended jobs of its tasks are kept, so that any worker can prune them, also
-- one that does not know the task. The last one that starts counts; what is written already is not written again.
-- In: tasks text[] (all that it knows), keep int[], keep_for float8[], keep_dead int[], keep_dead_for float8[]
--     (each null where the default holds; a task without any has no row). Out: tasks whose row changed. Caller: db.retain
with wanted as materialized (
    select *
    from unnest(
        %(tasks)s::text[], %(keep)s::int[], %(keep_for)s::float8[], %(keep_dead)s::int[], %(keep_dead_for)s::float8[]
    ) as w (task, keep, keep_for, keep_dead, keep_dead_for)
),
obsolete as materialized (
    select task
    from {schema}.retention
    where task = any(array(select task from wanted where num_nonnulls(keep, keep_for, keep_dead, keep_dead_for) = 0))
    order by task
    for update
),
gone as (
    delete from {schema}.retention
    where task = any(array(select task from obsolete))
    returning task
),
changed as (
    insert into {schema}.retention as held (task, keep, keep_for, keep_dead, keep_dead_for)
    select task, keep, keep_for, keep_dead, keep_dead_for
    from wanted
    where num_nonnulls(keep, keep_for, keep_dead, keep_dead_for) > 0
        and not exists (
            select
            from {schema}.retention as same
            where same.task = wanted.task
                and (same.keep, same.keep_for, same.keep_dead, same.keep_dead_for)
                    is not distinct from (wanted.keep, wanted.keep_for, wanted.keep_dead, wanted.keep_dead_for)
        )
    order by task
    on conflict (task) do update
    set keep = excluded.keep, keep_for = excluded.keep_for, keep_dead = excluded.keep_dead,
        keep_dead_for = excluded.keep_dead_for, changed_at = excluded.changed_at, prune_at = excluded.prune_at
    returning task
)
select task from gone
union all
select task from changed
order by task
