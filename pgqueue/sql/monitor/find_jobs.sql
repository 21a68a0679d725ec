-- find_jobs: jobs in every shape, newest first. In: ids bigint[], state, task, queue text, or null (any);
--     before bigint or null (ids below, to read on); limit int; bare bool (null for all JSON). Out: as monitor reads it.
-- Caller: db.find_jobs
-- JSON as text, cut where no honest row reaches, and dates only if Python has them: a row that psycopg cannot load would
-- hide all the others, just when somebody looks for the bad one.
select id, task, queue, state, priority,
    case when run_at between '0001-01-02Z' and '9999-12-30Z' then run_at end, attempt, max_attempts, fence,
    case when created_at between '0001-01-02Z' and '9999-12-30Z' then created_at end,
    case when started_at between '0001-01-02Z' and '9999-12-30Z' then started_at end,
    case when finished_at between '0001-01-02Z' and '9999-12-30Z' then finished_at end,
    worker_id, unique_key, concurrency_key, tags,
    case when not %(bare)s::bool then pg_catalog.left(meta::text, 1000000) end,
    case when not %(bare)s::bool then pg_catalog.left(args::text, 1000000) end,
    case when not %(bare)s::bool then pg_catalog.left(result::text, 1000000) end,
    error, case when not %(bare)s::bool then pg_catalog.left(errors::text, 10000000) end, reason
from {schema}.all_jobs
where (%(ids)s::bigint[] is null or id = any(%(ids)s::bigint[]))
    and (%(state)s::text is null or state = %(state)s::text)
    and (%(task)s::text is null or task = %(task)s::text)
    and (%(queue)s::text is null or queue = %(queue)s::text)
    and (%(before)s::bigint is null or id < %(before)s::bigint)
order by id desc
limit %(limit)s
