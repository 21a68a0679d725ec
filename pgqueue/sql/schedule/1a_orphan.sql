-- orphan: what the code declared and declares no more fires no more. A worker that starts knows: it has the task, and not
-- the schedule. In: tasks text[] (all that it knows), names text[] (schedules it declares), now timestamptz or null
-- Out: name, task of each that is an orphan from now on. Caller: db.orphan
with held as materialized (
    select name
    from {schema}.schedules
    where declared and orphaned_at is null and task = any(%(tasks)s::text[]) and not (name = any(%(names)s::text[]))
    order by name
    for update
)
update {schema}.schedules
set orphaned_at = coalesce(%(now)s::timestamptz, statement_timestamp()), next_tick = null, revision = default
where name = any(array(select name from held))
returning name, task
