-- claim: queued -> running. Locks up to `limit` due jobs for one worker; never waits for a lock.
-- In: worker_id uuid, tasks text[] (those it knows), queues text[] or null (all), after text (queue it served last),
--     limit int, bare bool (null for all JSON: see stored), now timestamptz or null (the server's clock)
-- Out: what a run needs, JSON as text, dates as seconds: one row psycopg cannot load would cost the whole batch. JSON is cut
--     where no honest row reaches: numbers such as 1e131071 make 13 MB of 900 bytes. Looked at by its stored size first,
--     since to cut costs 0.4 microseconds a job: below 200 bytes it cannot become much more than that.
-- Index: jobs_due, one range for each (queue, priority), found by probes. Caller: db.claim
-- The queue after the last one served comes first, so a long queue does not starve the others; within a queue the order
-- is priority, run_at, id. A worker whose lease has lapsed claims nothing.
with recursive lane as (
    (
        select queue, priority
        from {schema}.jobs
        where state = 'queued'
            and exists (
                select from {schema}.workers
                where id = %(worker_id)s and expires_at > coalesce(%(now)s::timestamptz, statement_timestamp())
            )
        order by queue, priority desc
        limit 1
    )
    union all
    select next.queue, next.priority
    from lane
    cross join lateral (
        (
            select queue, priority
            from {schema}.jobs
            where state = 'queued' and queue = lane.queue and priority < lane.priority
            order by priority desc
            limit 1
        )
        union all
        (
            select queue, priority
            from {schema}.jobs
            where state = 'queued' and queue > lane.queue
            order by queue, priority desc
            limit 1
        )
        limit 1
    ) as next
),
served as materialized (
    select lane.queue, lane.priority
    from lane
    left join {schema}.queues on queues.name = lane.queue
    where (queues.paused is not true or queues.paused_until <= coalesce(%(now)s::timestamptz, statement_timestamp()))
        and (%(queues)s::text[] is null or lane.queue = any(%(queues)s::text[]))
    order by lane.queue <= %(after)s::text, lane.queue, lane.priority desc
),
-- Rows are locked as the outer LIMIT pulls them, so exactly those that are claimed. A CTE, not IN (SELECT … FOR UPDATE):
-- that may run again for each outer row and lock more than LIMIT.
picked as materialized (
    select due.id
    from served
    cross join lateral (
        select id
        from {schema}.jobs
        where state = 'queued' and queue = served.queue and priority = served.priority
            and run_at <= coalesce(%(now)s::timestamptz, statement_timestamp())
            and task = any(%(tasks)s::text[])
            and crashes = 0 -- a suspect runs alone: claim_suspect
            and (expires_at is null or expires_at > coalesce(%(now)s::timestamptz, statement_timestamp()))
        order by run_at, id
        limit %(limit)s
        for update skip locked
    ) as due
    limit %(limit)s
),
claimed as (
    update {schema}.jobs
    -- least: a number that plain SQL put at its end would fail the whole batch, and every batch after it
    set state = 'running', worker_id = %(worker_id)s, fence = least(fence, 2147483646) + 1,
        attempt = least(attempt, 2147483646) + 1,
        started_at = coalesce(%(now)s::timestamptz, statement_timestamp())
    where id = any(array(select id from picked))
    returning id, task, queue, priority, attempt, max_attempts, fence, crashes, run_at, created_at, started_at, timeout,
        args, retry, tags, meta
)
select id, task, queue, priority, attempt, max_attempts, fence, crashes,
    date_part('epoch', run_at), date_part('epoch', created_at), date_part('epoch', started_at),
    timeout,
    case
        when %(bare)s::bool then null
        when pg_column_size(args) > 200 then left(args::text, 1000000)
        else args::text
    end,
    case when not %(bare)s::bool then left(retry::text, 100000) end, tags,
    case when not %(bare)s::bool then left(meta::text, 1000000) end
from claimed
order by queue <= %(after)s::text, queue, priority desc, claimed.run_at, id
