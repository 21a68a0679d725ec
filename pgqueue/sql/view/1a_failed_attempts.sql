-- failed_attempts: when each failed attempt failed, and of which job; no word of what it said. place: the table that the
-- job is in; ended_at: when it ended, null of a live one. The only view that runs with its owner's rights: the times of
-- an ended job's attempts lie in its errors, whose texts a role that counts failures need not see.
-- The day is added to the first of its month: there is no 31st of February that could fail the cast, and with it all the
-- other jobs. What plain SQL wrote in another shape is left out.
create view {schema}.failed_attempts as
select 'jobs'::text as place, job_id, null::timestamptz as ended_at, at
from {schema}.job_errors
union all
select ended.place, ended.id, ended.ended_at, told.at
from (
    select 'dead_jobs'::text as place, id, died_at as ended_at, errors from {schema}.dead_jobs
    union all
    select 'finished_jobs', id, finished_at, errors from {schema}.finished_jobs where errors is not null
) as ended
cross join lateral jsonb_array_elements(
    case jsonb_typeof(ended.errors) when 'array' then ended.errors else '[]' end
) as error
cross join lateral (
    select case
        when error ->> 'at' ~ '^[1-9][0-9]{3}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?[+-](0[0-9]|1[0-4]):[0-5][0-9]$'
        then overlay(error ->> 'at' placing '01' from 9)::timestamptz
            + (substr(error ->> 'at', 9, 2)::int - 1) * interval '24 hours'
    end
) as told (at)
where told.at is not null
