-- queues: every queue with a live or dead job, or a row of its own. In: nothing. Out: name, paused, since when, by whom,
-- until when, queued, scheduled, running, blocked, dead. Caller: db.queues
select stats.queue, stats.paused,
    case when stats.paused then own.paused_at end, case when stats.paused then own.paused_by end,
    case when stats.paused then own.paused_until end,
    stats.queued, stats.scheduled, stats.running, stats.blocked, stats.dead
from {schema}.queue_stats as stats
left join {schema}.queues as own on own.name = stats.queue
order by stats.queue
