-- server: what is at the other end. It must answer on whatever speaks the protocol, so nothing but settings is asked for.
-- Out: version text, version number, encoding, 'on' when a standby (null before PostgreSQL 14). Caller: db.server
select
    pg_catalog.version(),
    pg_catalog.current_setting('server_version_num', true),
    pg_catalog.current_setting('server_encoding', true),
    pg_catalog.current_setting('in_hot_standby', true)
