-- lapsed: deletes the rows of workers whose lease has ended, and names them together with owners of running jobs that
-- have no row at all (a restored dump, a row deleted by hand). Their jobs are rescued in the same transaction.
-- In: now timestamptz or null. Out: worker ids. Index: jobs_running. Caller: db.lapsed
with late as materialized (
    select id
    from {schema}.workers
    where expires_at <= coalesce(%(now)s::timestamptz, statement_timestamp())
    order by id
    for update skip locked
),
gone as (
    delete from {schema}.workers where id = any(array(select id from late)) returning id
),
asleep as (
    delete from {schema}.sleepers where worker_id = any(array(select id from gone))
)
select id from gone
union
select distinct worker_id
from {schema}.jobs
where state = 'running' and not exists (select from {schema}.workers where workers.id = jobs.worker_id)
