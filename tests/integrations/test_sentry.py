"""Sentry: one event a failure, with its stack, grouped by task, and none of the job's arguments in it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sentry_sdk
import sentry_sdk.scope
from sentry_sdk.transport import Transport
from sqlalchemy.exc import StatementError

from pgqueue import Cancel, ConfigurationError, Context, DeadLetter, PgQueue, RetryPolicy, Snooze
from pgqueue.events import Event
from pgqueue.integrations import sentry
from pgqueue.job import DeadReason
from tests.helpers import eventually
from tests.worker import in_processes

Look = psycopg.Connection[Any]
CANARY = "s3cr3t-canary"
AT_ONCE = RetryPolicy(delay=0)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The events that Sentry would have been sent, as JSON would have carried them."""
    events: list[dict[str, Any]] = []

    class Fake(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            events.append(json.loads(json.dumps(envelope.get_event(), default=str)))

    monkeypatch.setattr(sys, "argv", ["pgqueue", f"--database-url={CANARY}"])
    monkeypatch.setattr(sentry_sdk.scope, "_global_scope", None)
    sentry_sdk.init(
        "https://key@sentry.invalid/1", transport=Fake, auto_enabling_integrations=False, auto_session_tracking=False
    )
    yield events
    sentry_sdk.get_client().close()


def tags(event: dict[str, Any]) -> dict[str, str]:
    return dict(event["tags"])


def one(sent: list[dict[str, Any]], number: int = 1) -> list[dict[str, Any]]:
    eventually(lambda: len(sent) >= number, timeout=30)
    assert len(sent) == number, [event.get("message") or event.get("logentry") for event in sent]
    return sent


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(("when", "attempts"), [("dead", ["2"]), ("failed", ["1", "2"])])
def test_a_failure_is_one_event_with_the_stack_and_the_scope_of_its_job_and_without_its_arguments(
    app: PgQueue, connection: Look, drain: Any, sent: Any, kind: str, when: Any, attempts: list[str]
) -> None:
    sentry.instrument(app, when)

    def charge(secret: str, ctx: Context) -> None:
        held = secret  # noqa: F841  a local variable
        sentry_sdk.set_tag("tenant", "t7")
        ctx.log.warning("about to")
        raise LookupError("no such order")

    async def charge_on_the_loop(secret: str, ctx: Context) -> None:
        await asyncio.sleep(0)
        charge(secret, ctx)

    function: Any = charge if kind == "def" else charge_on_the_loop
    job = app.task(name="shop.charge", queue="pay", max_attempts=2, retry=AT_ONCE)(function).enqueue(connection, CANARY)
    drain()
    events = one(sent, len(attempts))
    assert sorted(tags(event)["attempt"] for event in events) == attempts
    for event in events:
        (error,) = event["exception"]["values"]
        assert (error["type"], error["value"]) == ("LookupError", "no such order")
        assert error["stacktrace"]["frames"][-1]["function"] == "charge"
        expected = {"queue": "pay", "task": "shop.charge", "job_id": str(job.id), "tenant": "t7"}
        assert expected.items() <= tags(event).items()
        assert (event["transaction"], event["fingerprint"]) == ("shop.charge", ["{{ default }}", "shop.charge"])
        assert "about to" in str(event["breadcrumbs"])
    assert tags(events[-1]).get("reason") == "attempts"
    assert CANARY not in json.dumps(events)


def test_what_steers_is_sent_only_when_it_is_dead(app: PgQueue, connection: Look, work: Any, sent: Any) -> None:
    sentry.instrument(app, "failed")

    @app.task(name="shop.steer")
    def steer_(how: str) -> None:
        raise {"snooze": Snooze(60), "cancel": Cancel("no"), "dead": DeadLetter("enough")}[how]

    for how in ("snooze", "cancel", "dead"):
        steer_.enqueue(connection, how)
    work()
    (event,) = one(sent)
    assert event["message"] == "enough"
    assert event["fingerprint"] == ["dead_letter", "shop.steer"]


def test_what_no_middleware_sees_is_grouped_by_task_and_reason(
    app: PgQueue, connection: Look, drain: Any, sent: Any
) -> None:
    sentry.instrument(app)

    @app.task(name="shop.late", timeout=0.05, max_attempts=1)
    def late(ctx: Context) -> None:
        while not ctx.cancelled:
            pass

    @app.task(name="shop.number")
    def number(n: int) -> None: ...

    late.enqueue(connection)
    connection.execute("select pgqueue.enqueue('shop.number', %s)", [json.dumps({"n": CANARY})])
    drain()
    job = number.delay(1)

    async def crash() -> None:
        app.events.emit(Event("dead_lettered", job, "its worker process died", reason=DeadReason.CRASHED))
        await app.events.finish(5)

    asyncio.run(crash())
    events = {event["fingerprint"][0]: event for event in one(sent, 3)}
    assert {why: event["fingerprint"][1] for why, event in events.items()} == {
        "timeout": "shop.late",
        "bad_row": "shop.number",
        "crashed": "shop.number",
    }
    assert events["timeout"]["exception"]["values"][0]["type"] == "TaskTimeout"
    assert events["crashed"]["message"] == "its worker process died"
    assert CANARY not in json.dumps(sent)


def test_an_error_of_another_process_comes_with_its_stack(
    app: PgQueue, connection: Look, drain: Any, sent: Any
) -> None:
    app.task(name="shop.alone", run_in="process", max_attempts=1)(in_processes.fail).enqueue(connection, "odd")
    # What instrument() does in the worker: an app that is not at the top of a module can have no middleware in another.
    app.on("dead_lettered")(sentry._send)
    sentry_sdk.get_global_scope().add_event_processor(sentry._logged)
    drain()
    (event,) = one(sent)
    (error,) = event["exception"]["values"]
    assert (error["type"], error["module"], error["value"]) == ("Odd", "tests.worker.in_processes", "it is odd (7)")
    assert error["stacktrace"]["frames"][-1]["function"] == "fail"
    assert error["stacktrace"]["frames"][-1]["context_line"] == 'raise Odd(7, "it is odd")'
    assert event["fingerprint"] == ["{{ default }}", "shop.alone"]


def test_a_databases_details_and_the_command_line_stay_here(
    app: PgQueue, connection: Look, drain: Any, sent: Any
) -> None:
    sentry.instrument(app)
    connection.execute("create table cards (pan text primary key)")

    @app.task(name="shop.of_sqlalchemy", max_attempts=1)
    def of_sqlalchemy(pan: str) -> None:
        raise StatementError("it broke", "insert into cards", {"pan": pan}, ValueError("no"))

    @app.task(name="shop.of_psycopg", max_attempts=1)
    def of_psycopg(pan: str) -> None:
        for _ in range(2):
            connection.execute("insert into cards values (%s)", [pan])

    of_sqlalchemy.enqueue(connection, CANARY)
    of_psycopg.enqueue(connection, CANARY)
    drain()
    values = {tags(event)["task"]: event["exception"]["values"][-1]["value"] for event in one(sent, 2)}
    assert "it broke" in values["shop.of_sqlalchemy"]
    assert values["shop.of_psycopg"] == 'duplicate key value violates unique constraint "cards_pkey"'
    assert CANARY not in json.dumps(sent)


def test_what_a_job_reports_itself_names_the_job_and_the_next_one_begins_afresh(
    app: PgQueue, connection: Look, drain: Any, sent: Any
) -> None:
    sentry.instrument(app)

    @app.task(name="shop.report")
    def report(secret: str) -> None:
        if secret == CANARY:
            sentry_sdk.set_tag("first", "yes")
        try:
            raise KeyError("caught")
        except KeyError:
            sentry_sdk.capture_exception()

    report.enqueue_many(connection, [(CANARY,), ("other",)])
    drain(concurrency=1)
    first, second = one(sent, 2)
    assert (tags(first)["task"], tags(first)["first"]) == ("shop.report", "yes")
    assert "first" not in tags(second)
    assert tags(first)["job_id"] != tags(second)["job_id"]
    assert CANARY not in json.dumps(sent)


def test_it_is_instrumented_once_and_for_what_there_is(app: PgQueue) -> None:
    with pytest.raises(ConfigurationError, match="when must be 'dead' or 'failed', not 'often'"):
        sentry.instrument(app, "often")  # type: ignore[arg-type]
    sentry.instrument(app)
    with pytest.raises(ConfigurationError, match="instrumented already"):
        sentry.instrument(app)


def test_without_the_extra_the_import_names_it() -> None:
    code = "import sys; sys.modules['sentry_sdk'] = None; import pgqueue.integrations.sentry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: pgqueue.integrations.sentry needs the extra: pip install 'pgqueue-py[sentry]'"
    )
