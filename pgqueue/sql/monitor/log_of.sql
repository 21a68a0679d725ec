-- log_of: what a job said in its log, oldest first; the last of it when it is long.
-- In: id bigint, attempt int or null, limit int. Out: attempt, at, level, message. Caller: db.log_of
select attempt, at, level, message
from (
    select attempt, case when at between '0001-01-02Z' and '9999-12-30Z' then at end as at, level, message, fence, n
    from {schema}.job_logs
    where job_id = %(id)s::bigint and (%(attempt)s::int is null or attempt = %(attempt)s::int)
    order by fence desc, n desc
    limit %(limit)s::int
) as last
order by fence, n
