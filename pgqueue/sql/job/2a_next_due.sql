-- next_due: seconds until the earliest job that is queued for later comes due; null: none. Asked before lying down.
-- A job that came due within the last second counts too (zero or less): it may have done so since the claim looked, and
-- would wait for the next poll. Older ones that no claim took are held by somebody, and not worth a hot loop.
-- In: tasks text[], queues text[] or null (all), now timestamptz or null. Index: jobs_due, one probe for each
--     (queue, priority). Caller: db.next_due
with recursive lane as (
    (
        select queue, priority
        from {schema}.jobs
        where state = 'queued'
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
)
select extract(epoch from min(due.run_at) - coalesce(%(now)s::timestamptz, statement_timestamp()))::float8
from lane
left join {schema}.queues on queues.name = lane.queue
cross join lateral (
    select run_at
    from {schema}.jobs
    where state = 'queued' and queue = lane.queue and priority = lane.priority
        and run_at > coalesce(%(now)s::timestamptz, statement_timestamp()) - interval '1 second'
        and (expires_at is null or expires_at > coalesce(%(now)s::timestamptz, statement_timestamp()))
        and task = any(%(tasks)s::text[])
        and crashes = 0 -- not ours to run: claim_suspect
    order by run_at
    limit 1
) as due
where (queues.paused is not true or queues.paused_until <= coalesce(%(now)s::timestamptz, statement_timestamp()))
    and (%(queues)s::text[] is null or lane.queue = any(%(queues)s::text[]))
