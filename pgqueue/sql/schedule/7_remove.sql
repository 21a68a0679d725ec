-- remove: schedules are gone; their jobs stay. What a worker declares comes back when one starts.
-- In: names text[]. Out: name, declared. Caller: db.remove_schedules
delete from {schema}.schedules
where name = any(%(names)s::text[])
returning name, declared
