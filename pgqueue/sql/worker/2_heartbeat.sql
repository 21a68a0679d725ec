-- heartbeat: "still alive", for all the workers of one supervisor; by the server's clock.
-- In: ids uuid[], lease float8 (seconds), stopping boolean, now timestamptz or null
-- Out: ids renewed; one that is missing has lost its lease and its jobs: it must stop. Caller: db.heartbeat
with held as materialized (
    select id from {schema}.workers where id = any(%(ids)s::uuid[]) order by id for update
)
update {schema}.workers
set heartbeat_at = coalesce(%(now)s::timestamptz, statement_timestamp()), stopping = %(stopping)s::boolean,
    expires_at = coalesce(%(now)s::timestamptz, statement_timestamp()) + %(lease)s::float8 * interval '1 second'
where id = any(array(select id from held))
returning id
