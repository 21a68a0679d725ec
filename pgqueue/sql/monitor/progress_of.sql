-- progress_of: how far a job is, or was when it last said so. In: id bigint. Out: fraction, note, at, attempt; or no row.
-- Caller: db.progress_of
select fraction, note, case when at between '0001-01-02Z' and '9999-12-30Z' then at end, attempt
from {schema}.progress
where job_id = %(id)s::bigint
