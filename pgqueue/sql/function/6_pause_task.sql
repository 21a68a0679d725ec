-- pause_task(task, until, by): no job of this task starts from now on, whatever its queue; as pause().
-- Raises PQ001: a name that no task can have, a time that is over.
create function {schema}.pause_task(task text, until timestamptz default null, by text default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if pause_task.task is null or pause_task.task !~ '^[A-Za-z0-9_.:-]{1,128}$' then
        raise exception 'task must be 1 to 128 letters, digits and _ . : -'
            using errcode = 'PQ001', hint = 'Name one task; NULL does not stand for all.';
    end if;
    if not isfinite(pause_task.until) or pause_task.until <= statement_timestamp() then
        raise exception 'until must lie in the future'
            using errcode = 'PQ001', hint = 'Leave it NULL to pause until it is resumed.';
    end if;
    if not has_any_column_privilege({regclass:paused_tasks}, 'SELECT')
        or not has_any_column_privilege({regclass:paused_tasks}, 'INSERT')
        or not has_any_column_privilege({regclass:paused_tasks}, 'UPDATE') then
        raise exception 'permission denied for table paused_tasks: role % may not pause a task', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, INSERT, UPDATE ON %s TO %I', {regclass:paused_tasks}, current_user);
    end if;
    if not has_any_column_privilege({regclass:workers}, 'SELECT') then
        raise exception 'permission denied for table workers: role % may not pause a task', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT ON %s TO %I', {regclass:workers}, current_user);
    end if;
    insert into {schema}.paused_tasks as known (task, paused_at, paused_by, paused_until)
    values (pause_task.task, statement_timestamp(), pause_task.by, pause_task.until)
    on conflict (task) do update
    set paused_by = excluded.paused_by, paused_until = excluded.paused_until,
        paused_at = case
            when known.paused_until is null or known.paused_until > excluded.paused_at then known.paused_at
            else excluded.paused_at
        end;
    perform pg_notify('pgqueue_orders_' || replace(worker.id::text, '-', ''), '') from {schema}.workers as worker;
end
$$
