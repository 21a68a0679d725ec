-- schema_version: the migration the schema stands at. Out: revision. Caller: db.schema_version
select version_num from {schema}.alembic_version
