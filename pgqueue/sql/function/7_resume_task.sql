-- resume_task(task): jobs of this task may start again. A task that is not paused stays as it is.
create function {schema}.resume_task(task text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if not has_any_column_privilege({regclass:paused_tasks}, 'SELECT')
        or not has_table_privilege({regclass:paused_tasks}, 'DELETE') then
        raise exception 'permission denied for table paused_tasks: role % may not resume a task', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, DELETE ON %s TO %I', {regclass:paused_tasks}, current_user);
    end if;
    if not has_any_column_privilege({regclass:workers}, 'SELECT') then
        raise exception 'permission denied for table workers: role % may not resume a task', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT ON %s TO %I', {regclass:workers}, current_user);
    end if;
    delete from {schema}.paused_tasks as known where known.task = resume_task.task;
    if found then
        perform pg_notify('pgqueue_orders_' || replace(worker.id::text, '-', ''), '') from {schema}.workers as worker;
    end if;
end
$$
