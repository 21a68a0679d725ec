-- find_jobs: jobs in every shape, newest first. In: ids bigint[], state, task, queue text, or null (any);
--     before bigint or null (ids below, to read on); limit int. Out: monitor.COLUMNS. Caller: db.find_jobs
select id, task, queue, state, priority, run_at, attempt, max_attempts, fence, created_at, started_at, finished_at,
    worker_id, unique_key, concurrency_key, tags, meta, args, result, error, errors, reason
from {schema}.all_jobs
where (%(ids)s::bigint[] is null or id = any(%(ids)s::bigint[]))
    and (%(state)s::text is null or state = %(state)s::text)
    and (%(task)s::text is null or task = %(task)s::text)
    and (%(queue)s::text is null or queue = %(queue)s::text)
    and (%(before)s::bigint is null or id < %(before)s::bigint)
order by id desc
limit %(limit)s
