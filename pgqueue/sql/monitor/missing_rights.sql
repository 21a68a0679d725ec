-- missing_rights: which of these rights the session's role lacks. Found by their names in the catalogue, since asking for
-- a table by its name takes a right on its schema. What does not exist is nobody's to lack.
-- In: kinds, schemas, names, privileges text[]: as in rights.py. Out: position (from 1), role. Caller: db.missing_rights
select wanted.position::int, current_user::text
from unnest(%(kinds)s::text[], %(schemas)s::text[], %(names)s::text[], %(privileges)s::text[])
    with ordinality as wanted (kind, home, name, privilege, position)
left join pg_catalog.pg_namespace as space on space.nspname = wanted.home
left join pg_catalog.pg_class as class
    on wanted.kind in ('table', 'sequence') and class.relnamespace = space.oid and class.relname = wanted.name
left join pg_catalog.pg_proc as proc
    on wanted.kind = 'function' and proc.pronamespace = space.oid and proc.proname = wanted.name
where not coalesce(
    case wanted.kind
        when 'schema' then pg_catalog.has_schema_privilege(space.oid, wanted.privilege)
        when 'table' then pg_catalog.has_table_privilege(class.oid, wanted.privilege)
        when 'sequence' then pg_catalog.has_sequence_privilege(class.oid, wanted.privilege)
        when 'function' then pg_catalog.has_function_privilege(proc.oid, wanted.privilege)
        else pg_catalog.has_database_privilege(pg_catalog.current_database(), wanted.privilege)
    end,
    true
)
order by wanted.position
