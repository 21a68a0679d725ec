-- job_history: the failed attempts of each live job that has any, as dead_jobs.errors and finished_jobs.errors keep them.
create view {schema}.job_history as
select job_id, jsonb_agg(
    jsonb_build_object('attempt', attempt, 'fence', fence, 'at', at, 'error', error, 'traceback', traceback)
    order by fence
) as errors
from {schema}.job_errors
group by job_id
