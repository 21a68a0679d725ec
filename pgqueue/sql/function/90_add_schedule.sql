-- add_schedule(...): adds a schedule from SQL, or changes the one of that name that was added before. Workers work out its
-- ticks, within their sweep interval. Whether a cron expression can be read they know better: of one that cannot, problem
-- in schedule_stats says why. Raises PQ001: a value that cannot be a schedule's; PQ004: code declares the name.
create function {schema}.add_schedule(
    name text,
    task text,
    cron text default null,
    every interval default null,
    timezone text default null,
    args jsonb default '{}',
    queue text default null,
    priority integer default null,
    max_attempts integer default null,
    missed text default null,
    missed_limit integer default null,
    overlap text default null,
    expires_in interval default null,
    timeout double precision default null,
    tags text[] default null,
    meta jsonb default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    seconds double precision := extract(epoch from add_schedule.every);
    expiry double precision := extract(epoch from add_schedule.expires_in);
begin
    if not has_any_column_privilege({regclass:schedules}, 'INSERT')
        or not has_any_column_privilege({regclass:schedules}, 'SELECT')
        or not has_any_column_privilege({regclass:schedules}, 'UPDATE') then
        raise exception 'permission denied for table schedules: role % may not add a schedule', current_user
            using errcode = 'insufficient_privilege',
            hint = format('GRANT SELECT, INSERT, UPDATE ON %s TO %I', {regclass:schedules}, current_user);
    end if;
    if add_schedule.name is null or add_schedule.name !~ '^[A-Za-z0-9_.:-]{1,128}$' then
        raise exception 'name must be 1 to 128 letters, digits and _ . : -'
            using errcode = 'PQ001', hint = 'It is what the schedule is paused, run and removed by.';
    end if;
    if add_schedule.task is null or add_schedule.task !~ '^[A-Za-z0-9_.:-]{1,128}$' then
        raise exception 'task must be 1 to 128 letters, digits and _ . : -'
            using errcode = 'PQ001', hint = 'Pass the name of a registered task, such as shop.send_receipt.';
    end if;
    if coalesce(add_schedule.queue, 'default') !~ '^[A-Za-z0-9_.:-]{1,128}$' then
        raise exception 'queue must be 1 to 128 letters, digits and _ . : -'
            using errcode = 'PQ001', hint = 'Leave it NULL for the queue default.';
    end if;
    if (add_schedule.cron is null) = (add_schedule.every is null) then
        raise exception 'a schedule has either cron or every'
            using errcode = 'PQ001', hint = 'Pass cron => ''0 2 * * *'', or every => interval ''1 hour''.';
    end if;
    if add_schedule.cron !~ '^[ \t]*[0-9A-Za-z*,/#-]+([ \t]+[0-9A-Za-z*,/#-]+){4}[ \t]*$' then
        raise exception 'cron must have five fields: minute, hour, day of month, month, day of week'
            using errcode = 'PQ001', hint = 'The command schedules preview says what is wrong, and shows the next ticks.';
    end if;
    if add_schedule.every is not null and not coalesce(seconds between 1 and 316224000, false) then
        raise exception 'every must be between 1 second and ten years'
            using errcode = 'PQ001', hint = 'Pass an interval such as ''15 minutes''.';
    end if;
    if add_schedule.every is not null and coalesce(add_schedule.timezone, 'UTC') <> 'UTC' then
        raise exception 'every takes no timezone: its ticks are multiples of the interval since 1970, in UTC'
            using errcode = 'PQ001', hint = 'Leave timezone NULL.';
    end if;
    if coalesce(add_schedule.timezone, 'UTC') <> 'UTC'
        and not exists (select from pg_timezone_names as zone where zone.name = add_schedule.timezone) then
        raise exception 'timezone is not known to this server'
            using errcode = 'PQ001', hint = 'Pass a name such as Europe/Paris, or leave it NULL for UTC.';
    end if;
    if add_schedule.args is null or jsonb_typeof(add_schedule.args) not in ('object', 'array')
        or octet_length(add_schedule.args::text) > 262144 then
        raise exception 'args must be a JSON object of named arguments, or an array of positional ones, up to 262144 bytes'
            using errcode = 'PQ001', hint = 'For a task without arguments leave args out.';
    end if;
    if add_schedule.priority not between -100 and 100 then
        raise exception 'priority must be between -100 and 100, not %', add_schedule.priority
            using errcode = 'PQ001', hint = 'Leave it NULL for 0; higher ones go first.';
    end if;
    if add_schedule.max_attempts < 1 then
        raise exception 'max_attempts must be at least 1, not %', add_schedule.max_attempts
            using errcode = 'PQ001', hint = 'Leave it NULL for 4; 1 is never to try again.';
    end if;
    if add_schedule.missed not in ('skip', 'latest', 'all') then
        raise exception 'missed must be skip, latest or all'
            using errcode = 'PQ001', hint = 'Leave it NULL for latest: the last missed tick is made up for.';
    end if;
    if add_schedule.missed_limit not between 1 and 1000 then
        raise exception 'missed_limit must be between 1 and 1000, not %', add_schedule.missed_limit
            using errcode = 'PQ001', hint = 'Leave it NULL for 100.';
    end if;
    if add_schedule.overlap not in ('allow', 'skip') then
        raise exception 'overlap must be allow or skip'
            using errcode = 'PQ001', hint = 'Leave it NULL for allow.';
    end if;
    if add_schedule.expires_in is not null and not coalesce(expiry between 0.001 and 316224000, false) then
        raise exception 'expires_in must be between a millisecond and ten years'
            using errcode = 'PQ001', hint = 'Leave it NULL for jobs that may start at any time after their tick.';
    end if;
    if not (add_schedule.timeout > 0 and add_schedule.timeout < 'Infinity'::double precision) then
        raise exception 'timeout must be a positive number of seconds'
            using errcode = 'PQ001', hint = 'Leave it NULL for that of the task.';
    end if;
    if cardinality(add_schedule.tags) > 32 or array_ndims(add_schedule.tags) > 1 or exists (
        select from unnest(add_schedule.tags) as tag where tag is null or length(tag) > 512 or tag ~ '^\s*$'
    ) then
        raise exception 'tags must be up to 32 texts of 1 to 512 characters, not only spaces'
            using errcode = 'PQ001', hint = 'Leave them NULL for jobs without any.';
    end if;
    if jsonb_typeof(add_schedule.meta) <> 'object' or octet_length(add_schedule.meta::text) > 262144 then
        raise exception 'meta must be a JSON object, up to 262144 bytes'
            using errcode = 'PQ001', hint = 'Leave it NULL for jobs without.';
    end if;
    insert into {schema}.schedules as schedule
        (name, task, cron, every, timezone, args, queue, priority, max_attempts, missed, missed_limit, overlap, expires_in,
        timeout, tags, meta)
    values (
        add_schedule.name, add_schedule.task, regexp_replace(btrim(lower(add_schedule.cron), E' \t'), '[ \t]+', ' ', 'g'),
        seconds, coalesce(add_schedule.timezone, 'UTC'), add_schedule.args, coalesce(add_schedule.queue, 'default'),
        coalesce(add_schedule.priority, 0), coalesce(add_schedule.max_attempts, 4),
        coalesce(add_schedule.missed, 'latest'), coalesce(add_schedule.missed_limit, 100),
        coalesce(add_schedule.overlap, 'allow'), expiry, add_schedule.timeout, add_schedule.tags, add_schedule.meta
    )
    on conflict (name) do update
    set task = excluded.task, cron = excluded.cron, every = excluded.every, timezone = excluded.timezone,
        args = excluded.args, queue = excluded.queue, priority = excluded.priority, max_attempts = excluded.max_attempts,
        expires_in = excluded.expires_in, timeout = excluded.timeout, retry = null, tags = excluded.tags,
        meta = excluded.meta, missed = excluded.missed,
        missed_limit = excluded.missed_limit, overlap = excluded.overlap, changed_at = statement_timestamp(),
        problem = null, revision = default,
        since = case
            when (schedule.cron, schedule.every, schedule.timezone)
                is not distinct from (excluded.cron, excluded.every, excluded.timezone) then schedule.since
            else statement_timestamp()
        end,
        next_tick = case
            when (schedule.cron, schedule.every, schedule.timezone)
                is not distinct from (excluded.cron, excluded.every, excluded.timezone) then schedule.next_tick
        end
    where not schedule.declared;
    if not found then
        raise exception 'schedule % is declared in code', add_schedule.name
            using errcode = 'PQ004', hint = 'Change it there, or give this one another name.';
    end if;
end
$$
