-- prune: makes the day partitions of `finished_jobs` for the days ahead and empties those past their retention.
-- In: ahead int (days), retention float8 (seconds). Out: partitions made, emptied, dropped. Caller: db.prune
-- The function is a hardened definer's, since a worker's role has no right to make tables.
select made, emptied, dropped from {schema}.prune(%(ahead)s::int, %(retention)s::float8)
