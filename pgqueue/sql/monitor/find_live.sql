-- find_live: ids of jobs that have not ended, lowest first. Each filter may be null (any).
-- In: ids bigint[], task text, queue text, state text, unique_key text, tag text, limit int or null. Out: ids.
-- Index: jobs_unique for a key, the primary key for ids; else all of `jobs` is looked at. Caller: db.find_live
select id
from {schema}.jobs
where (%(ids)s::bigint[] is null or id = any(%(ids)s::bigint[]))
    and (%(task)s::text is null or task = %(task)s::text)
    and (%(queue)s::text is null or queue = %(queue)s::text)
    and (%(state)s::text is null or state = %(state)s::text)
    and (%(unique_key)s::text is null or unique_key = %(unique_key)s::text)
    and (%(tag)s::text is null or %(tag)s::text = any(tags))
order by id
limit %(limit)s
