-- find_dead: ids in the dead-letter table, oldest death first. Each filter may be null (any).
-- In: ids bigint[], task text, queue text, reason text, error text (contained in the last error, as it stands),
--     older_than and younger_than float8 (seconds since death), limit int or null. Out: ids. Caller: db.find_dead
select id
from {schema}.dead_jobs
where (%(ids)s::bigint[] is null or id = any(%(ids)s::bigint[]))
    and (%(task)s::text is null or task = %(task)s::text)
    and (%(queue)s::text is null or queue = %(queue)s::text)
    and (%(reason)s::text is null or reason = %(reason)s::text)
    and (%(error)s::text is null or pg_catalog.strpos(error, %(error)s::text) > 0)
    and (%(older_than)s::float8 is null
        or died_at <= pg_catalog.statement_timestamp() - %(older_than)s::float8 * interval '1 second')
    and (%(younger_than)s::float8 is null
        or died_at >= pg_catalog.statement_timestamp() - %(younger_than)s::float8 * interval '1 second')
order by died_at, id
limit %(limit)s
