-- cancel(job_id, why): ends a job that nobody runs; a job that runs is asked to end, and is cancelled then. False if there
-- was nothing to do: it has ended, or was asked before.
create function {schema}.cancel(job_id bigint, why text default null) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    job record;
    reason constant text := left(coalesce(cancel.why, 'cancelled by an operator'), 10000);
begin
    if not has_any_column_privilege({regclass:jobs}, 'SELECT')
        or not has_any_column_privilege({regclass:jobs}, 'UPDATE')
        or not has_table_privilege({regclass:jobs}, 'DELETE') then
        raise exception 'permission denied for table jobs: role % may not cancel', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, UPDATE, DELETE ON %s TO %I', {regclass:jobs}, current_user);
    end if;
    if not has_any_column_privilege({regclass:finished_jobs}, 'INSERT') then
        raise exception 'permission denied for table finished_jobs: role % may not cancel', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT INSERT ON %s TO %I', {regclass:finished_jobs}, current_user);
    end if;
    if not has_any_column_privilege({regclass:job_errors}, 'SELECT')
        or not has_table_privilege({regclass:job_errors}, 'DELETE') then
        raise exception 'permission denied for table job_errors: role % may not cancel', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, DELETE ON %s TO %I', {regclass:job_errors}, current_user);
    end if;
    if not has_any_column_privilege({regclass:job_history}, 'SELECT') then
        raise exception 'permission denied for table job_history: role % may not cancel', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT ON %s TO %I', {regclass:job_history}, current_user);
    end if;
    if not has_any_column_privilege({regclass:workers}, 'SELECT') then
        raise exception 'permission denied for table workers: role % may not cancel', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT ON %s TO %I', {regclass:workers}, current_user);
    end if;
    select live.* into job from {schema}.jobs as live where live.id = cancel.job_id for update;
    if job.id is null or job.cancelling is not null then
        return false;
    end if;
    if job.state = 'running' then
        update {schema}.jobs as live set cancelling = reason where live.id = job.id and live.state = 'running';
        perform pg_notify('pgqueue_orders_' || replace(worker.id::text, '-', ''), '')
        from {schema}.workers as worker
        where worker.id = job.worker_id;
        return true;
    end if;
    insert into {schema}.finished_jobs
        (id, state, queue, task, priority, run_at, attempt, max_attempts, fence, crashes, created_at, started_at,
        worker_id, expires_at, timeout, args, retry, unique_key, concurrency_key, tags, meta, finished_at, error, errors)
    values (
        job.id, 'cancelled', job.queue, job.task, job.priority, job.run_at, job.attempt, job.max_attempts, job.fence,
        job.crashes, job.created_at, job.started_at, job.worker_id, job.expires_at, job.timeout, job.args, job.retry,
        job.unique_key, job.concurrency_key, job.tags, job.meta, statement_timestamp(), reason,
        case when job.fence > 0 then (select errors from {schema}.job_history as past where past.job_id = job.id) end
    );
    delete from {schema}.job_errors as failed where failed.job_id = job.id;
    delete from {schema}.jobs as live where live.id = job.id and live.state in ('queued', 'blocked');
    if has_any_column_privilege({regclass:waiters}, 'SELECT') then -- who waits for it looks by itself, too
        perform pg_notify('pgqueue_waiter_' || replace(known.waiter::text, '-', ''), '')
        from {schema}.waiters as known
        where known.job_id = job.id and known.until > statement_timestamp();
    end if;
    return true;
end
$$
