-- pause_task: no job of this task starts until it is resumed, whatever its queue. Again: the later word counts.
-- In: task text, until timestamptz or null, seconds float8 (from now) or null; neither: it stays paused; by text or null.
-- Out: nothing. Caller: db.pause_task
insert into {schema}.paused_tasks as known (task, paused_at, paused_by, paused_until)
values (
    %(task)s::text, pg_catalog.statement_timestamp(), %(by)s::text,
    coalesce(
        %(until)s::timestamptz, pg_catalog.statement_timestamp() + %(seconds)s::float8 * interval '1 second'
    )
)
on conflict (task) do update
set paused_by = excluded.paused_by, paused_until = excluded.paused_until,
    paused_at = case
        when known.paused_until is null or known.paused_until > excluded.paused_at then known.paused_at
        else excluded.paused_at
    end
