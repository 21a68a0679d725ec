-- stored: the JSON of one job that was claimed without it. Asked job by job when a claim could not print it: text of more
-- than 1 GB is an error, which costs whoever claims all the others.
-- In: worker_id uuid, id bigint, fence int. Out: args, retry and meta as text; no row: the claim is lost.
-- Index: primary key. Caller: db.stored
select left(args::text, 1000000), left(retry::text, 100000), left(meta::text, 1000000)
from {schema}.jobs
where id = %(id)s and worker_id = %(worker_id)s and fence = %(fence)s
