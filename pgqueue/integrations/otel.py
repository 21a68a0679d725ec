"""OpenTelemetry: a span for each enqueue and each attempt, which belong together, and two metrics. Extra `otel`.

    from pgqueue.integrations import otel
    otel.instrument(app)

The context of the enqueue travels with the job, as `meta["$otel"]`: through retries, rescues and redrives it stays, so
each attempt's span is linked to the span that sent the job. Names and attributes follow the semantic conventions for
messaging of version 1.44, which are in development there and may change here with a later one. No argument, no result.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

from pgqueue.app import PgQueue
from pgqueue.context import AppState, Context
from pgqueue.drivers import Steps
from pgqueue.enqueue import NewJob, Options, Sender
from pgqueue.errors import BadRow, ConfigurationError, DeadLetter, EnqueueError, Steer, TaskTimeout
from pgqueue.events import Event
from pgqueue.failure import describe, trace
from pgqueue.job import DeadReason, Job, Waits
from pgqueue.settings import VERSION
from pgqueue.sql import Statements
from pgqueue.worker.processes import Killed

try:
    from opentelemetry import context as carrying
    from opentelemetry import metrics, propagate
    from opentelemetry import trace as tracing
    from opentelemetry.context import Context as Carried
except ImportError:
    raise ImportError("pgqueue.integrations.otel needs the extra: pip install 'pgqueue-py[otel]'") from None

CONVENTIONS = "https://opentelemetry.io/schemas/1.44.0"
KEY = "$otel"  # in the meta of a job

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)  # bounds that they recommend
_FLUSH = 0.7  # seconds that a process which ends waits for what is not exported yet; that of a job has a second in all


def instrument(
    app: PgQueue,
    tracer_provider: tracing.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
    *,
    same_trace: bool = False,
) -> None:
    """Traces the app's enqueues and its jobs' attempts, from now on; the global providers by default.

    same_trace: an attempt's span is a child of the one that sent the job, so all of it is one trace, however long the
    job waits; by default it begins a trace of its own, with a link. Raises ConfigurationError the second time.
    """
    if isinstance(app.sender, Traced):
        raise ConfigurationError("this app is instrumented already: call otel.instrument(app) once")
    tracer = tracing.get_tracer("pgqueue", VERSION, tracer_provider, CONVENTIONS)
    meter = metrics.get_meter("pgqueue", VERSION, meter_provider, CONVENTIONS)
    sent = meter.create_counter(
        "messaging.client.sent.messages", "{message}", "Jobs that were to be enqueued, rolled-back ones among them."
    )
    duration = meter.create_histogram(
        "messaging.process.duration",
        "s",
        "How long attempts of jobs ran.",
        explicit_bucket_boundaries_advisory=_SECONDS,
    )
    app.sender = Traced(app.sender, tracer, sent.add)

    def traced(ctx: Context) -> Iterator[None]:
        began, kind = time.perf_counter(), None
        context, links = _origin(ctx.job, same_trace=same_trace)
        with _within(context), tracer.start_as_current_span(**_process(ctx.job, context, links), **_QUIET) as span:
            try:
                yield
            except GeneratorExit:  # nobody will hear how it ended
                raise
            except BaseException as error:
                kind = _ended(span, ctx, error)
                raise
            else:
                kind = _ended(span, ctx, None)
            finally:
                attributes = {**_common("process", ctx.job.queue, kind), "pgqueue.task": ctx.job.task}
                duration.record(time.perf_counter() - began, attributes)

    def unseen(event: Event, kind: str) -> None:
        """An attempt around which no middleware has ended: a span without a length is what there is to say of it."""
        span = tracer.start_span(**_process(event.job, *_origin(event.job, same_trace=same_trace)))
        _failed(span, kind)
        span.end()

    async def unread_or_killed(event: Event) -> None:
        if isinstance(event.exception, BadRow | Killed):
            unseen(event, _kind(BadRow if isinstance(event.exception, BadRow) else TaskTimeout))

    async def crashed(event: Event) -> None:
        # A rescue without an error is one whose worker is gone, and whatever it knew.
        if event.reason is DeadReason.CRASHED or (event.name == "rescued" and event.error is not None):
            unseen(event, "crashed")

    def flushed(state: AppState) -> Iterator[None]:
        """A worker's process ends by os._exit, and leaves nothing to atexit."""
        yield
        # In a thread that nobody waits for: some exporters take the time they want, whatever they are given.
        flushing = threading.Thread(target=flush, daemon=True)
        flushing.start()
        flushing.join(_FLUSH)

    def flush() -> None:
        tracers = tracer_provider or tracing.get_tracer_provider()
        for provider in (tracers, meter_provider or metrics.get_meter_provider()):
            if hasattr(provider, "force_flush"):
                with suppress(Exception):  # no collector is there: no reason for a worker to fail
                    provider.force_flush()

    app.middleware(traced)
    app.around.insert(0, app.around.pop())  # around all others, whenever they were registered
    app.on("failed")(unread_or_killed)
    app.on("rescued")(crashed)
    app.on("dead_lettered")(crashed)
    app.lifespan(flushed)


class Traced(Sender):
    """An app's enqueues, each inside a span whose context its jobs carry."""

    def __init__(self, sender: Sender, tracer: tracing.Tracer, sent: Callable[[int, dict[str, Any]], None]) -> None:
        self._sender = sender
        self._tracer = tracer
        self._sent = sent

    def one(self, sql: Statements, new: NewJob, home: Waits) -> Steps[Job]:
        with self._sending(new.options.queue) as (span, load):
            job = yield from self._sender.one(sql, next(load.carry([new])), home)
            span.set_attribute("messaging.message.id", str(job.id))
            span.set_attribute("pgqueue.task", new.task)
            if job.existing:
                span.set_attribute("pgqueue.existing", True)
            return job

    def many(self, sql: Statements, new: Iterable[NewJob]) -> Steps[list[int]]:
        jobs = iter(new)
        first = next(jobs, None)
        if first is None:
            return (yield from self._sender.many(sql, ()))
        with self._sending(first.options.queue) as (span, load):
            try:
                return (yield from self._sender.many(sql, load.carry(chain([first], jobs))))
            finally:
                span.set_attribute("messaging.batch.message_count", load.queues.total())
                if len(load.queues) > 1:
                    span.update_name("send")
                    span.set_attribute("messaging.destination.name", "(several)")

    @contextmanager
    def _sending(self, queue: str) -> Iterator[tuple[tracing.Span, Load]]:
        # Current while the statements run: the spans of an instrumented driver belong below it.
        with self._tracer.start_as_current_span(
            f"send {queue}",
            kind=tracing.SpanKind.PRODUCER,
            attributes={**_common("send", queue), "messaging.operation.type": "send"},
            **_QUIET,
        ) as span:
            load, kind = Load(), None
            try:
                yield span, load
            except BaseException as error:
                kind = _kind(type(error))
                _failed(span, kind, error)
                raise
            finally:
                for name, count in load.queues.items():
                    self._sent(count, _common("send", name, kind))


class Load:
    """The jobs of one enqueue: each given the context, and counted by queue."""

    def __init__(self) -> None:
        self.queues: Counter[str] = Counter()
        self._context: dict[str, str] = {}
        propagate.inject(self._context)

    def carry(self, jobs: Iterable[NewJob]) -> Iterator[NewJob]:
        """The jobs with the context in their meta. Those that shared their options still do: a batch of one task's jobs
        is sent as one text only then, at a third of the cost."""
        before: Options | None = None
        after: Options | None = None
        for new in jobs:
            self.queues[new.options.queue] += 1
            if after is None or new.options is not before:
                before, after = new.options, self._with_context(new.options)
            yield NewJob(new.task, new.args, after)

    def _with_context(self, options: Options) -> Options:
        if not self._context:
            return options
        try:
            return replace(options, meta={**(options.meta or {}), KEY: self._context})
        except EnqueueError:  # its meta is as large as one may be: no job is refused for being traced
            return options


_QUIET: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}  # we do, without secrets


def _common(operation: str, queue: str, error: str | None = None) -> dict[str, Any]:
    found = {
        "messaging.system": "pgqueue",
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
    }
    return found if error is None else {**found, "error.type": error}


def _process(job: Job, context: Carried, links: list[tracing.Link]) -> dict[str, Any]:
    """How the span of an attempt begins."""
    return {
        "name": f"process {job.queue}",
        "context": context,
        "links": links,
        "kind": tracing.SpanKind.CONSUMER,
        "attributes": {
            **_common("process", job.queue),
            "messaging.operation.type": "process",
            "messaging.message.id": str(job.id),
            "pgqueue.task": job.task,
            "pgqueue.attempt": job.attempt,
        },
    }


def _origin(job: Job, *, same_trace: bool) -> tuple[Carried, list[tracing.Link]]:
    """The context in which an attempt begins, whatever is current where its worker runs, and what it is linked to.

    Of a job that SQL or a schedule enqueued it is empty, and so it is of what somebody else has left in its meta."""
    found = (job.meta or {}).get(KEY)
    carrier = {key: one for key, one in found.items() if isinstance(one, str)} if isinstance(found, dict) else {}
    context = propagate.extract(carrier, Carried())
    sender = tracing.get_current_span(context).get_span_context()
    if same_trace or not sender.is_valid:
        return context, []
    return tracing.set_span_in_context(tracing.INVALID_SPAN, context), [tracing.Link(sender)]


@contextmanager
def _within(context: Carried) -> Iterator[None]:
    """The context becomes the current one; with it whatever else came along, baggage."""
    token = carrying.attach(context)
    try:
        yield
    finally:
        carrying.detach(token)


def _ended(span: tracing.Span, ctx: Context, error: BaseException | None) -> str | None:
    """Says on the span how an attempt ended; the class of its error, if it is one."""
    if ctx._late:  # whatever it did on the way out
        return _failed(span, _kind(TaskTimeout), None if isinstance(error, asyncio.CancelledError) else error)
    if error is None:
        return None
    if isinstance(error, Steer) and not isinstance(error, DeadLetter):
        span.set_attribute("pgqueue.steer", type(error).__name__)
        return None
    if ctx.cancelled:  # what a job raises when it is told to end is no failure of its own
        span.set_attribute("pgqueue.interrupted", True)
        return None
    return _failed(span, _kind(type(error)), error)


def _failed(span: tracing.Span, kind: str, error: BaseException | None = None) -> str:
    span.set_status(tracing.StatusCode.ERROR)
    span.set_attribute("error.type", kind)
    if error is not None and span.is_recording():
        said = {"exception.type": kind, "exception.message": describe(error), "exception.stacktrace": trace(error)}
        span.add_event("exception", said)
    return kind


def _kind(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
