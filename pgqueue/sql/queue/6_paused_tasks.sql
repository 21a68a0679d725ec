-- paused_tasks: the tasks that are paused now. In: nothing. Out: task, since when, by whom, until when.
-- Caller: db.paused_tasks
select task, paused_at, paused_by, paused_until
from {schema}.paused_tasks
where paused_until is null or paused_until > pg_catalog.statement_timestamp()
order by task
