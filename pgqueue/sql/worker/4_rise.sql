-- rise: the worker is awake; nobody needs to wake it. In: worker_id uuid. Out: nothing. Caller: db.rise
delete from {schema}.sleepers where worker_id = %(worker_id)s::uuid
