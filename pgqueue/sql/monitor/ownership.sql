-- ownership: what a role that migrates has, or lacks. In: home text (the schema's name). Out: role, database, whether the
-- schema is there, whether the role may make one, whether it may use it and create in it; who owns what is in it and is
-- neither this role nor one that it belongs to, and whether that is a superuser (null: nobody). Caller: db.ownership
select
    current_user::text,
    pg_catalog.current_database()::text,
    space.oid is not null,
    pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
    coalesce(
        pg_catalog.has_schema_privilege(space.oid, 'USAGE') and pg_catalog.has_schema_privilege(space.oid, 'CREATE'),
        false
    ),
    stranger.rolname::text,
    stranger.rolsuper
from (values (%(home)s::text)) as wanted (home)
left join pg_catalog.pg_namespace as space on space.nspname = wanted.home
left join lateral (
    select rolname, rolsuper
    from pg_catalog.pg_class as class
    join pg_catalog.pg_roles as owner on owner.oid = class.relowner
    where class.relnamespace = space.oid and class.relname in ('alembic_version', 'jobs')
        and not pg_catalog.pg_has_role(owner.oid, 'USAGE')
    order by class.relname
    limit 1
) as stranger on true
