-- claim_suspect: queued -> running, for one job under which a process died: it must run with nothing beside it.
-- In: worker_id uuid, tasks text[], queues text[] or null (all), bare bool, now timestamptz or null
-- Out: as claim, at most one row. Index: jobs_suspects. Caller: db.claim_suspect
-- Fewest crashes first: after a death the guilty one and its neighbours look alike, and those that are innocent are
-- cleared before anything dies a third time. Ordinary claims take none of these.
with picked as materialized (
    select id
    from {schema}.jobs
    where state = 'queued' and crashes > 0
        and run_at <= coalesce(%(now)s::timestamptz, statement_timestamp())
        and task = any(%(tasks)s::text[])
        and (%(queues)s::text[] is null or queue = any(%(queues)s::text[]))
        and (expires_at is null or expires_at > coalesce(%(now)s::timestamptz, statement_timestamp()))
        and (
            select paused and (paused_until is null or paused_until > coalesce(%(now)s::timestamptz, statement_timestamp()))
            from {schema}.queues
            where name = jobs.queue
        ) is not true
        and exists (
            select from {schema}.workers
            where id = %(worker_id)s and expires_at > coalesce(%(now)s::timestamptz, statement_timestamp())
        )
    order by crashes, priority desc, run_at, id
    limit 1
    for update skip locked
)
update {schema}.jobs
set state = 'running', worker_id = %(worker_id)s, fence = least(fence, 2147483646) + 1,
    attempt = least(attempt, 2147483646) + 1,
    started_at = coalesce(%(now)s::timestamptz, statement_timestamp())
where id = any(array(select id from picked))
returning id, task, queue, priority, attempt, max_attempts, fence, crashes,
    date_part('epoch', run_at), date_part('epoch', created_at), date_part('epoch', started_at),
    timeout, case when not %(bare)s::bool then left(args::text, 1000000) end,
    case when not %(bare)s::bool then left(retry::text, 100000) end, tags,
    case when not %(bare)s::bool then left(meta::text, 1000000) end
