-- health: what the database under the queue is like; a row a measure, those that need somebody first. level: critical,
-- warning, note (worth knowing, nothing is wrong) or ok. fix: the statement that mends it, null where none does.
-- A bound is a setting of the session, role or database where one is set: SET pgqueue.longest_transaction = '1 min'.
-- Reads only. What belongs to other roles' sessions is seen by members of pg_read_all_stats; the others are told so.
create view {schema}.health as
with bound as (
    select
        coalesce(nullif(current_setting('pgqueue.longest_transaction', true), ''), '5 min')::interval as transaction,
        coalesce(nullif(current_setting('pgqueue.longest_pause', true), ''), '1 day')::interval as pause,
        coalesce(nullif(current_setting('pgqueue.dead_rows', true), ''), '100000')::double precision as dead_rows,
        coalesce(nullif(current_setting('pgqueue.index_bytes', true), ''), '67108864')::double precision as index_bytes,
        coalesce(nullif(current_setting('pgqueue.notify_queue', true), ''), '0.1')::double precision as notify_queue,
        coalesce(nullif(current_setting('pgqueue.xid_age', true), ''), '500000000')::double precision as xid_age,
        coalesce(nullif(current_setting('pgqueue.standby_xids', true), ''), '10000000')::double precision as standby_xids,
        coalesce(nullif(current_setting('pgqueue.connections', true), ''), '0.8')::double precision as connections
),
tables as (
    select class.oid, class.relname::text as name, class.reloptions,
        coalesce(stat.n_live_tup, 0) as live, coalesce(stat.n_dead_tup, 0) as dead,
        greatest(stat.last_vacuum, stat.last_autovacuum) as vacuumed
    from pg_class as class
    left join pg_stat_all_tables as stat on stat.relid = class.oid
    where class.oid in ({regclass:jobs}, {regclass:job_errors}, {regclass:workers}, {regclass:sleepers})
),
sessions as (
    select pid, usename::text as username, nullif(application_name, '') as application, state,
        statement_timestamp() - xact_start as open_for,
        case when query <> '<insufficient privilege>' then left(regexp_replace(query, '\s+', ' ', 'g'), 60) end as query
    from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
        and (backend_xmin is not null or backend_xid is not null)
),
live as (
    select * from {schema}.workers where expires_at > statement_timestamp()
),
due as (
    select queue, task, count(*) as jobs, min(run_at) as oldest
    from {schema}.jobs
    where state = 'queued' and run_at <= statement_timestamp()
    group by queue, task
),
hurt (name, level, why) as (
    values
        ('autovacuum', 'critical', 'dead rows stay, and every claim gets slower'),
        ('track_counts', 'critical', 'autovacuum does not know what is dead'),
        ('fsync', 'critical', 'a crash of the machine may destroy the database'),
        ('full_page_writes', 'critical', 'a crash of the machine may destroy the database'),
        ('synchronous_commit', 'warning', 'a crash may lose the last jobs that were enqueued, and run the last that ended again')
),
findings (finding, level, value, unit, detail, fix) as (
    -- who keeps vacuum from removing what is dead
    select * from (
        select 'oldest_transaction', case when open_for > 12 * bound.transaction then 'critical' else 'warning' end,
            extract(epoch from open_for)::double precision, 'seconds', format(
                'session %s (%s%s, %s) has had a transaction open for %s: until it ends, vacuum removes nothing that died since%s',
                pid, username, coalesce(', ' || application, ''), state, date_trunc('second', open_for), coalesce('; ' || query, '')
            ), format('SELECT pg_terminate_backend(%s)', pid)
        from sessions, bound
        where open_for > bound.transaction
        order by open_for desc
        limit 5
    ) as held
    union all
    select 'oldest_transaction', 'ok', coalesce(extract(epoch from max(open_for)), 0)::double precision, 'seconds',
        'the oldest transaction of this database', null
    from sessions, bound
    having coalesce(max(open_for) <= max(bound.transaction), true)
    union all
    select 'prepared_transaction',
        case when statement_timestamp() - prepared > bound.transaction then 'warning' else 'ok' end,
        extract(epoch from statement_timestamp() - prepared)::double precision, 'seconds', format(
            'transaction %s of %s was prepared %s ago and neither committed nor rolled back: vacuum removes nothing that died since',
            quote_literal(gid), owner, date_trunc('second', statement_timestamp() - prepared)
        ), format('ROLLBACK PREPARED %s', quote_literal(gid))
    from pg_prepared_xacts, bound
    where database = current_database()
    union all
    select 'replication_slot', case when not active or age(xmin) > bound.standby_xids then 'warning' else 'ok' end,
        coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end,
            restart_lsn), 0)::double precision, 'bytes',
        format('slot %s %s %s of WAL%s', slot_name, case when active then 'holds' else 'is used by nobody and holds' end,
            pg_size_pretty(coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                else pg_current_wal_lsn() end, restart_lsn), 0)),
            case when xmin is not null then format(', and what died in the last %s transactions', age(xmin)) else '' end),
        case when not active then format('SELECT pg_drop_replication_slot(%s)', quote_literal(slot_name)) end
    from pg_replication_slots, bound
    union all
    select 'standby', case when age(backend_xmin) > bound.standby_xids then 'warning' else 'ok' end, age(backend_xmin),
        'transactions',
        format('standby %s (%s) holds what died in the last %s transactions (hot_standby_feedback)',
            nullif(application_name, ''), client_addr, age(backend_xmin)), null
    from pg_stat_replication, bound
    where backend_xmin is not null
    -- the hot tables
    union all
    select 'dead_rows',
        case when dead > 10 * bound.dead_rows and dead > live then 'critical'
            when dead > bound.dead_rows and dead > live then 'warning' else 'ok' end,
        dead, 'rows', format('table %s: %s rows live, %s dead, %s; %s', name, live, dead,
            pg_size_pretty(pg_total_relation_size(oid)),
            coalesce('vacuumed ' || date_trunc('second', statement_timestamp() - vacuumed) || ' ago', 'never vacuumed')),
        case when dead > bound.dead_rows and dead > live then format('VACUUM %I.%I', {schema_literal}, name) end
    from tables, bound
    union all
    select 'index_bloat', case when size > greatest(bound.index_bytes, 640.0 * tables.live) then 'warning' else 'ok' end,
        size, 'bytes', format('index %s: %s for %s rows', index.relname, pg_size_pretty(size), tables.live),
        case when size > greatest(bound.index_bytes, 640.0 * tables.live)
            then format('REINDEX INDEX CONCURRENTLY %I.%I', {schema_literal}, index.relname) end
    from tables
    join pg_index on pg_index.indrelid = tables.oid
    join pg_class as index on index.oid = pg_index.indexrelid
    cross join lateral (values (pg_relation_size(index.oid))) as sized (size)
    cross join bound
    where tables.name in ('jobs', 'job_errors')
    union all
    select 'table_size', 'ok', sum(pg_total_relation_size(part.oid)), 'bytes', format('table %s: %s with its indexes%s', tables.name,
        pg_size_pretty(sum(pg_total_relation_size(part.oid))),
        case when tables.kind = 'p' then format(', in %s partitions', count(*)) else '' end), null
    from (
        select oid, relname::text as name, relkind as kind
        from pg_class
        where oid in ({regclass:jobs}, {regclass:finished_jobs}, {regclass:dead_jobs}, {regclass:job_errors})
    ) as tables
    cross join lateral (
        select tables.oid where tables.kind <> 'p'
        union all
        select inhrelid from pg_inherits where inhparent = tables.oid
    ) as part (oid)
    group by tables.name, tables.kind
    union all
    select 'autovacuum', case when reason is null then 'ok' else 'critical' end, null, null,
        coalesce(reason, 'autovacuum works on table ' || name), fix
    from tables
    cross join lateral (values (
        case when array_to_string(reloptions, ' ') ~* 'autovacuum_enabled=(false|off|no|0)'
            then format('autovacuum is off for table %s', name) end,
        case when array_to_string(reloptions, ' ') ~* 'autovacuum_enabled=(false|off|no|0)'
            then format('ALTER TABLE %I.%I RESET (autovacuum_enabled)', {schema_literal}, name) end
    )) as told (reason, fix)
    union all
    select 'partition', case when made = 0 then 'critical' when made < 3 then 'warning' else 'ok' end, made, 'days',
        case made when 0 then 'finished_jobs has no partition for tomorrow: no job can end then'
            else format('finished_jobs has partitions for the next %s days', made) end,
        case when made < 3 then format('SELECT %I.prune(7, 86400)', {schema_literal}) end
    from (
        select count(*) as made
        from pg_inherits
        join pg_class as leaf on leaf.oid = inhrelid
        where inhparent = {regclass:finished_jobs} and leaf.relname ~ '^finished_jobs_[0-9]{8}$'
            and right(leaf.relname, 8) > to_char(statement_timestamp() at time zone 'UTC', 'YYYYMMDD')
    ) as ahead
    -- the server
    union all
    select 'notify_queue', case when used > 5 * bound.notify_queue then 'critical' when used > bound.notify_queue
            then 'warning' else 'ok' end,
        used, 'fraction', format('the queue of NOTIFY is %s %% full%s', round((100 * used)::numeric, 4),
            case when used > bound.notify_queue
                then ': a session that listens sits in an old transaction, and once it is full every NOTIFY fails' else '' end),
        case when used > bound.notify_queue then (
            select format('SELECT pg_terminate_backend(%s)', pid)
            from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
                and xact_start is not null
            order by xact_start
            limit 1
        ) end
    from bound, pg_notification_queue_usage() as used
    union all
    select 'xid_age', case when frozen > 2 * bound.xid_age then 'critical' when frozen > bound.xid_age then 'warning'
            else 'ok' end,
        frozen, 'transactions', format('transactions since the oldest unfrozen one of this database: %s of 2147000000', frozen),
        case when frozen > bound.xid_age then 'VACUUM (FREEZE)' end
    from bound, (select age(datfrozenxid) as frozen from pg_database where datname = current_database()) as database
    union all
    select 'connections', case when used > 1 - (1 - bound.connections) / 4 then 'critical'
            when used > bound.connections then 'warning' else 'ok' end,
        used, 'fraction', format('%s of %s connections are in use', taken, most),
        case when used > bound.connections then format('ALTER SYSTEM SET max_connections = %s', 2 * most) end
    from bound
    cross join lateral (
        select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true)::int, 0) as most
    ) as allowed
    cross join lateral ( -- not of pg_stat_activity, in which a role without pg_read_all_stats sees its own alone
        select sum(numbackends) as taken, sum(numbackends) / most::double precision as used from pg_stat_database
    ) as taken
    union all
    select 'setting', hurt.level, null, null, format('%s is %s%s: %s', hurt.name, setting.setting,
        case setting.source when 'command line' then ' on the command line of the server' else '' end, hurt.why),
        case setting.source
            when 'command line' then null -- which counts before whatever a statement could set
            when 'client' then format('SET %s = on', hurt.name)
            when 'database' then format('ALTER DATABASE %I RESET %s', current_database(), hurt.name)
            when 'user' then format('ALTER ROLE %I RESET %s', session_user, hurt.name)
            when 'database user' then format(
                'ALTER ROLE %I IN DATABASE %I RESET %s', session_user, current_database(), hurt.name
            )
            when 'session' then format('RESET %s', hurt.name)
            else format('ALTER SYSTEM SET %s = on', hurt.name) end
    from hurt
    join pg_settings as setting on setting.name = hurt.name and setting.setting = 'off'
    union all
    -- A statement of its own: ALTER SYSTEM refuses to be one of several.
    select 'setting_reload', 'note', null, null,
        format('what ALTER SYSTEM sets counts once the server has read it: after %s', string_agg(setting.name, ', ' order by setting.name)),
        'SELECT pg_reload_conf()'
    from hurt
    join pg_settings as setting on setting.name = hurt.name and setting.setting = 'off'
    where setting.source in ('default', 'configuration file')
    having count(*) > 0
    union all
    select 'sight', 'note', null, null,
        format('role %s sees no sessions of other roles: the oldest transaction may be another', current_user),
        format('GRANT pg_read_all_stats TO %I', current_user)
    where not pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
    -- the workers, and what waits for them
    union all
    select 'worker_silent', case when expires_at <= statement_timestamp() then 'critical' else 'warning' end,
        extract(epoch from statement_timestamp() - heartbeat_at)::double precision, 'seconds', format(
            'worker %s:%s has not renewed for %s, its lease %s %s', host, pid,
            date_trunc('second', statement_timestamp() - heartbeat_at),
            case when expires_at <= statement_timestamp() then 'ended at' else 'ends at' end,
            to_char(expires_at at time zone 'UTC', 'HH24:MI:SS "UTC"')
        ), null
    from {schema}.workers
    where statement_timestamp() - heartbeat_at > (expires_at - heartbeat_at) * 2 / 3
    union all
    select 'workers', case when count(live.id) = 0 and max(waiting.jobs) > 0 then 'critical' else 'ok' end, count(live.id),
        'workers', case when count(live.id) = 0 and max(waiting.jobs) > 0
            then format('no worker is alive, and %s jobs are due', max(waiting.jobs))
            else format('%s workers are alive', count(live.id)) end, null
    from (select coalesce(sum(jobs), 0) as jobs from due) as waiting
    left join live on true
    union all
    select 'versions', 'warning', count(distinct version), 'versions',
        format('live workers run pgqueue %s', string_agg(distinct version, ', ')), null
    from live
    having count(distinct version) > 1
    union all
    select * from (
        select 'unserved_queue', 'warning', sum(jobs)::double precision, 'jobs', format(
            'queue %s: %s jobs are due, for %s, and no live worker serves it', queue, sum(jobs),
            date_trunc('second', statement_timestamp() - min(oldest))
        ), null
        from due
        where exists (select from live)
            and not exists (select from live where live.queues is null or due.queue = any(live.queues))
        group by queue
        order by sum(jobs) desc
        limit 5
    ) as unserved
    union all
    select * from (
        select 'unknown_task', 'warning', sum(jobs)::double precision, 'jobs', format(
            'task %s: %s jobs are due, for %s, and no live worker knows it', task, sum(jobs),
            date_trunc('second', statement_timestamp() - min(oldest))
        ), null
        from due
        where exists (select from live) and not exists (select from live where due.task = any(live.tasks))
        group by task
        order by sum(jobs) desc
        limit 5
    ) as unknown
    union all
    select 'lost_jobs', 'critical', count(*), 'jobs',
        format('%s jobs are running on workers that are gone, and no sweep has given them back', count(*)), null
    from {schema}.jobs as job
    left join {schema}.workers as worker on worker.id = job.worker_id
    where job.state = 'running'
        and coalesce(worker.expires_at, job.started_at) < statement_timestamp() - interval '1 min'
    having count(*) > 0
    union all
    select 'paused_queue', 'warning', extract(epoch from statement_timestamp() - paused_at)::double precision, 'seconds',
        format('queue %s has been paused%s%s, and %s jobs are due', name, coalesce(' by ' || paused_by, ''),
            coalesce(' for ' || date_trunc('second', statement_timestamp() - paused_at), ''), waiting.jobs),
        format('SELECT %I.resume(%L)', {schema_literal}, name)
    from {schema}.queues as queue
    join (select queue, sum(jobs) as jobs from due group by queue) as waiting on waiting.queue = queue.name
    cross join bound
    where queue.paused and (queue.paused_until is null or queue.paused_until > statement_timestamp())
        and coalesce(statement_timestamp() - queue.paused_at > bound.pause, true)
    union all
    select 'paused_task', 'warning', extract(epoch from statement_timestamp() - paused_at)::double precision, 'seconds',
        format('task %s has been paused%s for %s, and %s jobs are due', paused.task, coalesce(' by ' || paused_by, ''),
            date_trunc('second', statement_timestamp() - paused_at), waiting.jobs),
        format('SELECT %I.resume_task(%L)', {schema_literal}, paused.task)
    from {schema}.paused_tasks as paused
    join (select task, sum(jobs) as jobs from due group by task) as waiting on waiting.task = paused.task
    cross join bound
    where (paused.paused_until is null or paused.paused_until > statement_timestamp())
        and statement_timestamp() - paused.paused_at > bound.pause
    -- what is to be enqueued at its time
    union all
    select 'schedule', 'warning', extract(epoch from statement_timestamp() - next_tick)::double precision, 'seconds',
        case status
            when 'orphaned' then format('schedule %s was declared in code, and is no more: it fires no more', name)
            when 'invalid' then format('schedule %s cannot be fired: %s', name, problem)
            when 'unattended' then format('schedule %s: no live worker knows its task %s, so nobody fires it', name, task)
            else format('schedule %s is late: its tick of %s has not been fired for %s', name,
                to_char(next_tick at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'),
                date_trunc('second', statement_timestamp() - next_tick))
        end,
        case status when 'orphaned' then format('SELECT %I.remove_schedule(%L)', {schema_literal}, name) end
    from {schema}.schedule_stats
    where status in ('orphaned', 'invalid', 'unattended')
        or status = 'active' and next_tick < statement_timestamp() - interval '1 min'
)
select finding, level, value::double precision as value, unit, detail, fix
from findings
order by case level when 'critical' then 0 when 'warning' then 1 when 'note' then 2 else 3 end, finding, value desc
