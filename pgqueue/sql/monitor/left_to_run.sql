-- left_to_run: what a draining worker still waits for, and what it leaves. In: tasks text[], queues text[] or null (all).
-- Out: waiting (running anywhere, due, or to be retried), scheduled (never tried, for later). Paused queues and tasks do not count.
-- Caller: db.left_to_run
select
    count(*) filter (where state = 'running' or fence > 0 or run_at <= statement_timestamp()),
    count(*) filter (where state = 'queued' and fence = 0 and run_at > statement_timestamp())
from {schema}.jobs
left join {schema}.queues on queues.name = jobs.queue
where (queues.paused is not true or queues.paused_until <= statement_timestamp()) and state <> 'blocked' and task = any(%(tasks)s::text[])
    and (%(queues)s::text[] is null or queue = any(%(queues)s::text[]))
    and not exists (
        select from {schema}.paused_tasks as known
        where known.task = jobs.task and (known.paused_until is null or known.paused_until > statement_timestamp())
    )
