-- remove_schedule(name): a schedule is gone; its jobs stay. False if there is no such schedule. One that code declares is
-- back when a worker starts.
create function {schema}.remove_schedule(name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if not has_table_privilege({regclass:schedules}, 'DELETE')
        or not has_any_column_privilege({regclass:schedules}, 'SELECT') then
        raise exception 'permission denied for table schedules: role % may not remove a schedule', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, DELETE ON %s TO %I', {regclass:schedules}, current_user);
    end if;
    delete from {schema}.schedules as schedule where schedule.name = remove_schedule.name;
    return found;
end
$$
