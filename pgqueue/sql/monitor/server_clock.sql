-- server_clock: the server's clock, and which process of its answers. In: nothing. Out: seconds since 1970, process id.
-- Caller: db.server_clock
select extract(epoch from pg_catalog.clock_timestamp())::float8, pg_catalog.pg_backend_pid()
