"""Step 1, unique jobs: by which key, for how long it is held, and what a call with a held key does."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any

import psycopg
import pytest

from pgqueue import InvalidOption, Job, PgQueue, State, Task, UniqueKeyTaken, db
from pgqueue.enqueue import Options
from pgqueue.maintenance.prune import prune_periods
from pgqueue.unique import canonical, key_of
from tests.helpers import eventually, run, worker_row
from tests.life.callers import ASYNC, KINDS, caller, done
from tests.life.workbench import Ears

Look = psycopg.Connection[Any]
ON_CONFLICT = ("keep", "replace", "replace_args", "replace_run_at", "debounce", "raise")
SCOPES: dict[str, dict[str, Any]] = {
    "finished": {},
    "claimed": {"unique_until": "claimed"},
    "period": {"unique_for": 3600},
}


@pytest.fixture
def mail(app: PgQueue) -> Task[..., Any]:
    @app.task(name="mail")
    def mail(user_id: int, text: str = "") -> None: ...

    return mail


def jobs(connection: Look) -> list[tuple[Any, ...]]:
    return connection.execute("select id, args from pgqueue.jobs order by id").fetchall()


def claimed(app: PgQueue, connection: Look) -> tuple[Any, list[int], list[int]]:
    """Whose claim it is, the ids, the fences."""
    worker_id = worker_row(app, connection, tasks=["mail"])
    claims = run(connection, db.claim(app.statements, worker_id, ["mail"], None, 100))
    return worker_id, [claim.id for claim in claims], [claim.fence for claim in claims]


# -- the key ----------------------------------------------------------------------------------------------------------


def test_all_arguments_or_the_chosen_ones_make_the_key_and_the_name_of_the_task_is_part_of_it(
    app: PgQueue, mail: Task[..., Any], connection: Look
) -> None:
    other = app.task(name="other")(lambda_free)
    whole, chosen = mail.options(unique=True), mail.options(unique=("user_id",))
    first = whole.enqueue(connection, 1, "a")
    assert whole.enqueue(connection, text="a", user_id=1).id == first.id
    assert not whole.enqueue(connection, 1, "b").existing
    one = chosen.enqueue(connection, 1, "a")
    assert not one.existing
    assert chosen.enqueue(connection, 1, "z").id == one.id
    assert not chosen.enqueue(connection, 2, "a").existing
    assert not other.options(unique=True).enqueue(connection, 1, "a").existing
    assert first.unique_key is not None
    assert first.unique_key.startswith("mail#")
    assert len(first.unique_key) == len("mail#") + 32


def lambda_free(user_id: int, text: str) -> None: ...


def test_a_decorator_says_it_for_every_call_and_options_say_otherwise(app: PgQueue, connection: Look) -> None:
    @app.task(name="sync", unique=("user_id",), unique_until="claimed", on_conflict="replace_args")
    def sync(user_id: int, full: bool = False) -> None: ...

    first = sync.enqueue(connection, 7)
    assert sync.enqueue(connection, 7, full=True).id == first.id
    assert jobs(connection) == [(first.id, {"user_id": 7, "full": True})]
    assert not sync.options(unique=False).enqueue(connection, 7).existing
    named = sync.options(unique_key="k").enqueue(connection, 7)
    assert (named.existing, named.unique_key) == (False, "k")


VALUES = [
    {}, {"b": 1, "aa": 2, "é": 3, "a": [1.5, 1.0, -0.0, 0.0, 1e22, 1e-7, 12345678901234567890, True, None]},
    {"": "\x7f\x1f\t\n\r\b\f\"\\/ü日💡", "list": [1, {"z": {"y": []}}]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_the_key_of_arguments_is_the_same_from_python_and_from_sql(value: Any, app: PgQueue, connection: Look) -> None:
    text = json.dumps(value)
    row = connection.execute("select %s::jsonb::text", [text]).fetchone()
    assert row == (canonical(json.loads(text, parse_float=Decimal)),)
    connection.execute("""select pgqueue.enqueue('mail', %s::jsonb, "unique" => '{*}')""", [text])
    assert connection.execute("select unique_key from pgqueue.jobs").fetchone() == (key_of("mail", text, None),)


# -- how long it is held ----------------------------------------------------------------------------------------------


def test_a_key_until_the_claim_is_given_up_by_the_first_claim_and_no_retry_release_or_rescue_takes_it_back(
    app: PgQueue, mail: Task[..., Any], connection: Look
) -> None:
    unique = mail.options(unique=True, unique_until="claimed")
    first = unique.enqueue(connection, 1)
    assert unique.enqueue(connection, 1).id == first.id
    worker_id, ids, fences = claimed(app, connection)
    second = unique.enqueue(connection, 1)
    assert not second.existing
    sql = app.statements
    run(connection, db.give_back(sql, worker_id, ids, fences, [None]))
    assert unique.enqueue(connection, 1).id == second.id  # and not the first, which is queued as well
    connection.execute("update pgqueue.jobs set run_at = now() + interval '1 hour' where id = %s", [second.id])
    worker_id, ids, fences = claimed(app, connection)
    assert ids == [first.id]
    run(connection, db.retry(sql, worker_id, ids, fences, [0.0], ["no"], [None]))
    worker_id, ids, fences = claimed(app, connection)
    run(connection, db.rescue(sql, [worker_id], crashed=False, why="gone", max_crashes=3))
    worker_id, ids, fences = claimed(app, connection)
    assert ids == [first.id]
    run(connection, db.dead_letter(sql, worker_id, ids, fences, ["never"], ["no"], [None]))
    assert app.dead.redrive(first.id) == [first.id]
    assert unique.enqueue(connection, 1).id == second.id


def test_a_key_until_the_claim_is_free_when_the_job_is_cancelled_instead(
    app: PgQueue, mail: Task[..., Any], connection: Look
) -> None:
    unique = mail.options(unique=True, unique_until="claimed")
    first = unique.enqueue(connection, 1)
    assert app.jobs.cancel(first.id)
    assert not unique.enqueue(connection, 1).existing


@pytest.mark.parametrize("kept", [True, False])
def test_a_period_outlives_its_job_and_ends_by_itself(
    kept: bool, app: PgQueue, mail: Task[..., Any], connection: Look
) -> None:
    unique = mail.options(unique=True, unique_for=timedelta(hours=1))
    first = unique.enqueue(connection, 1)
    worker_id, ids, fences = claimed(app, connection)
    again = unique.enqueue(connection, 1)
    assert (again.id, again.state, again.existing) == (first.id, State.RUNNING, True)
    run(connection, db.complete(app.statements, worker_id, ids, fences, [None], kept=[kept]))
    again = unique.enqueue(connection, 1)
    assert (again.id, again.state, again.existing) == (first.id, State.COMPLETED, True)
    run(connection, prune_periods(app.statements))
    assert unique.enqueue(connection, 1).id == first.id
    connection.execute("update pgqueue.unique_periods set ends_at = now() - interval '1 second'")
    second = unique.enqueue(connection, 1)
    assert not second.existing
    assert unique.enqueue(connection, 1).id == second.id
    connection.execute("update pgqueue.unique_periods set ends_at = now() - interval '1 second'")
    run(connection, prune_periods(app.statements))
    assert connection.execute("select count(*) from pgqueue.unique_periods").fetchone() == (0,)


# -- on conflict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("way", ON_CONFLICT)
def test_what_a_call_does_to_the_queued_job_that_holds_its_key(
    way: str, scope: str, mail: Task[..., Any], connection: Look
) -> None:
    soon, late = (datetime.now(UTC) + timedelta(hours=hours) for hours in (1, 2))
    unique = mail.options(unique=("user_id",), on_conflict=way, expires_in=60, **SCOPES[scope])
    first = unique.options(run_at=late).enqueue(connection, 1, "first")
    if way == "raise":
        with pytest.raises(
            UniqueKeyTaken, match=rf"^job {first.id} holds the unique key 'mail#.*nothing was enqueued$"
        ):
            unique.enqueue(connection, 1, "second")
    else:
        second = unique.options(run_at=soon).enqueue(connection, 1, "second")
        assert (second.id, second.existing) == (first.id, True)
    text, run_at, expires_at = connection.execute(
        "select args ->> 'text', run_at, expires_at from pgqueue.jobs"
    ).fetchall()[0]
    assert text == ("second" if way in ("replace", "replace_args", "debounce") else "first")
    assert run_at == (soon if way in ("replace", "replace_run_at") else late)
    assert expires_at == run_at + timedelta(seconds=60)
    if way == "debounce":
        later = late + timedelta(hours=1)
        assert unique.options(run_at=later).enqueue(connection, 1).run_at == later


@pytest.mark.parametrize("way", ["replace", "debounce"])
def test_a_running_job_is_kept_as_it_is_and_with_a_key_until_the_claim_there_is_a_new_one(
    way: str, app: PgQueue, mail: Task[..., Any], connection: Look
) -> None:
    unique = mail.options(unique=("user_id",), on_conflict=way, delay=60)
    first = mail.options(unique=("user_id",)).enqueue(connection, 1, "first")
    claimed(app, connection)
    again = unique.enqueue(connection, 1, "second")
    assert (again.id, again.state, again.existing) == (first.id, State.RUNNING, True)
    assert jobs(connection) == [(first.id, {"user_id": 1, "text": "first"})]
    until = mail.options(unique=("user_id",), unique_until="claimed")
    held = until.enqueue(connection, 2, "first")
    claimed(app, connection)
    new = until.options(on_conflict=way, delay=60).enqueue(connection, 2, "second")
    assert (new.id > held.id, new.existing) == (True, False)


@pytest.mark.parametrize("until", ["finished", "claimed"])
def test_a_claim_at_the_instant_of_a_replace_wins_and_the_call_looks_again(
    until: str, app: PgQueue, mail: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    unique = mail.options(unique=("user_id",), unique_until=until)
    first = unique.enqueue(connection, 1, "first")
    waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    with (
        psycopg.connect(pgqueue_database) as claimer,
        psycopg.connect(pgqueue_database, autocommit=True) as second,
        ThreadPoolExecutor(1) as thread,
    ):
        worker_id = worker_row(app, connection, tasks=["mail"])
        try:
            run(claimer, db.claim(app.statements, worker_id, ["mail"], None, 1))
            call = thread.submit(unique.options(on_conflict="replace").enqueue, second, 1, "second")
            eventually(lambda: connection.execute(waits, [second.info.backend_pid]).fetchone() == (True,))
        finally:
            claimer.commit()
        job = call.result(timeout=20)
    if until == "finished":
        assert (job.id, job.state, job.existing) == (first.id, State.RUNNING, True)
        assert jobs(connection) == [(first.id, {"user_id": 1, "text": "first"})]
    else:
        assert not job.existing
        assert [row[1]["text"] for row in jobs(connection)] == ["first", "second"]


@pytest.mark.parametrize("scope", SCOPES)
def test_keep_never_locks_the_job_that_it_finds(
    scope: str, app: PgQueue, mail: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    unique = mail.options(unique=True, **SCOPES[scope])
    first = unique.enqueue(connection, 1)
    with psycopg.connect(pgqueue_database) as mine:
        assert unique.enqueue(mine, 1).id == first.id
        assert app.enqueue_many(mine, [unique.job(1)]) == [first.id]
        _, ids, _ = claimed(app, connection)
        assert ids == [first.id]


def test_a_job_that_is_replaced_to_run_at_once_wakes_a_sleeper(
    mail: Task[..., Any], connection: Look, ears: Ears
) -> None:
    unique = mail.options(unique=True, on_conflict="replace_run_at")
    unique.options(delay=3600).enqueue(connection, 1)
    ears.asleep("a worker", "default")
    unique.enqueue(connection, 1)
    assert ears.heard() == ["a worker"]


# -- transactions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_conflict_leaves_the_callers_transaction_usable_on_every_connection(
    kind: str, mail: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    async def call() -> None:
        async with caller(kind, pgqueue_database) as mine:
            for scope, options in SCOPES.items():
                for way in ON_CONFLICT:
                    unique = mail.options(unique_key=f"{scope} {way}", on_conflict=way, **options)
                    first = (await done(unique.enqueue(mine.connection, 1))).id
                    if way == "raise":
                        with pytest.raises(UniqueKeyTaken):
                            await done(unique.enqueue(mine.connection, 2))
                    else:
                        assert (await done(unique.enqueue(mine.connection, 2))).id == first
                        assert await done(unique.enqueue_many(mine.connection, [(3,), (4,)])) == [first, first]
            await mine.commit()

    asyncio.run(call())
    assert len(jobs(connection)) == len(SCOPES) * len(ON_CONFLICT)
    assert kind in ASYNC or connection.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_second_enqueue_waits_for_an_uncommitted_holder(
    end: str, scope: str, mail: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    unique = mail.options(unique=True, **SCOPES[scope])
    waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    with (
        psycopg.connect(pgqueue_database) as holder,
        psycopg.connect(pgqueue_database, autocommit=True) as second,
        ThreadPoolExecutor(1) as thread,
    ):
        held = unique.enqueue(holder, 1)
        try:
            waiting = thread.submit(unique.enqueue, second, 1)
            eventually(lambda: connection.execute(waits, [second.info.backend_pid]).fetchone() == (True,))
        finally:
            getattr(holder, end)()
        found = waiting.result(timeout=20)
    assert (found.id == held.id, found.existing) == (end == "commit",) * 2
    assert [row[0] for row in jobs(connection)] == [found.id]


# -- many at once -----------------------------------------------------------------------------------------------------


def test_a_batch_gives_the_ids_in_input_order_whatever_its_jobs_are_unique_by(
    app: PgQueue, mail: Task[..., Any], connection: Look
) -> None:
    until, period = ({"unique": ("user_id",), **SCOPES[scope]} for scope in ("claimed", "period"))
    held = mail.options(unique=True).enqueue(connection, 5).id
    batch = [
        mail.options(**period).job(9),
        mail.job(1),
        mail.options(unique=True).job(5),
        mail.options(**until, on_conflict="replace").job(3, "one"),
        mail.options(unique=True).job(4),
        mail.options(**until, on_conflict="replace").job(3, "two"),
        mail.job(1),
        mail.options(**period).job(9),
    ]
    ids = app.enqueue_many(connection, batch)
    assert ids[2] == held
    assert (ids[0], ids[3]) == (ids[7], ids[5])
    assert len(set(ids)) == 6
    said = dict(jobs(connection))
    assert [said[one]["user_id"] for one in ids] == [9, 1, 5, 3, 4, 3, 1, 9]
    assert said[ids[3]]["text"] == "two"


def test_a_batch_with_a_key_that_is_to_raise_leaves_nothing(
    app: PgQueue, mail: Task[..., Any], connection: Look
) -> None:
    unique = mail.options(unique=True, on_conflict="raise")
    unique.enqueue(connection, 2)
    before = jobs(connection)
    with pytest.raises(UniqueKeyTaken):
        app.enqueue_many(connection, [mail.job(0), unique.job(1), unique.job(2)])
    assert jobs(connection) == before


@pytest.mark.parametrize("seed", range(2))
def test_no_two_sessions_deadlock_and_no_key_leaks_whatever_they_do_at_once(
    seed: int, app: PgQueue, mail: Task[..., Any], connection: Look, pgqueue_database: str
) -> None:
    """Singles and batches of a few keys in random order, beside a worker's claims and settles and an operator."""
    sessions, rounds, keys = 6, 25, 8

    def enqueuer(number: int) -> Counter[str]:
        dice = random.Random(f"{seed} {number}")
        seen: Counter[str] = Counter()

        def one() -> Any:
            scope = dice.choice(list(SCOPES))
            unique = mail.options(
                unique_key=f"{scope} {dice.randrange(keys)}", on_conflict=dice.choice(ON_CONFLICT), **SCOPES[scope]
            )
            return unique.job(number)

        with psycopg.connect(pgqueue_database) as mine:
            for _ in range(rounds):
                try:
                    app.enqueue_many(mine, [one() for _ in range(dice.choice((1, 4, 12)))])
                    mine.commit() if dice.random() < 0.8 else mine.rollback()
                except UniqueKeyTaken:
                    seen["raised"] += 1
                    mine.commit()
                seen["calls"] += 1
        return seen

    def worker(number: int) -> Counter[str]:
        dice = random.Random(f"{seed} worker {number}")
        with psycopg.connect(pgqueue_database, autocommit=True) as mine:
            for _ in range(2 * rounds):
                worker_id, ids, fences = claimed(app, mine)
                for id_, fence in zip(ids, fences, strict=True):
                    mine_ = (app.statements, worker_id, [id_], [fence])
                    match dice.randrange(4):
                        case 0:
                            run(mine, db.complete(*mine_, [None]))
                        case 1:
                            run(mine, db.give_back(*mine_, [None]))
                        case 2:
                            run(mine, db.dead_letter(*mine_, ["never"], ["no"], [None]))
                        case _:
                            run(mine, db.retry(*mine_, [0.0], ["no"], [None]))
                    run(mine, db.cancel_asked(*mine_))  # one that was cancelled while it ran ends so, and no other way
                live = [row[0] for row in mine.execute("select id from pgqueue.jobs where state = 'queued' limit 3")]
                run(mine, db.cancel(app.statements, live[:1], "no"))
                for (dead,) in mine.execute("select id from pgqueue.dead_jobs limit 2").fetchall():
                    try:
                        run(mine, db.redrive(app.statements, [dead]))
                    except UniqueKeyTaken:
                        pass
                assert not mine.execute(DOUBLES).fetchall()
        return Counter()

    with ThreadPoolExecutor(sessions + 2) as threads:
        calls = [threads.submit(enqueuer, number) for number in range(sessions)]
        calls += [threads.submit(worker, number) for number in range(2)]
        done_ = sum((call.result(timeout=120) for call in calls), Counter[str]())
    assert done_["calls"] == sessions * rounds
    assert done_["raised"] > 0
    # Drained, every key is free but those of a period.
    run(connection, db.cancel(app.statements, [row[0] for row in jobs(connection)], "end"))
    assert jobs(connection) == []
    for scope in ("finished", "claimed"):
        for key in range(keys):
            assert not mail.options(unique_key=f"{scope} {key}", **SCOPES[scope]).enqueue(connection, 1).existing


DOUBLES = """
    select unique_key from pgqueue.jobs where unique_key is not null group by 1 having count(*) > 1
    union all
    select queued_key from pgqueue.jobs where queued_key is not null and fence = 0 group by 1 having count(*) > 1
"""


@pytest.mark.parametrize("scope", SCOPES)
def test_in_every_order_of_their_steps_an_enqueue_finds_the_holder_when_and_only_when_there_is_one(
    scope: str, app: PgQueue, mail: Task[..., Any], connection: Look
) -> None:
    unique = mail.options(unique_key="k", **SCOPES[scope])
    sql = app.statements
    steps = ["claim", "give back", "complete", "cancel", "dead letter", "redrive"]
    orders = [order for length in range(6) for order in permutations(steps, length) if _can_be(order)]
    assert len(orders) > 40
    for order in ((*order, "enqueue") for order in orders):
        for table in ("jobs", "dead_jobs", "unique_periods", "job_errors"):
            connection.execute(f"delete from pgqueue.{table}".encode())
        first = unique.enqueue(connection, 1).id
        held: tuple[Any, list[int], list[int]] | None = None
        for step in order:
            if step == "claim":
                held = claimed(app, connection)
            elif step == "complete" and held:
                run(connection, db.complete(sql, *held, [None] * len(held[1])))
            elif step == "give back" and held:
                run(connection, db.give_back(sql, *held, [None] * len(held[1])))
            elif step == "dead letter" and held:
                each = len(held[1])
                run(connection, db.dead_letter(sql, *held, ["never"] * each, ["no"] * each, [None] * each))
            elif step == "cancel":
                run(connection, db.cancel(sql, [first], "no"))
            elif step == "redrive":
                holder = connection.execute("select id from pgqueue.jobs where unique_key = 'k'").fetchone()
                if holder is not None and connection.execute("select 1 from pgqueue.dead_jobs").fetchone():
                    with pytest.raises(UniqueKeyTaken):
                        run(connection, db.redrive(sql, [first]))
                else:
                    run(connection, db.redrive(sql, [first]))
            elif step == "enqueue":
                holds = {
                    "finished": "select id from pgqueue.jobs where unique_key is not null",
                    "claimed": "select id from pgqueue.jobs where attempt = 0 and started_at is null and fence = 0",
                    "period": "select job_id from pgqueue.unique_periods",
                }[scope]
                expected = connection.execute(holds).fetchone()
                job = unique.enqueue(connection, 1)
                assert job.existing is (expected is not None), order
                assert expected is None or job.id == expected[0], order
            assert not connection.execute(DOUBLES).fetchall(), order


def _can_be(order: tuple[str, ...]) -> bool:
    """Whether each step finds what it is about: a claim before a settle, a dead job before a redrive."""
    before = {"give back": "claim", "complete": "claim", "dead letter": "claim", "redrive": "dead letter"}
    return all(before.get(step, step) in order[: place + 1] for place, step in enumerate(order))


# -- bad values -------------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"unique": "user_id"}, r'unique must be True .* tuple .*, not str: write \("user_id",\)'),
    ({"unique": ()}, "unique must name 1 to 32 arguments, not 0"),
    ({"unique": 1}, "unique must be True"),
    ({"unique": ("a b",)}, "unique must name arguments, not 'a b'"),
    ({"unique": ("user_id", "user_id")}, "unique names an argument twice"),
    ({"unique": ("user",)}, "unique names 'user', which task mail does not take; it takes user_id, text"),
    ({"unique": True, "unique_key": "k"}, "give either unique"),
    ({"unique": True, "unique_until": "started"}, "unique_until must be one of finished, claimed; not 'started'"),
    ({"unique": True, "unique_until": None}, "unique_until must be one of"),
    ({"unique": True, "unique_for": 0}, "unique_for must be between"),
    ({"unique": True, "unique_for": float("nan")}, "unique_for must be between"),
    ({"unique": True, "unique_for": "3600"}, "unique_for must be a number of seconds, not str"),
    ({"unique": True, "unique_for": 60, "unique_until": "claimed"}, "give either unique_for"),
    ({"unique": True, "on_conflict": "ignore"}, "on_conflict must be one of keep, .*; not 'ignore'"),
    ({"on_conflict": "raise"}, "on_conflict needs a key"),
    ({"unique_for": 60}, "unique_for needs a key"),
    ({"unique_until": "claimed"}, "unique_until needs a key"),
    ({"unique": True, "on_conflict": "debounce", "debounce_for": 0}, "debounce_for must be between"),
    ({"unique": True, "debounce_for": 9}, "debounce_for goes with on_conflict='debounce' alone"),
]


def refused(mail: Task[..., Any], options: dict[str, Any]) -> None:
    """As a decorator's, where one is given beside another; else as a call's, where the later word counts."""
    if {"unique", "unique_key"} <= options.keys():
        Options(**options)
    mail.options(**options)


@pytest.mark.parametrize(("options", "said"), BAD, ids=str)
def test_a_bad_value_is_refused_in_one_line_that_names_the_field(
    options: dict[str, Any], said: str, mail: Task[..., Any], app: PgQueue
) -> None:
    with pytest.raises(InvalidOption, match=said) as caught:
        refused(mail, options)
    assert "\n" not in str(caught.value)


def test_a_task_with_a_schedule_is_not_unique(app: PgQueue) -> None:
    with pytest.raises(InvalidOption, match="a task with a schedule cannot be unique"):
        app.task(name="tick", every=60, unique=True)(lambda_free)


SQL_BAD = [
    (""" "unique" => '{*}', unique_key => 'k'""", "unique and unique_key are both given"),
    (""" "unique" => '{}'""", "unique must be 1 to 32 names"),
    (""" "unique" => '{*}', unique_until => 'x'""", "unique_until must be finished or claimed, not x"),
    (""" "unique" => '{*}', unique_for => 'NaN'""", "unique_for must be between"),
    (""" "unique" => '{*}', unique_for => 0""", "unique_for must be between"),
    (
        """ "unique" => '{*}', unique_for => 9, unique_until => 'claimed'""",
        "unique_for and unique_until are both given",
    ),
    (""" "unique" => '{*}', on_conflict => 'x'""", "on_conflict must be keep, .*, not x"),
    ("on_conflict => 'raise'", "on_conflict needs a key"),
    (""" "unique" => '{*}', on_conflict => 'debounce', debounce_for => 0""", "debounce_for must be between"),
    (""" "unique" => '{*}', debounce_for => 9""", "debounce_for goes with on_conflict => 'debounce' alone"),
    ("""args => '[1]', "unique" => '{a}'""", "unique goes by the names of arguments, so args must be a JSON object"),
    ("""args => '[1]', "unique" => '{*}'""", "unique goes by the names of arguments, so args must be a JSON object"),
]


@pytest.mark.parametrize(("options", "said"), SQL_BAD, ids=str)
def test_sql_refuses_a_bad_value_with_a_state_and_a_hint(options: str, said: str, connection: Look) -> None:
    with pytest.raises(psycopg.Error, match=said) as caught:
        connection.execute(f"select pgqueue.enqueue('mail', {options})".encode())
    assert caught.value.sqlstate == "PQ001"
    assert caught.value.diag.message_hint


@pytest.mark.parametrize("scope", SCOPES)
def test_sql_and_python_hold_the_same_keys_and_do_the_same_on_a_conflict(
    scope: str, mail: Task[..., Any], connection: Look
) -> None:
    options = {"finished": "", "claimed": ", unique_until => 'claimed'", "period": ", unique_for => 3600"}[scope]

    def sql(text: str, way: str, run_at: str = "null") -> int:
        args = f'{{"user_id": 1, "text": "{text}"}}'
        query = (
            f"select pgqueue.enqueue('mail', '{args}', \"unique\" => '{{user_id}}', on_conflict => '{way}',"
            f" run_at => {run_at}{options})"
        )
        return connection.execute(query.encode()).fetchall()[0][0]  # type: ignore[no-any-return]

    first = sql("first", "keep")
    unique = mail.options(unique=("user_id",), **SCOPES[scope])
    assert unique.enqueue(connection, 1, "x").id == first
    assert sql("second", "replace_args") == first
    assert jobs(connection) == [(first, {"user_id": 1, "text": "second"})]
    assert sql("third", "debounce", "now() + interval '1 hour'") == first
    assert connection.execute(
        "select args ->> 'text', run_at > now() + interval '59 min' from pgqueue.jobs"
    ).fetchall() == [("third", True)]
    assert sql("fourth", "replace") == first
    assert connection.execute("select args ->> 'text', run_at <= now() from pgqueue.jobs").fetchall() == [
        ("fourth", True)
    ]
    with pytest.raises(psycopg.Error, match=f"job {first} holds the unique key") as caught:
        sql("fifth", "raise")
    assert caught.value.sqlstate == "PQ002"


def test_a_job_that_is_not_unique_has_no_key(mail: Task[..., Any], connection: Look) -> None:
    job: Job = mail.enqueue(connection, 1)
    assert job.unique_key is None
    assert connection.execute("select unique_key, queued_key from pgqueue.jobs").fetchall() == [(None, None)]
