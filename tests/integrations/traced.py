"""An application whose jobs run in processes of their own, each of which writes its spans down, in no hurry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from pgqueue import PgQueue
from pgqueue.integrations import otel


class ToFile(SpanExporter):
    """One span a line, as JSON."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ["TEST_SPANS"]).open("a") as file:
            for span in spans:
                file.write(span.to_json(indent=None) + "\n")
        return SpanExportResult.SUCCESS


app = PgQueue()  # PGQUEUE_DATABASE_URL
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(ToFile(), schedule_delay_millis=3_600_000))
otel.instrument(app, provider)


@app.task(name="traced.alone", run_in="process")
def alone() -> int:
    return os.getpid()


@app.task(name="traced.endless", run_in="process", timeout=0.3, max_attempts=1)
def endless() -> None:
    while True:
        pass
