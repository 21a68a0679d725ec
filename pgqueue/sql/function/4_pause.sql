-- pause(queue, until, by): no job of this queue starts from now on, be it a queue that nobody has
-- seen yet. until: resumes by itself then. by: who did it, for people. Again: the later word counts.
-- Raises PQ001: a name that no queue can have, a time that is over.
create function {schema}.pause(queue text, until timestamptz default null, by text default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if pause.queue is null or pause.queue !~ '^[A-Za-z0-9_.:-]{1,128}$' then
        raise exception 'queue must be 1 to 128 letters, digits and _ . : -'
            using errcode = 'PQ001', hint = 'Name one queue; NULL does not stand for all.';
    end if;
    if not isfinite(pause.until) or pause.until <= statement_timestamp() then
        raise exception 'until must lie in the future'
            using errcode = 'PQ001', hint = 'Leave it NULL to pause until it is resumed.';
    end if;
    if not has_any_column_privilege({regclass:queues}, 'SELECT')
        or not has_any_column_privilege({regclass:queues}, 'INSERT')
        or not has_any_column_privilege({regclass:queues}, 'UPDATE') then
        raise exception 'permission denied for table queues: role % may not pause a queue', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, INSERT, UPDATE ON %s TO %I', {regclass:queues}, current_user);
    end if;
    if not has_any_column_privilege({regclass:workers}, 'SELECT') then
        raise exception 'permission denied for table workers: role % may not pause a queue', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT ON %s TO %I', {regclass:workers}, current_user);
    end if;
    insert into {schema}.queues as known (name, paused, paused_at, paused_by, paused_until)
    values (pause.queue, true, statement_timestamp(), pause.by, pause.until)
    on conflict (name) do update
    set paused = true, paused_by = excluded.paused_by, paused_until = excluded.paused_until,
        paused_at = case
            when known.paused and (known.paused_until is null or known.paused_until > excluded.paused_at)
            then known.paused_at
            else excluded.paused_at
        end;
    perform pg_notify('pgqueue_orders_' || replace(worker.id::text, '-', ''), '') from {schema}.workers as worker;
end
$$
