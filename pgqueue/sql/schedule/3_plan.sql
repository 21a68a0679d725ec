-- plan: writes down when a schedule fires next, or why that cannot be told. Guard: the revision that it was worked out for.
-- In: name, revision bigint, next_tick timestamptz or null (stays as it is), problem text or null. Out: name. Caller: db.plan
update {schema}.schedules
set next_tick = coalesce(%(next_tick)s::timestamptz, next_tick), problem = %(problem)s::text
where name = %(name)s and revision = %(revision)s::bigint and (next_tick is null or %(next_tick)s::timestamptz is null)
    and (problem is distinct from %(problem)s::text or %(next_tick)s::timestamptz is not null)
returning name
