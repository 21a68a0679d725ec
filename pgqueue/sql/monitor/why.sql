-- why: why a job is not running. In: id bigint. Out: cause, detail, since; the weightiest first, whose detail is a sentence.
-- Caller: db.why
select cause, detail, case when since between '0001-01-02Z' and '9999-12-30Z' then since end
from {schema}.why(%(id)s::bigint)
