-- health: what the database under the queue is like. In: nothing. Out: finding, level, value, unit, detail, fix; those that
-- need somebody first. Caller: db.health
select finding, level, value, unit, detail, fix from {schema}.health
