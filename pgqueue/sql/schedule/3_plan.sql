-- plan: writes down when a schedule fires next, or why that cannot be told. Guard: the revision that it was worked out for;
-- of a paused or orphaned one nothing is.
-- In: name, revision bigint, next_tick timestamptz or null (stays as it is), problem text or null
-- Out: name, if that is news. Caller: db.plan
update {schema}.schedules
set next_tick = coalesce(%(next_tick)s::timestamptz, next_tick), problem = %(problem)s::text
where name = %(name)s and revision = %(revision)s::bigint and not paused and orphaned_at is null
    and (next_tick, problem) is distinct from (coalesce(%(next_tick)s::timestamptz, next_tick), %(problem)s::text)
returning name
