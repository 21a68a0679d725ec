-- queue_depth: what a metrics scrape asks. In: nothing. Out: queue, queued, scheduled, running, blocked, dead, age of the
-- oldest due job in seconds (0 without one). Caller: db.queue_depth
select queue, queued, scheduled, running, blocked, dead, coalesce(extract(epoch from oldest_age), 0)::float8
from {schema}.queue_stats
order by queue
