-- why(job_id): why is this job not running? One row a cause, the weightiest first, whose detail is a sentence that
-- stands by itself. since: when the cause began, null where nobody knows. Reads only, in the caller's snapshot. Without a
-- right to read errors their texts are left out. Jobs ahead are counted up to 100,000.
create function {schema}.why(job_id bigint) returns table (cause text, detail text, since timestamptz)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set intervalstyle = 'postgres'
as $$
#variable_conflict use_column
declare
    now constant timestamptz := statement_timestamp();
    clock constant text := 'YYYY-MM-DD HH24:MI:SS "UTC"';
    asked regclass;
    needed text[];
    lacking text;
    job record;
    last record;
    worker record;
    live record;
    name text;
    known text;
    wanted text;
    able text[];
    above int[];
    below int[];
    ahead bigint;
    found_near int := 0;
    causes text[] := '{}';
    details text[] := '{}';
    sinces timestamptz[] := '{}';
begin
    for asked, needed in values
        ({regclass:jobs}, string_to_array(
            'id,task,queue,priority,state,run_at,attempt,max_attempts,fence,crashes,created_at,started_at,worker_id,expires_at,cancelling',
            ','
        )),
        ({regclass:finished_jobs}, array['id', 'task', 'queue', 'state', 'attempt', 'max_attempts', 'finished_at']),
        ({regclass:dead_jobs}, array['id', 'task', 'queue', 'state', 'attempt', 'max_attempts', 'reason', 'died_at']),
        ({regclass:workers}, string_to_array(
            'id,host,pid,version,queues,tasks,concurrency,stopping,started_at,expires_at', ','
        )),
        ({regclass:queues}, array['name', 'paused', 'paused_at', 'paused_by', 'paused_until']),
        ({regclass:paused_tasks}, array['task', 'paused_at', 'paused_by', 'paused_until']),
        ({regclass:job_errors}, array['job_id', 'fence', 'attempt', 'at'])
    loop
        select case when has_any_column_privilege(asked, 'SELECT')
            then ' (' || string_agg(quote_ident(n), ', ' order by o) || ')' else '' end
        into lacking
        from unnest(needed) with ordinality as c (n, o)
        where not has_column_privilege(asked, n, 'SELECT')
        having count(*) > 0;
        if lacking is not null then
            raise exception 'permission denied for %: role % may not ask why', asked, current_user
                using errcode = 'insufficient_privilege',
                hint = format('GRANT SELECT%s ON %s TO %I', lacking, asked, current_user);
        end if;
    end loop;

    select j.id, j.task, j.queue, j.priority, j.state, j.run_at, j.attempt, j.max_attempts, j.fence, j.crashes,
        j.created_at, j.started_at, j.worker_id, j.expires_at, j.cancelling
    into job
    from {schema}.jobs as j
    where j.id = why.job_id;

    if not found then
        select j.id, j.task, j.queue, j.state, j.attempt, j.max_attempts, j.reason, j.finished_at, null::text as error
        into job
        from (
            select d.id, d.task, d.queue, d.state, d.attempt, d.max_attempts, d.reason, d.died_at as finished_at
            from {schema}.dead_jobs as d
            where d.id = why.job_id
            union all
            select f.id, f.task, f.queue, f.state, f.attempt, f.max_attempts, null, f.finished_at
            from {schema}.finished_jobs as f
            where f.id = why.job_id
        ) as j
        order by j.finished_at desc
        limit 1;
        if not found then
            select s.last_value into ahead
            from (
                select case when has_sequence_privilege({regclass:jobs_id_seq}, 'USAGE, SELECT')
                    then pg_sequence_last_value({regclass:jobs_id_seq}) end
            ) as s (last_value);
            if why.job_id between 1 and ahead then
                return query select 'pruned'::text, format(
                    'job %s has ended and is kept no longer, or its enqueue was rolled back or has not committed yet',
                    why.job_id
                ), null::timestamptz;
            else
                return query select 'unknown'::text, format(
                    'there is no job %s%s', coalesce(why.job_id::text, 'without an id'),
                    case when ahead is null then '' else format(', the newest is %s', ahead) end
                ), null::timestamptz;
            end if;
            return;
        end if;
        if job.state = 'dead' and has_column_privilege({regclass:dead_jobs}, 'error', 'SELECT') then
            select d.error into job.error from {schema}.dead_jobs as d where d.id = why.job_id;
        elsif job.state <> 'dead' and has_column_privilege({regclass:finished_jobs}, 'error', 'SELECT') then
            select f.error into job.error
            from {schema}.finished_jobs as f
            where f.id = why.job_id and f.finished_at = job.finished_at;
        end if;
        return query select job.state, format(
            'job %s (%s, queue %s) %s at %s%s', job.id, job.task, job.queue,
            case job.state
                when 'completed' then format('completed in attempt %s of %s', job.attempt, job.max_attempts)
                when 'cancelled' then 'was cancelled'
                when 'expired' then 'was not started in time and expired'
                else 'is dead, ' || case job.reason
                    when 'attempts' then format('all %s attempts used up', job.max_attempts)
                    when 'timeout' then format('all %s attempts used up, the last one by its timeout', job.max_attempts)
                    when 'never' then format('by an error that its task never retries, in attempt %s', job.attempt)
                    when 'dead_letter' then format('dead-lettered by its task in attempt %s', job.attempt)
                    when 'crashed' then 'its process died too often'
                    when 'bad_row' then 'its row cannot be read as a job'
                    else job.reason
                end || ','
            end,
            to_char(job.finished_at, clock),
            case when job.state <> 'expired' and job.error <> ''
                then ': ' || left(split_part(job.error, E'\n', 1), 200) else '' end
        ), job.finished_at;
        return;
    end if;

    select count(*) as workers,
        count(*) filter (where serves) as serving,
        count(*) filter (where serves and knows) as able,
        count(*) filter (where serves and knows and not w.stopping) as willing,
        count(distinct w.version) as versions,
        coalesce(sum(w.concurrency) filter (where serves and knows and not w.stopping), 0) as slots,
        coalesce(
            sum(greatest(w.concurrency - held.jobs, 0)) filter (where serves and knows and not w.stopping), 0
        ) as free
    into live
    from {schema}.workers as w
    cross join lateral (
        select w.queues is null or job.queue = any(w.queues) as serves, job.task = any(w.tasks) as knows
    ) as may
    cross join lateral (
        select count(*) as jobs from {schema}.jobs as j where j.state = 'running' and j.worker_id = w.id
    ) as held
    where w.expires_at > now;

    if job.state = 'running' then
        select w.host, w.pid, w.expires_at, w.stopping into worker
        from {schema}.workers as w
        where w.id = job.worker_id;
        if found and worker.expires_at > now then
            causes := causes || 'running'::text;
            details := details || format(
                'worker %s:%s has been running it for %s, attempt %s of %s%s, and holds it until %s unless it renews%s',
                worker.host, worker.pid, date_trunc('second', now - job.started_at), job.attempt, job.max_attempts,
                case when worker.stopping then ', is stopping' else '' end, to_char(worker.expires_at, clock),
                case when job.cancelling is not null then '; it was asked to end' else '' end
            );
        else
            causes := causes || 'lost'::text;
            details := details || format(
                'its worker is gone, and %s', case when live.workers > 0
                    then 'the next sweep of another gives it back, within seconds'
                    else 'no other is alive that could give it back' end
            );
        end if;
        sinces := sinces || job.started_at;
    elsif job.state = 'blocked' then
        causes := causes || 'blocked'::text;
        details := details || 'it is blocked: it waits for other jobs to end'::text;
        sinces := sinces || job.created_at;
    else
        if job.expires_at <= now then
            causes := causes || 'expired'::text;
            details := details || format(
                'it was not started by %s and may not start any more; %s', to_char(job.expires_at, clock),
                case when live.workers > 0 then 'the next sweep of a worker moves it out, within seconds'
                    else 'a worker will move it out' end
            );
            sinces := sinces || job.expires_at;
        end if;
        if job.run_at > now then
            select e.attempt, e.at, null::text as error into last
            from {schema}.job_errors as e
            where e.job_id = job.id and e.fence = job.fence;
            if found then
                if has_column_privilege({regclass:job_errors}, 'error', 'SELECT') then
                    select e.error into last.error
                    from {schema}.job_errors as e
                    where e.job_id = job.id and e.fence = job.fence;
                end if;
                causes := causes || 'backoff'::text;
                details := details || format(
                    'attempt %s of %s failed%s, and the next is due at %s, in %s', last.attempt, job.max_attempts,
                    coalesce(' with ' || left(split_part(nullif(last.error, ''), E'\n', 1), 200), ''),
                    to_char(job.run_at, clock), date_trunc('second', job.run_at - now)
                );
                sinces := sinces || last.at;
            elsif job.fence > 0 and job.started_at is not null then -- else it was redriven since
                causes := causes || 'snoozed'::text;
                details := details || format(
                    'it was started before and given back, and is due at %s, in %s',
                    to_char(job.run_at, clock), date_trunc('second', job.run_at - now)
                );
                sinces := sinces || job.started_at;
            else
                causes := causes || 'scheduled'::text;
                details := details || format(
                    'it is scheduled for %s, in %s', to_char(job.run_at, clock), date_trunc('second', job.run_at - now)
                );
                sinces := sinces || job.created_at;
            end if;
        end if;
        for last in
            select 'queue' as kind, q.name, q.paused_at, q.paused_by, q.paused_until
            from {schema}.queues as q
            where q.name = job.queue and q.paused and (q.paused_until is null or q.paused_until > now)
            union all
            select 'task', t.task, t.paused_at, t.paused_by, t.paused_until
            from {schema}.paused_tasks as t
            where t.task = job.task and (t.paused_until is null or t.paused_until > now)
        loop
            causes := causes || 'paused'::text;
            details := details || format(
                '%s %s is paused%s%s%s', last.kind, last.name, coalesce(' by ' || last.paused_by, ''),
                coalesce(' since ' || to_char(last.paused_at, clock), ''),
                coalesce(' until ' || to_char(last.paused_until, clock), '')
            );
            sinces := sinces || last.paused_at;
        end loop;
        if live.workers = 0 then
            causes := causes || 'no_worker'::text;
            details := details || 'no worker is alive'::text;
            sinces := sinces || (select max(w.expires_at) from {schema}.workers as w);
        elsif live.serving = 0 then
            causes := causes || 'no_worker'::text;
            details := details || format(
                'no live worker serves queue %s: %s serve%s %s', job.queue,
                case live.workers when 1 then 'the only one' else format('the %s that are alive', live.workers) end,
                case live.workers when 1 then 's' else '' end,
                (
                    select left(string_agg(distinct q, ', ' order by q), 200)
                    from {schema}.workers as w, unnest(w.queues) as q
                    where w.expires_at > now
                )
            );
            sinces := sinces || null::timestamptz;
        elsif live.able = 0 then
            causes := causes || 'unknown_task'::text;
            details := details || format(
                '%s that serve%s queue %s know%s task %s',
                case live.serving when 1 then 'the only live worker'
                    else format('none of the %s live workers', live.serving) end,
                case live.serving when 1 then 's' else '' end, job.queue,
                case live.serving when 1 then 's no' else 's' end, job.task
            );
            sinces := sinces || null::timestamptz;
        elsif live.willing = 0 then
            causes := causes || 'stopping'::text;
            details := details || format(
                '%s that would run it %s stopping',
                case live.able when 1 then 'the only live worker' else format('all %s live workers', live.able) end,
                case live.able when 1 then 'is' else 'are' end
            );
            sinces := sinces || null::timestamptz;
        elsif job.crashes > 0 then
            causes := causes || 'suspect'::text;
            details := details || format(
                'its process died %s under it, so it waits to run alone, in a process of its own',
                case job.crashes when 1 then 'once' else format('%s times', job.crashes) end
            );
            sinces := sinces || job.started_at;
        elsif cardinality(causes) = 0 then
            able := array(
                select distinct t
                from {schema}.workers as w, unnest(w.tasks) as t
                where w.expires_at > now and not w.stopping and (w.queues is null or job.queue = any(w.queues))
                    and not exists (
                        select
                        from {schema}.paused_tasks as p
                        where p.task = t and (p.paused_until is null or p.paused_until > now)
                    )
            );
            select count(*) into ahead
            from (
                select
                from {schema}.jobs as j
                where j.queue = job.queue and j.state = 'queued' and j.crashes = 0 and j.task = any(able)
                    and (j.expires_at is null or j.expires_at > now)
                    and (j.priority > job.priority and j.run_at <= now
                        or j.priority = job.priority and (j.run_at, j.id) < (job.run_at, job.id))
                limit 100000
            ) as j;
            causes := causes || case when live.free > 0 then 'ready' else 'busy' end;
            details := details || case
                when live.free > 0 then format(
                    'it is due, %s; %s of the %s slots that could run it %s free: it starts with one of the next polls',
                    case ahead when 0 then 'and nothing is ahead of it' else format('with %s ahead of it', case ahead
                        when 1 then '1 job' when 100000 then '100000 jobs or more' else format('%s jobs', ahead) end) end,
                    live.free, live.slots, case live.free when 1 then 'is' else 'are' end
                )
                else format(
                    '%s %s that could run it %s busy, and %s ahead of it',
                    case live.slots when 1 then 'the' else 'all ' || live.slots end,
                    case live.slots when 1 then 'only slot' else 'slots' end,
                    case live.slots when 1 then 'is' else 'are' end,
                    case ahead when 0 then 'nothing is' when 1 then '1 job is'
                        when 100000 then '100000 jobs or more are' else format('%s jobs are', ahead) end
                )
            end;
            sinces := sinces || job.run_at;
        end if;
        if live.workers > 0 and live.able = 0 then
            for worker in
                select w.host, w.pid, w.queues, w.started_at
                from {schema}.workers as w
                where w.expires_at > now and job.task = any(w.tasks)
                order by w.host, w.pid
                limit 5
            loop
                causes := causes || 'near'::text;
                details := details || format(
                    'worker %s:%s knows the task, and serves only %s',
                    worker.host, worker.pid, left(array_to_string(worker.queues, ', '), 200)
                );
                sinces := sinces || worker.started_at;
            end loop;
            -- Names that are nearly the right one: up to two letters apart, or the same task in another module.
            for name, wanted in
                select n.name, n.wanted
                from (
                    select t, job.task
                    from {schema}.workers as w, unnest(w.tasks) as t
                    where w.expires_at > now
                    union
                    select q, job.queue
                    from {schema}.workers as w, unnest(w.queues) as q
                    where w.expires_at > now
                ) as n (name, wanted)
                where n.name <> n.wanted
                    and (abs(length(n.name) - length(n.wanted)) <= 2 or n.wanted = job.task
                        and regexp_replace(n.name, '^.*\.', '') = regexp_replace(n.wanted, '^.*\.', ''))
                order by n.wanted = job.queue, n.name
                limit 500
            loop
                exit when found_near >= 5;
                if wanted <> job.task or regexp_replace(name, '^.*\.', '') <> regexp_replace(wanted, '^.*\.', '') then
                    -- Levenshtein's distance, a row at a time.
                    known := lower(name);
                    above := array(select generate_series(0, length(wanted)));
                    for i in 1 .. length(known) loop
                        below := array[i];
                        for k in 1 .. length(wanted) loop
                            below[k + 1] := least(
                                above[k + 1] + 1, below[k] + 1,
                                above[k] + (substr(known, i, 1) <> substr(lower(wanted), k, 1))::int
                            );
                        end loop;
                        above := below;
                    end loop;
                    continue when above[length(wanted) + 1] > 2;
                end if;
                found_near := found_near + 1;
                causes := causes || 'near'::text;
                details := details || format(
                    'a live worker %s %s, which is nearly %s',
                    case when wanted = job.task then 'knows task' else 'serves queue' end, name, wanted
                );
                sinces := sinces || null::timestamptz;
            end loop;
        end if;
        if live.versions > 1 then
            causes := causes || 'versions'::text;
            details := details || (
                select 'live workers run different versions: ' || string_agg(
                    format('%s on %s of which %s know the task', v.version, v.workers, v.knowing), ', '
                    order by v.version
                )
                from (
                    select w.version, count(*) as workers, count(*) filter (where job.task = any(w.tasks)) as knowing
                    from {schema}.workers as w
                    where w.expires_at > now
                    group by w.version
                ) as v
            );
            sinces := sinces || null::timestamptz;
        end if;
        if job.expires_at > now then
            causes := causes || 'expires'::text;
            details := details || format(
                'unless it starts by %s, in %s, it expires',
                to_char(job.expires_at, clock), date_trunc('second', job.expires_at - now)
            );
            sinces := sinces || null::timestamptz;
        end if;
    end if;
    details[1] := format(
        'job %s (%s, queue %s) %s: %s', job.id, job.task, job.queue,
        case job.state when 'running' then 'is running' else 'is not running' end, details[1]
    );
    return query select * from unnest(causes, details, sinces);
end
$$
