-- change(job_id, priority, run_at): gives a queued job another priority, another time, or both; what is null stays. False if
-- there was nothing to do: it is not queued, or could not start in time then.
-- Raises PQ001: a value that cannot be a job's, or neither of them.
create function {schema}.change(job_id bigint, priority integer default null, run_at timestamptz default null)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    lane text;
begin
    if change.priority is null and change.run_at is null then
        raise exception 'change() needs a priority or a run_at'
            using errcode = 'PQ001', hint = 'Name what is to change: change(42, priority => 10).';
    end if;
    if change.priority not between -100 and 100 then
        raise exception 'priority must be between -100 and 100, not %', change.priority
            using errcode = 'PQ001', hint = 'Higher ones go first; NULL leaves it as it is.';
    end if;
    if not isfinite(change.run_at) or change.run_at not between statement_timestamp() - interval '100 years'
        and statement_timestamp() + interval '10 years' then
        raise exception 'run_at must lie within the next ten years'
            using errcode = 'PQ001', hint = 'NULL leaves it as it is; now() is at once.';
    end if;
    if not has_any_column_privilege({regclass:jobs}, 'SELECT')
        or not has_any_column_privilege({regclass:jobs}, 'UPDATE') then
        raise exception 'permission denied for table jobs: role % may not change jobs', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, UPDATE ON %s TO %I', {regclass:jobs}, current_user);
    end if;
    if not has_any_column_privilege({regclass:sleepers}, 'SELECT') then
        raise exception 'permission denied for table sleepers: role % may not change jobs', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT ON %s TO %I', {regclass:sleepers}, current_user);
    end if;
    update {schema}.jobs as job
    set priority = coalesce(change.priority, job.priority), run_at = coalesce(change.run_at, job.run_at)
    where job.id = change.job_id and job.state = 'queued'
        and (job.expires_at is null or job.expires_at > greatest(statement_timestamp(), change.run_at))
    returning job.queue into lane;
    if not found then
        return false;
    end if;
    perform pg_notify('pgqueue_' || replace(sleeper.worker_id::text, '-', ''), '')
    from (
        select s.worker_id
        from {schema}.sleepers as s
        where s.queue in (lane, '*') and s.until > statement_timestamp()
        limit 1
    ) as sleeper;
    return true;
end
$$
