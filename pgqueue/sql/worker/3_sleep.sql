-- sleep: the worker lies down; an enqueue may wake it until `until`. Renewed by each poll, so that a frozen worker drops
-- out by itself, and dead rows lie outside the bound `until > now()` that an enqueue looks behind.
-- In: worker_id uuid, queues text[] ('*' for all), seconds float8. Out: nothing. Caller: db.sleep
insert into {schema}.sleepers as sleeper (worker_id, queue, until)
select %(worker_id)s::uuid, queue, statement_timestamp() + %(seconds)s::float8 * interval '1 second'
from unnest(%(queues)s::text[]) as q (queue)
order by queue
on conflict (worker_id, queue) do update set until = excluded.until
