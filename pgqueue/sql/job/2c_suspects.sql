-- suspects: how many jobs wait that must run alone, among those that this worker's supervisor could run.
-- In: tasks text[], queues text[] or null (all), most int (counts no further), now timestamptz or null. Out: int.
-- Index: jobs_suspects.
-- Caller: db.suspects
select count(*)::int
from (
    select
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
        and (
            select paused_until is null or paused_until > coalesce(%(now)s::timestamptz, statement_timestamp())
            from {schema}.paused_tasks as known
            where known.task = jobs.task
        ) is not true
    limit %(most)s
) as waiting
