-- resume(queue): jobs of this queue may start again. A queue that is not paused stays as it is.
create function {schema}.resume(queue text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if not has_any_column_privilege({regclass:queues}, 'SELECT')
        or not has_any_column_privilege({regclass:queues}, 'UPDATE') then
        raise exception 'permission denied for table queues: role % may not resume a queue', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, UPDATE ON %s TO %I', {regclass:queues}, current_user);
    end if;
    if not has_any_column_privilege({regclass:workers}, 'SELECT') then
        raise exception 'permission denied for table workers: role % may not resume a queue', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT ON %s TO %I', {regclass:workers}, current_user);
    end if;
    update {schema}.queues as known
    set paused = false, paused_at = null, paused_by = null, paused_until = null
    where known.name = resume.queue and known.paused;
    if found then
        perform pg_notify('pgqueue_orders_' || replace(worker.id::text, '-', ''), '') from {schema}.workers as worker;
    end if;
end
$$
