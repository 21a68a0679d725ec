-- enqueue(...): the public way to enqueue from SQL, in the caller's own transaction. Null options mean the general
-- defaults: a task's own are known to Python only. An array in args is positional, an object named arguments.
-- With a unique_key that a live job holds, the id of that job comes back. unique: names of arguments that make the key, '{*}'
-- for all of them; unique_until, unique_for and debounce_for (seconds), on_conflict: as in Python. wake false: no NOTIFY, with
-- which a transaction cannot be prepared. Raises PQ001: a value that cannot be a job's; PQ002: on_conflict is raise, and the
-- key is held; PQ003: the transaction cannot write.
-- Its rights are looked at first, which takes 0.3 us: the server would name a table, and no right.
create function {schema}.enqueue(
    task text,
    args jsonb default '{}',
    queue text default null,
    priority integer default null,
    run_at timestamptz default null,
    max_attempts integer default null,
    unique_key text default null,
    expires_at timestamptz default null,
    timeout double precision default null,
    tags text[] default null,
    meta jsonb default null,
    wake boolean default null,
    "unique" text[] default null,
    unique_until text default null,
    unique_for double precision default null,
    on_conflict text default null,
    debounce_for double precision default null
) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    job_id bigint;
    field text;
    value jsonb;
    size integer;
    due timestamptz := greatest(enqueue.run_at, statement_timestamp());
    lane text := coalesce(enqueue.queue, 'default');
    named text := enqueue.unique_key;
    until text := coalesce(enqueue.unique_until, 'finished');
    conflict text := coalesce(enqueue.on_conflict, 'keep');
    held_state text;
    held_job record;
begin
    if current_setting('transaction_read_only') = 'on' then
        raise exception '%', case
                when pg_is_in_recovery() then 'the server is a standby, where nothing can be written'
                else 'the transaction is read-only, and a job is a row that has to be written'
            end
            using errcode = 'PQ003', hint = case
                when pg_is_in_recovery() then 'Connect to the primary.'
                else 'Enqueue in a transaction that may write: BEGIN READ WRITE.'
            end;
    end if;
    if enqueue.task is null or enqueue.task !~ '^[A-Za-z0-9_.:-]{1,128}$' then
        raise exception 'task must be 1 to 128 letters, digits and _ . : -'
            using errcode = 'PQ001', hint = 'Pass the name of a registered task, such as shop.send_receipt.';
    end if;
    if lane !~ '^[A-Za-z0-9_.:-]{1,128}$' then
        raise exception 'queue must be 1 to 128 letters, digits and _ . : -'
            using errcode = 'PQ001', hint = 'Leave it NULL for the queue default.';
    end if;
    if enqueue.args is null or jsonb_typeof(enqueue.args) not in ('object', 'array') then
        raise exception 'args must be a JSON object of named arguments, or an array of positional ones'
            using errcode = 'PQ001', hint = 'For a task without arguments leave args out.';
    end if;
    if jsonb_typeof(enqueue.meta) <> 'object' then
        raise exception 'meta must be a JSON object, not %', jsonb_typeof(enqueue.meta)
            using errcode = 'PQ001', hint = 'Leave it NULL for a job without.';
    end if;
    foreach value in array array[enqueue.args, enqueue.meta] loop
        field := case when field is null then 'args' else 'meta' end;
        continue when value is null;
        if pg_column_size(value) < 1000 then
            size := octet_length(value::text);
        else
            begin -- a savepoint, which costs small ones too much
                size := octet_length(value::text);
            exception when program_limit_exceeded then -- 90 KB of 1e131071 make more than a text can hold
                size := 2147483647;
            end;
        end if;
        if size > 262144 then
            raise exception '%: % bytes as text, more than 262144', field,
                case when size = 2147483647 then 'over 1000000000' else size::text end
                using errcode = 'PQ001', hint = 'Store the data elsewhere and pass a reference to it.';
        end if;
        if size > 200 and jsonb_path_exists(value, '$.**{101}') then
            raise exception '%: nested more than 100 deep', field
                using errcode = 'PQ001', hint = 'Store the data elsewhere and pass a reference to it.';
        end if;
        if size > 4000 and jsonb_path_exists(
            value, '$.** ? (@.type() == "number" && (@ >= 1e4000 || @ <= -1e4000))'
        ) then
            raise exception '%: a number of more than 4,000 digits', field
                using errcode = 'PQ001', hint = 'Pass it as text: Python reads no longer ones.';
        end if;
    end loop;
    if cardinality(enqueue.tags) > 32 or array_ndims(enqueue.tags) > 1 or exists (
        select from unnest(enqueue.tags) as tag where tag is null or length(tag) > 512 or tag ~ '^\s*$'
    ) then
        raise exception 'tags must be up to 32 texts of 1 to 512 characters, not only spaces'
            using errcode = 'PQ001', hint = 'Leave them NULL for a job without any.';
    end if;
    if enqueue.priority not between -100 and 100 then
        raise exception 'priority must be between -100 and 100, not %', enqueue.priority
            using errcode = 'PQ001', hint = 'Leave it NULL for 0; higher ones go first.';
    end if;
    if enqueue.max_attempts < 1 then
        raise exception 'max_attempts must be at least 1, not %', enqueue.max_attempts
            using errcode = 'PQ001', hint = 'Leave it NULL for 4; 1 is never to try again.';
    end if;
    if not isfinite(enqueue.run_at) or enqueue.run_at not between statement_timestamp() - interval '100 years'
        and statement_timestamp() + interval '10 years' then
        raise exception 'run_at must lie within the next ten years'
            using errcode = 'PQ001', hint = 'Leave it NULL for now.';
    end if;
    if enqueue.expires_at <= due then
        raise exception 'expires_at must be later than run_at, and than now'
            using errcode = 'PQ001', hint = 'Leave it NULL for a job that may start at any time.';
    end if;
    if not (enqueue.timeout > 0 and enqueue.timeout < 'Infinity'::double precision) then
        raise exception 'timeout must be a positive number of seconds'
            using errcode = 'PQ001', hint = 'Leave it NULL for that of the task.';
    end if;
    if enqueue.unique_key is not null and (length(enqueue.unique_key) > 512 or enqueue.unique_key ~ '^\s*$') then
        raise exception 'unique_key must be 1 to 512 characters, not only spaces'
            using errcode = 'PQ001', hint = 'Leave it NULL for a job without one.';
    end if;
    if enqueue.unique is not null then
        if named is not null then
            raise exception 'unique and unique_key are both given'
                using errcode = 'PQ001', hint = 'Pass unique for a key made of arguments, or unique_key.';
        end if;
        if cardinality(enqueue.unique) not between 1 and 32 or array_ndims(enqueue.unique) > 1
            or array_position(enqueue.unique, null) is not null then
            raise exception 'unique must be 1 to 32 names of arguments'
                using errcode = 'PQ001', hint = 'For all arguments pass ''{*}''.';
        end if;
        if jsonb_typeof(enqueue.args) <> 'object' then -- an array's names only the task knows
            raise exception 'unique goes by the names of arguments, so args must be a JSON object of named ones'
                using errcode = 'PQ001', hint = 'Pass unique_key for a key of your own.';
        end if;
        named := enqueue.task || '#' || left(encode(sha256(convert_to(case
            when enqueue.unique = '{*}' then enqueue.args
            else (
                select coalesce(jsonb_object_agg(name, enqueue.args -> name), '{}')
                from unnest(enqueue.unique) as name
                where enqueue.args ? name
            )
        end::text, 'UTF8')), 'hex'), 32);
    end if;
    if until not in ('finished', 'claimed') then
        raise exception 'unique_until must be finished or claimed, not %', left(until, 40)
            using errcode = 'PQ001', hint = 'Leave it NULL for finished.';
    end if;
    if not (enqueue.unique_for >= 0.001 and enqueue.unique_for <= 316224000) then
        raise exception 'unique_for must be between 0.001 and 316224000 seconds'
            using errcode = 'PQ001', hint = 'Leave it NULL for a key that is held until the job has ended.';
    end if;
    if enqueue.unique_for is not null and until <> 'finished' then
        raise exception 'unique_for and unique_until are both given'
            using errcode = 'PQ001', hint = 'Pass unique_for for a period from now, or unique_until.';
    end if;
    if conflict not in ('keep', 'replace', 'replace_args', 'replace_run_at', 'debounce', 'raise') then
        raise exception 'on_conflict must be keep, replace, replace_args, replace_run_at, debounce or raise, not %',
            left(conflict, 40)
            using errcode = 'PQ001', hint = 'Leave it NULL for keep.';
    end if;
    if not (enqueue.debounce_for >= 0.001 and enqueue.debounce_for <= 316224000) then
        raise exception 'debounce_for must be between 0.001 and 316224000 seconds'
            using errcode = 'PQ001', hint = 'Leave it NULL for a job that may be debounced for ever.';
    end if;
    if enqueue.debounce_for is not null and conflict <> 'debounce' then
        raise exception 'debounce_for goes with on_conflict => ''debounce'' alone'
            using errcode = 'PQ001', hint = 'Leave it NULL.';
    end if;
    if named is null and (enqueue.unique_for is not null or until <> 'finished' or conflict <> 'keep') then
        raise exception '% needs a key', case
                when enqueue.unique_for is not null then 'unique_for'
                when until <> 'finished' then 'unique_until'
                else 'on_conflict'
            end
            using errcode = 'PQ001', hint = 'Pass unique => ''{*}'', unique => names of arguments, or unique_key.';
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
    if enqueue.unique_for is not null and not (
        has_any_column_privilege({regclass:unique_periods}, 'SELECT')
        and has_any_column_privilege({regclass:unique_periods}, 'INSERT')
        and has_any_column_privilege({regclass:unique_periods}, 'UPDATE')
    ) then
        raise exception 'permission denied for table unique_periods: role % may not enqueue for a period', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, INSERT, UPDATE ON %s TO %I', {regclass:unique_periods}, current_user);
    end if;
    if conflict like 'replace%' or conflict = 'debounce' then
        if not has_any_column_privilege({regclass:jobs}, 'UPDATE') then
            raise exception 'permission denied for table jobs: role % may not replace', current_user
                using errcode = 'insufficient_privilege',
                hint = format('GRANT UPDATE (args, run_at, expires_at) ON %s TO %I', {regclass:jobs}, current_user);
        end if;
    end if;
    loop
        job_id := null;
        held_state := null;
        if enqueue.unique_for is not null then
            -- Asked first: an insert that meets the key would lock it until the caller commits.
            select held.job_id, coalesce(job.state, 'gone') into job_id, held_state
            from {schema}.unique_periods as held
            left join {schema}.jobs as job on job.id = held.job_id
            where held.key = named and held.ends_at > statement_timestamp();
            if not found then
                insert into {schema}.unique_periods as held (key, job_id, task, queue, ends_at)
                values (
                    named, nextval(pg_get_serial_sequence({regclass:jobs}::text, 'id')::regclass), enqueue.task, lane,
                    statement_timestamp() + enqueue.unique_for * interval '1 second'
                )
                on conflict on constraint unique_periods_pkey do update
                set job_id = excluded.job_id, task = excluded.task, queue = excluded.queue,
                    created_at = excluded.created_at, ends_at = excluded.ends_at
                where held.ends_at <= statement_timestamp()
                returning held.job_id into job_id;
                continue when not found;
                insert into {schema}.jobs
                    (id, task, args, queue, priority, run_at, max_attempts, expires_at, timeout, tags, meta)
                values (
                    job_id, enqueue.task, enqueue.args, lane, coalesce(enqueue.priority, 0), due,
                    coalesce(enqueue.max_attempts, 4), enqueue.expires_at, enqueue.timeout, enqueue.tags, enqueue.meta
                );
                exit;
            end if;
        elsif until = 'claimed' then
            insert into {schema}.jobs as job
                (task, args, queue, priority, run_at, max_attempts, queued_key, expires_at, timeout, tags, meta)
            values (
                enqueue.task, enqueue.args, lane, coalesce(enqueue.priority, 0), due, coalesce(enqueue.max_attempts, 4),
                named, enqueue.expires_at, enqueue.timeout, enqueue.tags, enqueue.meta
            )
            on conflict (queued_key) where queued_key is not null and fence = 0 do nothing
            returning job.id into job_id;
            exit when found;
            select job.id, job.state into job_id, held_state
            from {schema}.jobs as job
            where job.queued_key = named and job.fence = 0;
        else
            insert into {schema}.jobs as job
                (task, args, queue, priority, run_at, max_attempts, unique_key, expires_at, timeout, tags, meta)
            values (
                enqueue.task, enqueue.args, lane, coalesce(enqueue.priority, 0), due, coalesce(enqueue.max_attempts, 4),
                named, enqueue.expires_at, enqueue.timeout, enqueue.tags, enqueue.meta
            )
            on conflict (unique_key) where unique_key is not null do nothing
            returning job.id into job_id;
            exit when found;
            select job.id, job.state into job_id, held_state from {schema}.jobs as job where job.unique_key = named;
        end if;
        continue when held_state is null;
        if conflict = 'raise' then
            raise exception 'job % holds the unique key', job_id
                using errcode = 'PQ002', hint = 'Wait for it to let go of it, cancel it, or pass another on_conflict.';
        end if;
        if conflict = 'keep' or held_state <> 'queued' then
            return job_id;
        end if;
        begin -- a savepoint: of one that is claimed at this instant the row is locked, and its settle would wait for us
            select job.queue, job.run_at, job.created_at into held_job
            from {schema}.jobs as job
            where job.id = job_id
                and case job.state when 'queued' then job.queued_key is null or job.fence = 0 else false end
            for update;
            if not found then
                raise exception using errcode = 'PQ000';
            end if;
        exception when sqlstate 'PQ000' then
            continue;
        end;
        lane := held_job.queue;
        due := case conflict
            when 'replace_args' then held_job.run_at
            when 'debounce' then greatest(
                held_job.run_at, least(due, held_job.created_at + enqueue.debounce_for * interval '1 second')
            )
            else due
        end;
        update {schema}.jobs as job
        set args = case conflict when 'replace_run_at' then job.args else enqueue.args end,
            run_at = due, expires_at = job.expires_at + (due - job.run_at)
        where job.id = job_id; -- locked above
        exit;
    end loop;
    if enqueue.wake is false then
        return job_id;
    end if;
    perform pg_notify('pgqueue_' || replace(sleeper.worker_id::text, '-', ''), '')
    from (
        select s.worker_id
        from {schema}.sleepers as s
        where s.queue in (lane, '*') and s.until > statement_timestamp() and s.until > due
            and not (
                due <= statement_timestamp()
                and exists (
                    select from {schema}.sleepers as lookout
                    where lookout.queue in ('+' || lane, '+*') and lookout.until > statement_timestamp()
                )
            )
        limit 1
    ) as sleeper;
    return job_id;
end
$$
