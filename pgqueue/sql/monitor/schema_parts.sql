-- schema_parts: what a schema is made of, in the server's own words, to be compared with what is declared.
-- In: home text (its name; pg_temp: the session's own). Out: kind, parent, name, aspect, value; a row for each aspect of each part. Of the partitions
-- of finished_jobs only whether today's is there. Texts leave a schema out that is first in the search_path.
-- Caller: db.schema_parts
with home as (
    select pg_namespace.oid from pg_catalog.pg_namespace where nspname = %(home)s
        or %(home)s = 'pg_temp' and pg_namespace.oid = pg_my_temp_schema()
),
relations as (
    select class.*
    from pg_catalog.pg_class as class
    join home on home.oid = class.relnamespace
    where class.relkind in ('r', 'p', 'v', 'm', 'f') and not class.relispartition
        and class.relname <> 'alembic_version'
),
plain as (
    select relations.oid, relname from relations where relkind in ('r', 'p')
),
functions as (
    select proc.*, format('%%s(%%s)', proname, oidvectortypes(proargtypes)) as signature
    from pg_catalog.pg_proc as proc
    join home on home.oid = proc.pronamespace
)
select case when relkind in ('r', 'p') then 'table' else 'view' end, '', relname::text, aspect, value
from relations
cross join lateral (values
    ('kind', case relkind
        when 'r' then 'a table' when 'p' then 'partitioned' when 'v' then 'a view'
        when 'm' then 'a materialized view' else 'a foreign table' end),
    ('persistence', case when relkind in ('r', 'p') then
        case relpersistence when 'u' then 'unlogged' when 'p' then 'logged' else 'temporary' end end),
    ('partitioned by', pg_get_partkeydef(relations.oid)),
    ('storage parameters', (select string_agg(one, ', ' order by one) from unnest(reloptions) as one)),
    ('row security', case when relrowsecurity then 'on' end),
    ('text', case when relkind in ('v', 'm') then pg_get_viewdef(relations.oid) end)
) as aspects (aspect, value)
union all
select 'column', relname, attname, aspect, value
from plain
join pg_catalog.pg_attribute on attrelid = plain.oid and attnum > 0 and not attisdropped
left join pg_catalog.pg_attrdef on adrelid = attrelid and adnum = attnum
cross join lateral (values
    ('type', format_type(atttypid, atttypmod)),
    ('nullability', case when attnotnull then 'not null' else 'nullable' end),
    ('default', pg_get_expr(adbin, adrelid)),
    ('identity', nullif(attidentity::text, '')),
    ('generated', nullif(attgenerated::text, '')),
    ('comment', col_description(attrelid, attnum))
) as aspects (aspect, value)
union all
select 'constraint', relname, conname, aspect, value
from plain
join pg_catalog.pg_constraint on conrelid = plain.oid and contype not in ('n', 't')
cross join lateral (values
    ('definition', pg_get_constraintdef(pg_constraint.oid, true)),
    ('validity', case when convalidated then 'valid' else 'not valid' end)
) as aspects (aspect, value)
union all
select 'index', plain.relname, indexes.relname, aspect, value
from plain
join pg_catalog.pg_index on indrelid = plain.oid
join pg_catalog.pg_class as indexes on indexes.oid = indexrelid
cross join lateral (values
    ('definition', pg_get_indexdef(indexrelid, 0, true)),
    ('validity', case when indisvalid and indisready then 'valid' else 'not valid: drop it and make it anew' end),
    ('unique', case when indisunique then 'yes' else 'no' end)
) as aspects (aspect, value)
where not exists (
    select from pg_catalog.pg_constraint
    where conrelid = plain.oid and conindid = indexrelid and contype in ('p', 'u', 'x')
)
union all
select 'trigger', relname, tgname, 'definition', pg_get_triggerdef(pg_trigger.oid, true)
from plain
join pg_catalog.pg_trigger on tgrelid = plain.oid and not tgisinternal
union all
select 'function', '', signature, aspect, value
from functions
cross join lateral (values
    ('arguments', pg_get_function_arguments(functions.oid)),
    ('result', pg_get_function_result(functions.oid)),
    ('language', (select lanname::text from pg_catalog.pg_language where pg_language.oid = prolang)),
    ('security', case when prosecdef then 'definer' else 'invoker' end),
    ('volatility', provolatile::text),
    ('settings', proconfig::text),
    ('text', prosrc),
    ('callers', case when has_function_privilege('public', functions.oid, 'execute')
        then 'everybody' else 'whom the owner names' end)
) as aspects (aspect, value)
union all
select 'partition', 'finished_jobs', leaf.relname, 'bounds', 'one day'
from plain
join pg_catalog.pg_inherits on inhparent = plain.oid
join pg_catalog.pg_class as leaf on leaf.oid = inhrelid
where plain.relname = 'finished_jobs'
    and leaf.relname = 'finished_jobs_' || to_char(statement_timestamp() at time zone 'UTC', 'YYYYMMDD')
union all
select 'today', '', to_char(statement_timestamp() at time zone 'UTC', 'YYYYMMDD'), '', ''
