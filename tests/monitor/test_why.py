"""why(): each thing that can keep a job from running is named, and named first when it is what keeps this one; what
became of a job that ended; what a role sees that may not read errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from pgqueue import InvalidOption, PgQueue, db
from pgqueue.enqueue import NewJob, Options
from pgqueue.monitor import Cause
from tests.cli.conftest import Run
from tests.helpers import job_in, run, worker_row
from tests.monitor.test_views import granted_to_watch
from tests.roles import new_role

Look = psycopg.Connection[Any]


@pytest.fixture
def enqueue(app: PgQueue) -> Callable[..., int]:
    return lambda task="shop.send", **options: app.enqueue_alone(NewJob(task, "{}", Options(**options))).id


@pytest.fixture
def worker(app: PgQueue, connection: Look) -> Callable[..., UUID]:
    """A live worker; columns of its row as given."""

    def make(*tasks: str, **columns: Any) -> UUID:
        made = worker_row(app, connection, list(tasks) or ["shop.send"])
        for name, value in columns.items():
            connection.execute(f"update pgqueue.workers set {name} = %s where id = %s", [value, made])
        return made

    return make


@pytest.fixture
def why(app: PgQueue) -> Callable[[int], tuple[list[str], str]]:
    """(every cause, the sentence), after a look at the shape of it."""

    def ask(job_id: int) -> tuple[list[str], str]:
        found = app.jobs.why(job_id)
        assert all(isinstance(one, Cause) and one.detail.isprintable() for one in found)
        assert all(one.since is None or one.since.tzinfo is not None for one in found)
        sentence = found[0].detail
        assert sentence.startswith((f"job {job_id} (", f"job {job_id} has ", "there is no job"))
        return [one.cause for one in found], sentence

    return ask


Enqueue, Worker, Why = Callable[..., int], Callable[..., UUID], Callable[[int], tuple[list[str], str]]


# -- a job that waits --------------------------------------------------------------------------------------------------


def test_a_job_that_nothing_holds_back_is_ready_and_told_how_many_are_ahead(
    enqueue: Enqueue, worker: Worker, why: Why
) -> None:
    worker(concurrency=2)
    enqueue("shop.send")
    enqueue("shop.other")  # which nobody knows, so nobody will take it first
    job_id = enqueue("shop.send")
    assert why(job_id) == (
        ["ready"],
        f"job {job_id} (shop.send, queue default) is not running: it is due, with 1 job ahead of it; 2 of the 2 slots"
        " that could run it are free: it starts with one of the next polls",
    )


def test_a_scheduled_job_waits_for_its_time_whatever_else_there_is(
    enqueue: Enqueue, worker: Worker, why: Why, connection: Look
) -> None:
    worker(concurrency=1)
    job_id = enqueue(run_at=datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC))
    causes, sentence = why(job_id)
    assert causes == ["scheduled"]
    assert ": it is scheduled for 2031-05-06 07:08:09 UTC, in " in sentence
    connection.execute(
        "insert into pgqueue.queues (name, paused, paused_at, paused_by) values ('default', true, now(), 'ada')"
    )
    connection.execute("delete from pgqueue.workers")
    assert why(job_id)[0] == ["scheduled", "paused", "no_worker"]


def test_a_paused_queue_is_named_with_who_paused_it_and_since_when(
    app: PgQueue, enqueue: Enqueue, worker: Worker, why: Why, connection: Look
) -> None:
    worker()
    job_id = enqueue(queue="email")
    connection.execute(
        "insert into pgqueue.queues (name, paused, paused_at, paused_by)"
        " values ('email', true, '2026-01-02 03:04:05Z', 'ada')"
    )
    assert why(job_id) == (
        ["paused"],
        f"job {job_id} (shop.send, queue email) is not running: queue email is paused by ada since"
        " 2026-01-02 03:04:05 UTC",
    )
    assert app.jobs.why(job_id)[0].since == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    connection.execute("update pgqueue.queues set paused_at = null, paused_by = null")
    assert why(job_id)[1].endswith(": queue email is paused")
    connection.execute("update pgqueue.queues set paused = false")
    assert why(job_id)[0] == ["ready"]


def test_without_a_live_worker_there_is_none_and_one_whose_lease_has_ended_is_none(
    app: PgQueue, enqueue: Enqueue, worker: Worker, why: Why, connection: Look
) -> None:
    job_id = enqueue()
    ended = datetime.now(UTC) - timedelta(seconds=5)
    worker(expires_at=ended)
    causes, sentence = why(job_id)
    assert (causes, sentence) == (
        ["no_worker"], f"job {job_id} (shop.send, queue default) is not running: no worker is alive"
    )  # fmt: skip
    assert app.jobs.why(job_id)[0].since == ended
    connection.execute("delete from pgqueue.workers")
    assert app.jobs.why(job_id)[0].since is None


def test_a_queue_that_nobody_serves_is_named_with_those_that_are_served_and_the_one_that_was_meant(
    app: PgQueue, enqueue: Enqueue, worker: Worker, why: Why
) -> None:
    job_id = enqueue(queue="emial")
    worker(queues=["email", "slow"])
    worker("shop.charge", queues=["payments"])
    causes, sentence = why(job_id)
    assert causes == ["no_worker", "near", "near"]
    assert sentence.endswith(": no live worker serves queue emial: the 2 that are alive serve email, payments, slow")
    assert [one.detail for one in app.jobs.why(job_id)[1:]] == [
        "worker test:1 knows the task, and serves only email, slow",
        "a live worker serves queue email, which is nearly emial",
    ]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("shop.sned", "shop.send"),
        ("shop.Send", "shop.send"),
        ("shop.sends2", "shop.send"),
        ("shop.tasks.send", "shop.send"),
        ("shop.resend", "shop.send"),
        ("shop.sent", "shop.send"),
    ],
)
def test_a_task_that_nobody_knows_is_named_with_the_one_that_was_meant(
    app: PgQueue, enqueue: Enqueue, worker: Worker, why: Why, asked: str, meant: str
) -> None:
    job_id = enqueue(asked)
    worker(meant, "quite.another", "shop.charge")
    causes, sentence = why(job_id)
    assert causes == ["unknown_task", "near"]
    assert sentence.endswith(f": the only live worker that serves queue default knows no task {asked}")
    assert app.jobs.why(job_id)[1].detail == f"a live worker knows task {meant}, which is nearly {asked}"


def test_a_task_is_not_taken_for_one_that_is_three_letters_away(enqueue: Enqueue, worker: Worker, why: Why) -> None:
    worker("shop.senders", "shop.xyz", "s")
    worker("other")
    causes, sentence = why(enqueue("shop.send"))
    assert causes == ["unknown_task"]
    assert sentence.endswith(": none of the 2 live workers that serve queue default knows task shop.send")


def test_workers_of_several_versions_are_named_with_how_many_know_the_task(
    app: PgQueue, enqueue: Enqueue, worker: Worker, why: Why
) -> None:
    """As in the middle of a deployment: the application is new already, most of the workers are not."""
    job_id = enqueue("shop.new")
    worker("shop.old", version="0.1.0")
    worker("shop.old", version="0.1.0")
    assert why(job_id)[0] == ["unknown_task"]
    worker("shop.old", "shop.new", version="0.2.0", queues=["else"])
    assert why(job_id)[0] == ["unknown_task", "near", "versions"]
    assert app.jobs.why(job_id)[-1].detail == (
        "live workers run different versions: 0.1.0 on 2 of which 0 know the task, 0.2.0 on 1 of which 1 know the task"
    )


def test_a_worker_that_stops_takes_nothing_more(enqueue: Enqueue, worker: Worker, why: Why) -> None:
    job_id = enqueue()
    worker(stopping=True)
    assert why(job_id)[1].endswith(": the only live worker that would run it is stopping")
    worker(stopping=True)
    assert why(job_id)[0] == ["stopping"]
    assert why(job_id)[1].endswith(": all 2 live workers that would run it are stopping")


def test_busy_slots_are_told_with_how_many_jobs_are_ahead(
    app: PgQueue, enqueue: Enqueue, worker: Worker, why: Why, connection: Look
) -> None:
    busy = worker(concurrency=2)
    enqueue(), enqueue()
    assert len(run(connection, db.claim(app.statements, busy, ["shop.send"], None, 2))) == 2
    first = enqueue()
    low = enqueue(priority=-1)
    enqueue(delay=3600)
    high = enqueue(priority=5)
    assert why(high) == (
        ["busy"],
        f"job {high} (shop.send, queue default) is not running: all 2 slots that could run it are busy, and nothing is"
        " ahead of it",
    )
    assert why(first)[1].endswith(", and 1 job is ahead of it")
    assert why(low)[1].endswith(", and 2 jobs are ahead of it")
    worker("shop.charge", concurrency=50)  # whose slots are of no use to it
    enqueue("shop.charge", priority=9)
    assert why(low)[1].endswith(", and 3 jobs are ahead of it")
    # What is paused, or may not start any more, is not ahead of anything.
    connection.execute("insert into pgqueue.paused_tasks (task) values ('shop.charge')")
    assert why(low)[1].endswith(", and 2 jobs are ahead of it")
    connection.execute("update pgqueue.paused_tasks set paused_until = now()")  # it is no more
    assert why(low)[1].endswith(", and 3 jobs are ahead of it")
    connection.execute("update pgqueue.jobs set expires_at = now() where task = 'shop.charge' or id = %s", [high])
    assert why(low)[1].endswith(", and 1 job is ahead of it")
    assert why(low)[0] == ["busy"]
    worker(concurrency=1)
    assert why(low)[0] == ["ready"]


def test_a_retry_is_held_back_by_the_error_of_the_attempt_before(
    app: PgQueue, worker: Worker, why: Why, connection: Look
) -> None:
    job_id = job_in(app, connection, "queued", "shop.send")
    holder = worker()
    (claim,) = run(connection, db.claim(app.statements, holder, ["shop.send"], None, 1))
    error = "SMTPError: no such\nsecond line"
    run(connection, db.retry(app.statements, holder, [job_id], [claim.fence], [60.0], [error], [None]))
    causes, sentence = why(job_id)
    assert causes == ["backoff"]
    start = f"job {job_id} (shop.send, queue default) is not running: attempt 1 of 4 failed with SMTPError: no such"
    assert sentence.startswith(f"{start}, and the next is due at ")
    (failed,) = connection.execute("select at from pgqueue.job_errors").fetchone() or ()
    assert app.jobs.why(job_id)[0].since == failed
    run(connection, db.retry_now(app.statements, [job_id]))
    assert why(job_id)[0] == ["ready"]


def test_a_snoozed_job_is_due_again_later(app: PgQueue, worker: Worker, why: Why, connection: Look) -> None:
    job_id = job_in(app, connection, "queued", "shop.send")
    holder = worker()
    (claim,) = run(connection, db.claim(app.statements, holder, ["shop.send"], None, 1))
    run(connection, db.give_back(app.statements, holder, [job_id], [claim.fence], [60.0]))
    causes, sentence = why(job_id)
    assert causes == ["snoozed"]
    assert ": it was started before and given back, and is due at " in sentence
    assert app.jobs.change(job_id, delay=3600)  # which is no snooze, and leaves no other trace
    assert ": it was started before and given back, and is due at " in why(job_id)[1]


def test_a_job_that_was_redriven_for_later_is_scheduled_and_has_not_been_given_back(
    app: PgQueue, worker: Worker, why: Why, connection: Look
) -> None:
    job_id = job_in(app, connection, "dead", "shop.send")
    connection.execute("delete from pgqueue.workers")
    worker()
    assert app.dead.redrive(job_id)
    assert why(job_id)[0] == ["ready"]
    assert app.jobs.change(job_id, delay=3600)
    causes, sentence = why(job_id)
    assert causes == ["scheduled"]
    assert ": it is scheduled for " in sentence


def test_a_suspect_waits_to_run_alone(enqueue: Enqueue, worker: Worker, why: Why, connection: Look) -> None:
    job_id = enqueue()
    worker()
    connection.execute("update pgqueue.jobs set crashes = 2")
    causes, sentence = why(job_id)
    assert causes == ["suspect"]
    assert sentence.endswith(": its process died 2 times under it, so it waits to run alone, in a process of its own")


def test_a_blocked_job_is_told_of(app: PgQueue, worker: Worker, why: Why, connection: Look) -> None:
    worker()
    assert why(job_in(app, connection, "blocked", "shop.send"))[0] == ["blocked"]


def test_a_job_that_expires_soon_is_told_when_and_one_that_has_expired_waits_for_the_sweep(
    app: PgQueue, enqueue: Enqueue, worker: Worker, why: Why, connection: Look
) -> None:
    job_id = enqueue(expires_in=3600)
    worker(concurrency=1)
    assert why(job_id)[0] == ["ready", "expires"]
    assert app.jobs.why(job_id)[1].detail.startswith("unless it starts by ")
    connection.execute("update pgqueue.jobs set expires_at = '2026-01-02 03:04:05Z'")
    causes, sentence = why(job_id)
    assert causes == ["expired"]
    assert ": it was not started by 2026-01-02 03:04:05 UTC and may not start any more; the next sweep" in sentence


def test_the_weightiest_of_several_causes_comes_first(
    enqueue: Enqueue, worker: Worker, why: Why, connection: Look
) -> None:
    job_id = enqueue("shop.sned", delay=60, expires_in=60)
    worker(version="1")
    worker("shop.charge", version="2")
    connection.execute("insert into pgqueue.queues (name, paused) values ('default', true)")
    assert why(job_id)[0] == ["scheduled", "paused", "unknown_task", "near", "versions", "expires"]


# -- a job that runs, or has ended -------------------------------------------------------------------------------------


def test_a_running_job_is_with_a_worker_or_with_one_that_is_gone(
    app: PgQueue, why: Why, worker: Worker, connection: Look
) -> None:
    job_id = job_in(app, connection, "running", "shop.send")
    causes, sentence = why(job_id)
    assert causes == ["running"]
    start = f"job {job_id} (shop.send, queue default) is running: worker test:1 has been running it for 00:00:0"
    assert sentence.startswith(start)
    assert ", attempt 1 of 4, and holds it until " in sentence
    connection.execute("update pgqueue.workers set expires_at = now() - interval '1 s'")
    assert why(job_id)[1].endswith(": its worker is gone, and no other is alive that could give it back")
    worker("shop.charge")
    assert why(job_id)[0] == ["lost"]
    connection.execute("delete from pgqueue.workers where expires_at < now()")
    assert why(job_id)[1].endswith(": its worker is gone, and the next sweep of another gives it back, within seconds")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("completed", "completed in attempt 1 of 4 at 20"),
        ("cancelled", "was cancelled at 20"),
        ("expired", "was not started in time and expired at 20"),
        ("dead", "is dead, all 4 attempts used up, at 20"),
    ],
)
def test_of_a_job_that_has_ended_it_says_how_and_when(
    app: PgQueue, why: Why, connection: Look, state: str, says: str
) -> None:
    job_id = job_in(app, connection, state, "shop.send")
    causes, sentence = why(job_id)
    assert causes == [state]
    assert sentence.startswith(f"job {job_id} (shop.send, queue default) {says}")
    assert sentence.endswith({"dead": ": Boom: no", "cancelled": ": because"}.get(state, " UTC"))
    assert app.jobs.why(job_id)[0].since == app.jobs.get(job_id).finished_at


def test_a_job_that_never_was_is_unknown_and_one_that_is_kept_no_longer_was_there(
    app: PgQueue, enqueue: Enqueue, why: Why, connection: Look
) -> None:
    assert why(1) == (["unknown"], "there is no job 1")
    ended = job_in(app, connection, "completed")
    connection.execute("delete from pgqueue.finished_jobs")
    causes, sentence = why(ended)
    assert causes == ["pruned"]
    assert sentence.startswith(f"job {ended} has ended and is kept no longer, or its enqueue was rolled back")
    for never in (ended + 1, 0, -1):
        assert why(never) == (["unknown"], f"there is no job {never}, the newest is {ended}")
    assert why(2**63) == (["unknown"], f"there is no job {2**63}")
    with pytest.raises(InvalidOption, match="job_id must be a whole number"):
        app.jobs.why(True)
    assert connection.execute("select cause from pgqueue.why(null)").fetchall() == [("unknown",)]


# -- who asks ----------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_sentence_and_then_all_causes(
    on: Run, app: PgQueue, enqueue: Enqueue, connection: Look
) -> None:
    job_id = enqueue("shop.send", queue="email")
    connection.execute(
        "insert into pgqueue.queues (name, paused, paused_at, paused_by) values ('email', true, now(), E'a\\x1b[2Jda')"
    )
    first, empty, head, _, *rest = on("why", str(job_id)).stdout.splitlines()
    assert first.startswith(f"job {job_id} (shop.send, queue email) is not running: queue email is paused by a")
    assert first.isprintable()
    assert (empty, head.split()) == ("", ["cause", "since", "detail"])
    assert [line.split()[0] for line in rest if line[:1] != " "][:2] == ["paused", "no_worker"]
    found = json.loads(on("why", str(job_id), "--json").stdout)
    assert (found["id"], [one["cause"] for one in found["causes"]]) == (job_id, ["paused", "no_worker"])
    assert found["sentence"] == found["causes"][0]["detail"]
    assert on("why", "99", code=1).stderr == f"pgqueue: there is no job 99, the newest is {job_id}\n"
    assert json.loads(on("why", "99", "--json", code=1).stdout)["causes"][0]["cause"] == "unknown"


def test_a_role_that_may_not_read_errors_is_told_the_cause_without_their_texts(
    app: PgQueue, worker: Worker, connection: Look, pgqueue_database: str
) -> None:
    dead = job_in(app, connection, "dead", "shop.send")
    retrying = job_in(app, connection, "queued", "shop.send")
    holder = worker()
    (claim,) = run(connection, db.claim(app.statements, holder, ["shop.send"], None, 1))
    run(connection, db.retry(app.statements, holder, [retrying], [claim.fence], [60.0], ["Boom: x"], [None]))
    with new_role(pgqueue_database) as role:
        granted_to_watch(connection, role)
        with psycopg.connect(pgqueue_database, user=role, autocommit=True) as theirs:
            for job_id, cause in ((dead, "dead"), (retrying, "backoff"), (retrying + 1, "unknown")):
                found = theirs.execute("select cause, detail from pgqueue.why(%s)", [job_id]).fetchall()
                assert [one[0] for one in found] == [cause]
                assert "Boom" not in repr(found)
                assert ("Boom" in app.jobs.why(job_id)[0].detail) is (cause != "unknown")


def test_a_role_that_lacks_a_right_is_told_the_grant(enqueue: Enqueue, pgqueue_database: str) -> None:
    enqueue()
    rights = ("usage on schema pgqueue", "execute on function pgqueue.why", "select on pgqueue.alembic_version")
    with new_role(pgqueue_database, *rights) as role:
        with (
            psycopg.connect(pgqueue_database, user=role, autocommit=True) as theirs,
            pytest.raises(psycopg.errors.InsufficientPrivilege) as caught,
        ):
            theirs.execute("select * from pgqueue.why(1)")
        assert caught.value.diag.message_hint == f"GRANT SELECT ON pgqueue.jobs TO {role}"


@pytest.mark.parametrize(
    ("table", "granted", "hint"),
    [
        ("jobs", "id, args", "task, queue, priority, state, run_at, attempt, max_attempts, fence, crashes, created_at,"
            " started_at, worker_id, expires_at, cancelling"),
        ("job_errors", "error", "job_id, fence, attempt, at"),
        ("queues", "name, paused, paused_at, paused_by", "paused_until"),
    ],
)  # fmt: skip
def test_a_role_with_rights_on_other_columns_is_told_those_that_it_lacks(
    enqueue: Enqueue, pgqueue_database: str, connection: Look, table: str, granted: str, hint: str
) -> None:
    job_id = enqueue()
    with new_role(pgqueue_database) as role:
        granted_to_watch(connection, role)
        connection.execute(f"revoke select on pgqueue.{table} from {role}")
        columns = "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped"
        every = ", ".join(row[0] for row in connection.execute(columns, [f"pgqueue.{table}"]))
        connection.execute(f"revoke select ({every}) on pgqueue.{table} from {role}")
        connection.execute(f"grant select ({granted}) on pgqueue.{table} to {role}")
        with psycopg.connect(pgqueue_database, user=role, autocommit=True) as theirs:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="may not ask why") as caught:
                theirs.execute("select * from pgqueue.why(%s)", [job_id])
            assert caught.value.diag.message_hint == f"GRANT SELECT ({hint}) ON pgqueue.{table} TO {role}"
            connection.execute(str(caught.value.diag.message_hint).encode())
            assert theirs.execute("select cause from pgqueue.why(%s)", [job_id]).fetchall() == [("no_worker",)]
