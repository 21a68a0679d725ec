-- redrive(job_id): sends a dead job back to its queue, due now. False if there is no such dead job: twice makes one job.
create function {schema}.redrive(job_id bigint) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    corpse {schema}.dead_jobs;
    holder bigint;
begin
    if not has_any_column_privilege({regclass:dead_jobs}, 'SELECT')
        or not has_table_privilege({regclass:dead_jobs}, 'DELETE') then
        raise exception 'permission denied for table dead_jobs: role % may not redrive', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, DELETE ON %s TO %I', {regclass:dead_jobs}, current_user);
    end if;
    if not has_any_column_privilege({regclass:jobs}, 'INSERT')
        or not has_any_column_privilege({regclass:jobs}, 'SELECT') then
        raise exception 'permission denied for table jobs: role % may not redrive', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, INSERT ON %s TO %I', {regclass:jobs}, current_user);
    end if;
    if not has_any_column_privilege({regclass:sleepers}, 'SELECT') then
        raise exception 'permission denied for table sleepers: role % may not redrive', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT ON %s TO %I', {regclass:sleepers}, current_user);
    end if;
    delete from {schema}.dead_jobs as job where job.id = redrive.job_id and job.state = 'dead' returning job.* into corpse;
    if not found then
        return false;
    end if;
    insert into {schema}.jobs as job
        (id, queue, task, priority, max_attempts, fence, created_at, timeout, args, retry, unique_key, concurrency_key,
        tags, meta)
    values (
        corpse.id, corpse.queue, corpse.task, corpse.priority, corpse.max_attempts, corpse.fence, corpse.created_at,
        corpse.timeout, corpse.args, corpse.retry, corpse.unique_key, corpse.concurrency_key, corpse.tags, corpse.meta
    )
    on conflict (unique_key) where unique_key is not null do nothing;
    if not found then
        select job.id into holder from {schema}.jobs as job where job.unique_key = corpse.unique_key;
        raise exception 'job % cannot be redriven: live job % holds its unique key', redrive.job_id, holder
            using errcode = 'PQ002', hint = 'Wait for that job to end, or cancel it.';
    end if;
    perform pg_notify('pgqueue_' || replace(sleeper.worker_id::text, '-', ''), '')
    from (
        select s.worker_id
        from {schema}.sleepers as s
        where s.queue in (corpse.queue, '*') and s.until > statement_timestamp()
        limit 1
    ) as sleeper;
    return true;
end
$$
