-- claim_above: queued -> running, as claim, but only in lanes that the worker knows and from a floor in each.
-- In: worker_id uuid, tasks text[], queues text[] or null (all), after text (queue it served last), limit int,
--     bare boolean (leave out the JSON), lanes text[] (their queues), priorities int[], run_ats float8[] (epoch seconds;
--     -infinity: from the bottom), floor_ids bigint[], now timestamptz or null. A floor is the lowest that is claimed
-- Out: as claim. Index: jobs_due, one range for each lane, from its floor. Caller: db.claim_above
-- Claimed jobs leave dead entries at the low end of a lane's range. As long as somebody's transaction may still see them
-- nothing removes them, and whoever starts at the bottom walks all of them, for each claim. What comes to lie below a
-- floor is found by claim, from the bottom, now and then: worker/floor.py.
with served as materialized (
    select lane.queue, lane.priority, lane.run_at, lane.id
    from unnest(%(lanes)s::text[], %(priorities)s::int[], %(run_ats)s::float8[], %(floor_ids)s::bigint[])
        as lane (queue, priority, run_at, id)
    left join {schema}.queues on queues.name = lane.queue
    where (queues.paused is not true or queues.paused_until <= coalesce(%(now)s::timestamptz, statement_timestamp()))
        and (%(queues)s::text[] is null or lane.queue = any(%(queues)s::text[]))
        and exists (
            select from {schema}.workers
            where id = %(worker_id)s and expires_at > coalesce(%(now)s::timestamptz, statement_timestamp())
        )
    order by lane.queue <= %(after)s::text, lane.queue, lane.priority desc
),
picked as materialized (
    select due.id
    from served
    cross join lateral (
        select id
        from {schema}.jobs
        where state = 'queued' and queue = served.queue and priority = served.priority
            and (run_at, id) >= (to_timestamp(served.run_at), served.id)
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
