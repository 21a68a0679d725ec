-- enqueue(...): the public way to enqueue from SQL, in the caller's own transaction. Null options mean the general
-- defaults: a task's own are known to Python only. An array in args is positional, an object named arguments.
-- With a unique_key that a live job holds, the id of that job comes back. wake false: no NOTIFY, with which a transaction
-- cannot be prepared. Raises PQ001: a value that cannot be a job's; PQ003: the transaction cannot write.
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
    wake boolean default null
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
    loop
        insert into {schema}.jobs as job
            (task, args, queue, priority, run_at, max_attempts, unique_key, expires_at, timeout, tags, meta)
        values (
            enqueue.task, enqueue.args, lane, coalesce(enqueue.priority, 0), due, coalesce(enqueue.max_attempts, 4),
            enqueue.unique_key, enqueue.expires_at, enqueue.timeout, enqueue.tags, enqueue.meta
        )
        on conflict (unique_key) where unique_key is not null do nothing
        returning job.id into job_id;
        exit when found;
        select job.id into job_id from {schema}.jobs as job where job.unique_key = enqueue.unique_key;
        if found then
            return job_id;
        end if;
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
