-- pause_schedule(name): a schedule fires no more. False if there is no such schedule, or it was paused already.
create function {schema}.pause_schedule(name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if not has_any_column_privilege({regclass:schedules}, 'UPDATE')
        or not has_any_column_privilege({regclass:schedules}, 'SELECT') then
        raise exception 'permission denied for table schedules: role % may not pause a schedule', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, UPDATE ON %s TO %I', {regclass:schedules}, current_user);
    end if;
    update {schema}.schedules as schedule
    set paused = true, paused_at = statement_timestamp(), next_tick = null, since = statement_timestamp(),
        revision = default
    where schedule.name = pause_schedule.name and schedule.paused <> true;
    return found;
end
$$
