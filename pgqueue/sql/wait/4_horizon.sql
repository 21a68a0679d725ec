-- horizon: the number of a transaction that begins now, for a job that is nowhere: its enqueue may not be committed yet.
-- In: nothing. Out: the number. Caller: db.horizon
-- Whoever has the job's id has it from an INSERT, whose transaction has a lower number. Once every transaction below this
-- one has ended (outcomes), what is nowhere stays nowhere. A snapshot's xmax would not do: it is the number behind the last
-- that has ended, and that INSERT's may lie beyond it.
select pg_catalog.pg_current_xact_id()::text::bigint
