-- prune_periods: removes keys whose period is over; nobody needs them, an enqueue would take them over where they stand.
-- In: limit int, now timestamptz or null. Out: one row for each. Index: unique_periods_over. Caller: db.prune_periods
-- One that an enqueue takes over just now is passed by.
with over as materialized (
    select key
    from {schema}.unique_periods
    where ends_at <= coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())
    order by ends_at
    limit %(limit)s::int
    for update skip locked
)
delete from {schema}.unique_periods
where key = any(array(select key from over))
    and ends_at <= coalesce(%(now)s::timestamptz, pg_catalog.statement_timestamp())
returning job_id
