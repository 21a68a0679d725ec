-- retry_now(job_id): makes a queued job that waits for its time, or for its retry, due now. False if there was nothing to
-- do: it is not queued, due already, or could not start in time any more.
create function {schema}.retry_now(job_id bigint) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    lane text;
begin
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
    set run_at = statement_timestamp()
    where job.id = retry_now.job_id and job.state = 'queued' and job.run_at > statement_timestamp()
        and (job.expires_at is null or job.expires_at > statement_timestamp())
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
