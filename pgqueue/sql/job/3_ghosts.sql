-- ghosts: running -> queued, no attempt used. Jobs the table says this worker holds, but the worker knows nothing of:
-- the claim was committed and its answer lost. Run on the connection that claims, so that no claim is under way.
-- In: worker_id uuid, held bigint[]. Out: id, task, the attempt it was claimed for. Index: jobs_running. Caller: db.release_ghosts
with ghost as (
    select id
    from {schema}.jobs
    where state = 'running' and worker_id = %(worker_id)s and id <> all(%(held)s::bigint[])
        and cancelling is null -- what was asked to end is not to start again: cancel_asked
    order by id
    for update
)
update {schema}.jobs
set state = 'queued', worker_id = null, attempt = greatest(attempt, 1) - 1
where id = any(array(select id from ghost)) and worker_id = %(worker_id)s
returning id, task, attempt + 1
