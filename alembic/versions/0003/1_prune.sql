-- prune(ahead, retention): makes the day partitions of finished_jobs up to `ahead` days from today (UTC), empties those
-- whose last moment is older than `retention` seconds and than the longest keep_for of a task, and drops at most one that
-- has been out of use for a week.
-- CREATE … LIKE and ATTACH disturb nobody (CREATE … PARTITION OF would wait for every reader of the parent); TRUNCATE
-- locks the old leaf alone; DROP locks the parent, so it comes last, rarely, on an empty leaf. Whatever cannot be had
-- within lock_timeout is left to the next call.
create function {schema}.prune(
    ahead integer, retention double precision, out made integer, out emptied integer, out dropped integer
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
set timezone = 'UTC'
as $$
declare
    home constant text := {schema_literal};
    today constant date := statement_timestamp()::date;
    cutoff date;
    leaf record;
    filled boolean;
    name text;
begin
    if not prune.retention >= 0 or prune.retention = 'NaN' or prune.ahead is null then
        raise exception 'retention must be a number of seconds, not below 0' using errcode = 'PQ001';
    end if;
    made := 0;
    emptied := 0;
    dropped := 0;
    select (statement_timestamp() - greatest(prune.retention, max(own.keep_for)) * interval '1 second')::date
    into cutoff
    from {schema}.retention as own;
    for day in 0 .. least(prune.ahead, 366) loop
        name := 'finished_jobs_' || to_char(today + day, 'YYYYMMDD');
        continue when to_regclass(format('%I.%I', home, name)) is not null;
        begin
            execute format('create table %I.%I (like %I.finished_jobs including all)', home, name, home);
            execute format(
                'alter table %I.finished_jobs attach partition %I.%I for values from (%L) to (%L)',
                home, home, name, (today + day)::timestamptz, (today + day + 1)::timestamptz
            );
            made := made + 1;
        exception
            when lock_not_available or duplicate_table or unique_violation or duplicate_object then null;
        end;
    end loop;
    for leaf in
        select class.relname, to_date(right(class.relname, 8), 'YYYYMMDD') as day
        from pg_inherits
        join pg_class as class on class.oid = pg_inherits.inhrelid
        where pg_inherits.inhparent = format('%I.finished_jobs', home)::regclass
            and class.relname ~ '^finished_jobs_[0-9]{8}$'
            and to_date(right(class.relname, 8), 'YYYYMMDD') < cutoff
        order by class.relname
    loop
        begin
            execute format('select exists (select from %I.%I)', home, leaf.relname) into filled;
            if filled then
                execute format('truncate %I.%I', home, leaf.relname);
                emptied := emptied + 1;
            elsif leaf.day < today - 7 and leaf.day < cutoff and dropped = 0 then
                execute format('drop table %I.%I', home, leaf.relname);
                dropped := dropped + 1;
            end if;
        exception
            when lock_not_available then null;
        end;
    end loop;
end
$$
