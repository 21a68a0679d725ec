-- standing: is this claim still ours? Asked when the COMMIT of a job's own transaction was not answered.
-- In: worker_id uuid, id bigint, fence int. Out: the id, or no row. Index: primary key. Caller: db.standing
-- FOR UPDATE: that commit may still be under way in a session that nobody listens to, and it holds the row's lock. Once
-- it has ended, the row is there or gone; where it went is asked in a second statement, which sees it.
select id
from {schema}.jobs
where id = %(id)s and worker_id = %(worker_id)s and fence = %(fence)s
for update
