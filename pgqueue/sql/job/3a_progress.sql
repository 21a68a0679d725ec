-- progress: writes down how far running jobs are, as they say themselves. No edge: the job goes on.
-- In: worker_id uuid, ids bigint[], fences int[], fractions float8[], notes text[], said bigint[],
--     now timestamptz or null
-- Out: ids that are this worker's still; of the others nothing is written. Index: primary key. Caller: db.progress
-- The hot row is read, never locked nor written: its settle waits for nothing, and it leaves no dead versions behind. An
-- older claim that was still in time for the look is kept out by the fence, once the newer one has said anything.
-- said: a word that was under way while the job's own transaction wrote its last one waits for it here, and is older.
-- OFFSET 0: as a join it would walk all of `jobs`, in a plan that was made while few waited and is kept.
with said as (
    select *
    from unnest(%(ids)s::bigint[], %(fences)s::int[], %(fractions)s::float8[], %(notes)s::text[],
            %(said)s::bigint[])
        as s (id, fence, fraction, note, said)
),
held as materialized (
    select said.*, job.attempt
    from said
    cross join lateral (
        select attempt
        from {schema}.jobs
        where id = said.id and worker_id = %(worker_id)s and fence = said.fence
        offset 0
    ) as job
),
written as (
    insert into {schema}.progress as known (job_id, fence, attempt, fraction, note, at, said)
    select id, fence, attempt, fraction, note, coalesce(%(now)s::timestamptz, statement_timestamp()), said
    from held
    order by id
    on conflict (job_id) do update
    set fence = excluded.fence, attempt = excluded.attempt, fraction = excluded.fraction, note = excluded.note,
        at = excluded.at, said = excluded.said
    where (known.fence, known.said) <= (excluded.fence, excluded.said)
)
select id from held
