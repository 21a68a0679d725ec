-- forget: removes what was declared and has been an orphan for so long; and what should have fired that long ago, had any
-- live worker known its task. Rows that were added at run time stay.
-- In: keep float8 (seconds), now timestamptz or null. Out: name, task. Caller: db.forget
with clock as materialized (
    select coalesce(%(now)s::timestamptz, statement_timestamp()) - %(keep)s::float8 * interval '1 second' as long_ago
),
held as materialized (
    select schedule.name
    from {schema}.schedules as schedule
    cross join clock
    where schedule.declared and (
        schedule.orphaned_at <= clock.long_ago
        or (
            schedule.next_tick <= clock.long_ago
            and not exists (select from {schema}.workers where schedule.task = any(workers.tasks))
        )
    )
    order by schedule.name
    for update of schedule skip locked
)
delete from {schema}.schedules
where name = any(array(select name from held))
returning name, task
