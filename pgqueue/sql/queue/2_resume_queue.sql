-- resume_queue: jobs of this queue may start again. In: queue text. Out: its name, if it was paused. Caller: db.resume_queue
-- Its row stays: queue_stats shows the queue for as long.
update {schema}.queues
set paused = false, paused_at = null, paused_by = null, paused_until = null
where name = %(queue)s::text and paused
returning name
