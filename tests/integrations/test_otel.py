"""OpenTelemetry: the trace of a job goes from its enqueue to each of its runs, and holds none of its arguments."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from opentelemetry import baggage
from opentelemetry import context as carried
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from sqlalchemy.exc import StatementError

from pgqueue import Cancel, ConfigurationError, Context, DeadLetter, PgQueue, RetryLater, RetryPolicy, Snooze, db
from pgqueue.drivers import perform_either
from pgqueue.enqueue import NewJob, Options
from pgqueue.events import Event
from pgqueue.integrations import otel
from pgqueue.job import DeadReason
from pgqueue.settings import MAX_ARGS_BYTES
from tests.helpers import eventually, run, worker_row
from tests.worker import in_processes

Look = psycopg.Connection[Any]
CANARY = "s3cr3t-canary"
AT_ONCE = RetryPolicy(delay=0)


class Seen:
    """What was exported: spans in the order of their ends, and the points of the metrics."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def spans(self, verb: str) -> list[ReadableSpan]:
        return [one for one in self.exporter.get_finished_spans() if one.name.partition(" ")[0] == verb]

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def seen(app: PgQueue) -> Iterator[Seen]:
    made = Seen()
    otel.instrument(app, made.tracers, made.meters)
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


def processed(seen: Seen, number: int = 1) -> list[ReadableSpan]:
    """So many spans of attempts, once they are there."""
    eventually(lambda: len(seen.spans("process")) >= number)
    found = seen.spans("process")
    assert len(found) == number
    return found


def link(span: ReadableSpan) -> tuple[int, int] | None:
    """What a span is linked to."""
    if not span.links:
        return None
    (one,) = span.links
    return one.context.trace_id, one.context.span_id


def identity(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_attempt_is_a_span_linked_to_that_of_its_enqueue(
    app: PgQueue, connection: Look, work: Any, seen: Seen, kind: str
) -> None:
    inside = []

    def look(secret: str) -> str:
        inside.append(identity(get_current_span()))  # type: ignore[arg-type]
        return secret

    async def look_on_the_loop(secret: str) -> str:
        await asyncio.sleep(0)
        return look(secret)

    task: Any = app.task(name="shop.look", queue="mail")(look if kind == "def" else look_on_the_loop)
    with seen.tracers.get_tracer("test").start_as_current_span("GET /") as request:
        job = task.enqueue(connection, CANARY)
    work()
    (sent,) = seen.spans("send")
    (span,) = processed(seen)
    assert (sent.name, sent.kind, sent.parent) == ("send mail", SpanKind.PRODUCER, request.get_span_context())
    assert dict(sent.attributes or {}) == {
        "messaging.system": "pgqueue",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "mail",
        "messaging.message.id": str(job.id),
        "pgqueue.task": "shop.look",
    }
    assert (span.name, span.kind, span.parent) == ("process mail", SpanKind.CONSUMER, None)
    assert dict(span.attributes or {}) == {
        "messaging.system": "pgqueue",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "mail",
        "messaging.message.id": str(job.id),
        "pgqueue.task": "shop.look",
        "pgqueue.attempt": 1,
    }
    assert link(span) == identity(sent)
    assert span.context.trace_id != sent.context.trace_id
    assert inside == [identity(span)]
    assert span.status.status_code is sent.status.status_code is StatusCode.UNSET
    everything = "".join(one.to_json() for one in seen.exporter.get_finished_spans())
    assert CANARY not in everything
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.schema_url == otel.CONVENTIONS


def test_it_may_be_one_trace_instead(app: PgQueue, connection: Look, work: Any) -> None:
    seen = Seen()
    otel.instrument(app, seen.tracers, seen.meters, same_trace=True)
    app.task(name="shop.look")(in_processes.plain).enqueue(connection)
    work()
    (sent,), (span,) = seen.spans("send"), processed(seen)
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == identity(sent)
    assert span.context.trace_id == sent.context.trace_id
    assert not span.links


def test_the_context_stays_with_the_job_through_retry_redrive_and_rescue(
    app: PgQueue, connection: Look, drain: Any, seen: Seen
) -> None:
    fails = [True, True, False]

    @app.task(name="shop.try", max_attempts=2, retry=AT_ONCE, meta={"mine": 1})
    def try_() -> None:
        if fails and fails.pop(0):
            raise ValueError("no")

    job = try_.enqueue(connection)
    drain()
    assert app.jobs.get(job.id).state == "dead"
    assert app.dead.redrive(job.id) == [job.id]
    vanished = worker_row(app, connection, ["shop.try"])
    run(connection, db.claim(app.statements, vanished, ["shop.try"], None, 1))
    run(connection, db.rescue(app.statements, [vanished], crashed=False, why="gone", max_crashes=3))
    drain()
    assert app.jobs.get(job.id).state == "completed"
    (sent,) = seen.spans("send")
    spans = processed(seen, 3)
    assert [link(span) for span in spans] == [identity(sent)] * 3
    assert [span.attributes["pgqueue.attempt"] for span in spans if span.attributes] == [1, 2, 1]
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    assert app.jobs.get(job.id).meta["mine"] == 1  # type: ignore[index]


def test_a_batch_is_one_span_whose_context_all_its_jobs_carry_and_is_sent_as_one_text_as_without(
    app: PgQueue, connection: Look, drain: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, alike = db.enqueue_alike, []
    monkeypatch.setattr(db, "enqueue_alike", lambda sql, row: (alike.append(row), quick(sql, row))[1])

    @app.task(name="shop.number", queue="numbers")
    def number(n: int) -> None: ...

    @app.task(name="shop.other")
    def other() -> None: ...

    ids = number.enqueue_many(connection, [(n,) for n in range(50)])
    assert len(alike) == 1
    (sent,) = seen.spans("send")
    assert (sent.name, sent.kind) == ("send numbers", SpanKind.PRODUCER)
    assert (sent.attributes or {})["messaging.batch.message_count"] == 50
    assert "messaging.message.id" not in (sent.attributes or {})
    ids += app.enqueue_many(connection, [number.job(1), other.job(), number.job(2)])
    *_, mixed = seen.spans("send")
    assert mixed.name == "send"
    assert (mixed.attributes or {})["messaging.batch.message_count"] == 3
    drain()
    links = {int(str((one.attributes or {})["messaging.message.id"])): link(one) for one in processed(seen, 53)}
    assert links == dict.fromkeys(ids[:50], identity(sent)) | dict.fromkeys(ids[50:], identity(mixed))
    assert app.enqueue_many(connection, []) == []
    assert len(seen.spans("send")) == 2  # nothing was sent


def test_each_way_of_enqueueing_is_a_span(app: PgQueue, connection: Look, seen: Seen, pgqueue_database: str) -> None:
    @app.task(name="shop.it")
    def it() -> None: ...

    async def awaited() -> None:
        async with await psycopg.AsyncConnection.connect(pgqueue_database, autocommit=True) as raw:
            await it.enqueue(raw)
            it.enqueue(raw).close()  # nobody awaits it
            await it.enqueue_many(raw, [()])
            await app.enqueue_many(raw, [it.job()])
            assert get_current_span().get_span_context().span_id == 0
        await it.delay_async()
        await app.close_async()

    it.enqueue(connection)
    it.enqueue_many(connection, [()])
    it.delay()
    app.enqueue_many(connection, [it.job()])
    assert get_current_span().get_span_context().span_id == 0
    asyncio.run(awaited())
    stored = connection.execute("select meta from pgqueue.jobs order by id").fetchall()
    spans = [f"{one.context.trace_id:032x}-{one.context.span_id:016x}" for one in seen.spans("send")]
    assert [meta["$otel"]["traceparent"][3:-3] for (meta,) in stored] == spans
    assert len(spans) == 8


def test_an_enqueue_that_fails_ends_its_span_with_the_error_and_one_rolled_back_has_no_run(
    app: PgQueue, connection: Look, drain: Any, seen: Seen, pgqueue_database: str
) -> None:
    @app.task(name="shop.it")
    def it(n: int) -> None: ...

    def breaks() -> Iterator[tuple[int]]:
        yield (1,)
        raise LookupError(CANARY.upper())

    with psycopg.connect(pgqueue_database) as mine:
        it.enqueue(mine, 1)
        mine.rollback()
    with pytest.raises(LookupError):
        it.enqueue_many(connection, breaks())
    connection.execute("alter table pgqueue.jobs rename to away")
    with pytest.raises(Exception, match="pgqueue migrate"):
        it.enqueue(connection, 1)
    connection.execute("alter table pgqueue.away rename to jobs")
    drain()
    assert seen.spans("process") == []
    assert [one.status.status_code for one in seen.spans("send")] == [
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.ERROR,
    ]
    errors = [(one.attributes or {}).get("error.type") for one in seen.spans("send")]
    assert errors == [None, "LookupError", "pgqueue.errors.SchemaError"]
    assert get_current_span().get_span_context().span_id == 0


@pytest.mark.parametrize(
    ("error", "steer"),
    [(RetryLater(60), "RetryLater"), (Snooze(60), "Snooze"), (Cancel("no"), "Cancel")],
    ids=["RetryLater", "Snooze", "Cancel"],
)
def test_a_job_that_steers_has_not_failed(
    app: PgQueue, connection: Look, work: Any, seen: Seen, error: Exception, steer: str
) -> None:
    @app.task(name="shop.steer")
    def steer_() -> None:
        raise error

    steer_.enqueue(connection)
    work()
    (span,) = processed(seen)
    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes or {})["pgqueue.steer"] == steer
    assert not span.events
    assert [dict(one.attributes).get("error.type") for one in seen.points("messaging.process.duration")] == [None]


class Card(Exception):
    pass


def test_an_error_is_on_the_span_as_it_is_stored_and_without_a_databases_details(
    app: PgQueue, connection: Look, work: Any, seen: Seen
) -> None:
    def of_the_database(secret: str) -> None:
        raise StatementError("it broke", "insert into cards", {"pan": secret}, ValueError("no"))

    def of_its_own(secret: str) -> None:
        raise Card("no such card")

    def for_good(secret: str) -> None:
        raise DeadLetter("for good")

    for function in (of_the_database, of_its_own, for_good):
        task: Any = app.task(name=f"shop.{function.__name__}", max_attempts=1)(function)
        task.enqueue(connection, CANARY)
    work()
    spans = {(one.attributes or {})["pgqueue.task"]: one for one in processed(seen, 3)}
    kinds = {task: (one.attributes or {})["error.type"] for task, one in spans.items()}
    assert kinds == {
        "shop.of_the_database": "sqlalchemy.exc.StatementError",
        "shop.of_its_own": f"{__name__}.Card",
        "shop.for_good": "pgqueue.errors.DeadLetter",
    }
    (event,) = spans["shop.of_its_own"].events
    assert event.name == "exception"
    said = dict(event.attributes or {})
    assert said["exception.message"].endswith("Card: no such card")
    assert "in of_its_own" in said["exception.stacktrace"]
    assert all(one.status.status_code is StatusCode.ERROR for one in spans.values())
    assert CANARY not in "".join(one.to_json() for one in seen.exporter.get_finished_spans())


def test_what_is_late_has_failed_however_it_ends_and_what_was_told_to_end_has_not(
    app: PgQueue, connection: Look, work: Any, seen: Seen
) -> None:
    began = threading.Event()

    @app.task(name="shop.late", timeout=0.05, max_attempts=1)
    def late(ctx: Context) -> None:
        while not ctx.cancelled:
            pass

    @app.task(name="shop.late_on_the_loop", timeout=0.05, max_attempts=1)
    async def late_on_the_loop() -> None:
        await asyncio.Event().wait()

    @app.task(name="shop.cancelled")
    async def cancelled() -> None:
        began.set()
        await asyncio.Event().wait()

    late.enqueue(connection)
    late_on_the_loop.enqueue(connection)
    work()
    job = cancelled.enqueue(connection)
    assert began.wait(10)
    app.jobs.cancel(job.id)
    spans = {(one.attributes or {})["pgqueue.task"]: one for one in processed(seen, 3)}
    for name in ("shop.late", "shop.late_on_the_loop"):
        assert spans[name].status.status_code is StatusCode.ERROR
        assert (spans[name].attributes or {})["error.type"] == "pgqueue.errors.TaskTimeout"
    told = spans["shop.cancelled"]
    assert told.status.status_code is StatusCode.UNSET
    assert (told.attributes or {})["pgqueue.interrupted"] is True


def test_a_job_that_sql_enqueued_begins_a_trace_whatever_is_in_its_meta_and_around_its_worker(
    app: PgQueue, connection: Look, seen: Seen
) -> None:
    @app.task(name="shop.it")
    def it() -> None: ...

    metas = [None, '{"$otel": 7}', '{"$otel": {"traceparent": 7}}', '{"$otel": {"traceparent": "rubbish"}}']
    for meta in metas:
        connection.execute("select pgqueue.enqueue('shop.it', '{}', meta => %s)", [meta])
    with seen.tracers.get_tracer("test").start_as_current_span("an application that works"):
        asyncio.run(app.worker(drain=True, poll_interval=0.05).run_async())
    spans = processed(seen, len(metas))
    assert [(span.parent, list(span.links)) for span in spans] == [(None, [])] * len(metas)
    assert seen.spans("send") == []


def test_baggage_goes_along_and_what_a_job_enqueues_belongs_to_its_span(
    app: PgQueue, connection: Look, work: Any, seen: Seen
) -> None:
    found = []

    @app.task(name="shop.below")
    def below() -> None: ...

    @app.task(name="shop.above")
    def above() -> None:
        found.append(baggage.get_baggage("tenant"))
        below.delay()

    token = carried.attach(baggage.set_baggage("tenant", "t7"))
    above.enqueue(connection)
    carried.detach(token)
    work()
    outer, inner = sorted(processed(seen, 2), key=lambda one: (one.attributes or {})["pgqueue.task"] == "shop.below")
    first, second = seen.spans("send")
    assert found == ["t7"]
    assert second.parent == outer.context
    assert (link(outer), link(inner)) == (identity(first), identity(second))


def test_the_metrics_count_what_was_sent_and_how_long_it_ran(
    app: PgQueue, connection: Look, drain: Any, seen: Seen
) -> None:
    @app.task(name="shop.it", queue="mail", max_attempts=1)
    def it(n: int) -> None:
        if n == 3:
            raise LookupError("three")

    it.enqueue(connection, 1)
    it.enqueue_many(connection, [(2,), (3,)])
    drain()
    (sent,) = seen.points("messaging.client.sent.messages")
    common = {"messaging.system": "pgqueue", "messaging.destination.name": "mail"}
    assert dict(sent.attributes) == {**common, "messaging.operation.name": "send"}
    assert sent.value == 3
    ran = {one.attributes.get("error.type"): one for one in seen.points("messaging.process.duration")}
    assert {error: one.count for error, one in ran.items()} == {None: 2, "LookupError": 1}
    assert dict(ran[None].attributes) == {
        **common,
        "messaging.operation.name": "process",
        "pgqueue.task": "shop.it",
    }
    assert 0 < ran[None].sum < 10
    assert ran[None].explicit_bounds[0] == 0.005


def test_an_attempt_that_no_middleware_saw_end_has_a_span_without_a_length(
    app: PgQueue, connection: Look, work: Any, seen: Seen
) -> None:
    @app.task(name="shop.number")
    def number(n: int) -> None: ...

    number.enqueue(connection, 1)
    (sent,) = seen.spans("send")
    connection.execute('update pgqueue.jobs set args = \'{"n": "x"}\'')
    work()
    (span,) = processed(seen)
    assert (span.status.status_code, (span.attributes or {})["error.type"]) == (
        StatusCode.ERROR,
        "pgqueue.errors.BadRow",
    )
    assert link(span) == identity(sent)


def test_no_job_is_refused_for_being_traced(app: PgQueue, connection: Look, seen: Seen) -> None:
    full = {"text": "x" * (MAX_ARGS_BYTES - len('{"text": ""}'))}
    new = NewJob("shop.it", "{}", Options(meta=full))
    job = perform_either(connection, app.sender.one(app.statements, new, app.jobs))
    assert app.jobs.get(job.id).meta == full
    assert len(seen.spans("send")) == 1


def test_it_is_around_all_other_middleware_and_only_once(app: PgQueue, connection: Look, work: Any) -> None:
    seen, inside = Seen(), []

    @app.middleware
    def first(ctx: Context) -> Iterator[None]:
        inside.append(get_current_span().get_span_context())
        yield

    otel.instrument(app, seen.tracers, seen.meters)
    app.task(name="shop.it")(in_processes.plain).enqueue(connection)
    work()
    (span,) = processed(seen)
    assert inside == [span.context]
    with pytest.raises(ConfigurationError, match="instrumented already"):
        otel.instrument(app, seen.tracers)


def test_without_a_provider_everything_works_as_before(app: PgQueue, connection: Look, drain: Any) -> None:
    otel.instrument(app)
    job = app.task(name="shop.it")(in_processes.plain).enqueue(connection)
    drain()
    assert app.jobs.get(job.id).state == "completed"
    assert app.jobs.get(job.id).meta is None


def test_a_job_in_a_process_of_its_own_is_traced_there_and_the_process_leaves_nothing_behind(
    pgqueue_database: str, connection: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = tmp_path / "spans"
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", pgqueue_database)
    monkeypatch.setenv("TEST_SPANS", str(spans))
    from tests.integrations import traced

    traced.app.move(pgqueue_database, None)
    jobs = [traced.alone.options(priority=-1).delay().id, traced.endless.delay().id]  # what is killed exports no more
    traced.app.worker(drain=True, poll_interval=0.05, concurrency=1).run()
    found = [json.loads(line) for line in spans.read_text().splitlines()]
    by = {(one["attributes"]["messaging.message.id"], one["name"].partition(" ")[0]): one for one in found}
    assert sorted(by) == sorted((str(job), verb) for job in jobs for verb in ("send", "process"))
    for job in jobs:
        (to,) = by[str(job), "process"]["links"]
        assert to["context"]["span_id"] == by[str(job), "send"]["context"]["span_id"]
    killed = by[str(jobs[1]), "process"]
    assert killed["attributes"]["error.type"] == "pgqueue.errors.TaskTimeout"
    traced.app.close()


def test_each_crash_of_a_job_is_a_span_and_a_worker_that_vanished_tells_of_none(app: PgQueue, seen: Seen) -> None:
    @app.task(name="shop.it")
    def it() -> None: ...

    job = it.delay()
    (sent,) = seen.spans("send")

    async def crash() -> None:
        app.events.emit(Event("rescued", job))  # by a sweep
        app.events.emit(Event("rescued", job, "its process was killed by SIGKILL"))
        app.events.emit(Event("dead_lettered", job, "its process died", reason=DeadReason.CRASHED))
        await app.events.finish(5)

    asyncio.run(crash())
    spans = processed(seen, 2)
    assert [(one.attributes or {})["error.type"] for one in spans] == ["crashed"] * 2
    assert [link(one) for one in spans] == [identity(sent)] * 2


def test_a_collector_that_does_not_answer_holds_no_worker_up(app: PgQueue, drain: Any) -> None:
    began, release = threading.Event(), threading.Event()

    class Silent(TracerProvider):
        def force_flush(self, timeout_millis: int | None = None) -> bool:
            began.set()
            return release.wait(60)

    otel.instrument(app, Silent(shutdown_on_exit=False))
    drain()
    assert began.is_set()
    release.set()


def test_without_the_extra_the_import_names_it() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import pgqueue.integrations.otel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: pgqueue.integrations.otel needs the extra: pip install 'pgqueue-py[otel]'"
    )
