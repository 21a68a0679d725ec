-- run_schedule(name): enqueues a job of a schedule, due now, also while it is paused; its ticks stay as they are. The job's
-- id. Raises PQ004: there is no such schedule.
create function {schema}.run_schedule(name text) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    found_schedule {schema}.schedules;
    job_id bigint;
begin
    if not has_any_column_privilege({regclass:schedules}, 'UPDATE')
        or not has_any_column_privilege({regclass:schedules}, 'SELECT') then
        raise exception 'permission denied for table schedules: role % may not run a schedule', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, UPDATE ON %s TO %I', {regclass:schedules}, current_user);
    end if;
    if not has_any_column_privilege({regclass:jobs}, 'INSERT')
        or not has_any_column_privilege({regclass:jobs}, 'SELECT') then
        raise exception 'permission denied for table jobs: role % may not enqueue', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, INSERT ON %s TO %I', {regclass:jobs}, current_user);
    end if;
    if not has_any_column_privilege({regclass:sleepers}, 'SELECT') then
        raise exception 'permission denied for table sleepers: role % may not enqueue', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT ON %s TO %I', {regclass:sleepers}, current_user);
    end if;
    select schedule.* into found_schedule
    from {schema}.schedules as schedule
    where schedule.name = run_schedule.name
    for update;
    if not found then
        raise exception 'there is no schedule %', coalesce(run_schedule.name, 'without a name')
            using errcode = 'PQ004', hint = 'The view schedule_stats shows those that there are.';
    end if;
    insert into {schema}.jobs as job
        (queue, task, priority, max_attempts, expires_at, timeout, args, retry, tags, meta)
    values (
        found_schedule.queue, found_schedule.task, found_schedule.priority, found_schedule.max_attempts,
        statement_timestamp() + found_schedule.expires_in * interval '1 second', found_schedule.timeout,
        found_schedule.args, found_schedule.retry, found_schedule.tags,
        coalesce(found_schedule.meta, '{}') || jsonb_build_object('schedule', found_schedule.name)
    )
    returning job.id into job_id;
    update {schema}.schedules as schedule
    set last_job = job_id, revision = default,
        open_jobs = array(select live.id from {schema}.jobs as live where live.id = any(schedule.open_jobs)) || job_id
    where schedule.name = run_schedule.name;
    perform pg_notify('pgqueue_' || replace(sleeper.worker_id::text, '-', ''), '')
    from (
        select s.worker_id
        from {schema}.sleepers as s
        where s.queue in (found_schedule.queue, '*') and s.until > statement_timestamp()
        limit 1
    ) as sleeper;
    return job_id;
end
$$
