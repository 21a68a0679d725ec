-- pause: a schedule fires no more, or again (paused false). Ticks of meanwhile are nobody's: it counts from now on. Twice
-- is once. In: names text[], paused bool, now timestamptz or null. Out: name, whether it was changed. Caller: db.pause_schedules
with held as materialized (
    select name, paused
    from {schema}.schedules
    where name = any(%(names)s::text[])
    order by name
    for update
),
changed as (
    update {schema}.schedules as schedule
    set paused = %(paused)s::bool, next_tick = null, revision = default,
        paused_at = case
            when %(paused)s::bool then coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())
        end,
        since = coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())
    where schedule.name = any(array(select held.name from held where held.paused <> %(paused)s::bool))
    returning schedule.name
)
select held.name, exists (select from changed where changed.name = held.name)
from held
order by held.name
