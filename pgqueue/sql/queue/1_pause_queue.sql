-- pause_queue: no job of this queue starts until it is resumed; a queue that nobody has seen yet, too. Again: the later word
-- counts. In: queue text, until timestamptz or null, seconds float8 (from now) or null; neither: it stays paused; by text
--     or null. Out: nothing. Caller: db.pause_queue
insert into {schema}.queues as known (name, paused, paused_at, paused_by, paused_until)
values (
    %(queue)s::text, true, pg_catalog.statement_timestamp(), %(by)s::text,
    coalesce(
        %(until)s::timestamptz, pg_catalog.statement_timestamp() + %(seconds)s::float8 * interval '1 second'
    )
)
on conflict (name) do update
set paused = true, paused_by = excluded.paused_by, paused_until = excluded.paused_until,
    paused_at = case
        when known.paused and (known.paused_until is null or known.paused_until > excluded.paused_at)
        then known.paused_at
        else excluded.paused_at
    end
