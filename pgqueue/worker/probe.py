"""What a worker answers over HTTP on 127.0.0.1: /metrics for Prometheus, /health/live and /health/ready for probes.

Served by the supervisor, which no job can hold up. live: the supervisor runs. ready: every child works and holds its
lease, and the database answers; 503 otherwise, and while the worker stops, with the reason in one line. Needs the extra
`metrics` (prometheus-client), imported here alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import psycopg

from pgqueue import db
from pgqueue.counts import BUCKETS, Counts, Histogram
from pgqueue.drivers import Rows, perform_raw
from pgqueue.errors import ConfigurationError
from pgqueue.link import connect
from pgqueue.sql import Statements

QUERY_TIMEOUT = 2_000  # ms; a scrape must not add to the load of a database in trouble


class Probe:
    """The HTTP server, in threads of its own. `unready` (why not, or None) and `depth` are asked at each request."""

    def __init__(self, port: int, counts: Counts, unready: Callable[[], str | None], depth: Callable[[], Rows]) -> None:
        """Raises ConfigurationError when the port cannot be had or the extra is not installed."""
        try:
            from prometheus_client import CollectorRegistry, make_wsgi_app
        except ImportError:
            raise ConfigurationError("--metrics-port needs the extra: pip install 'pgqueue-py[metrics]'") from None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(counts, depth))
        metrics = make_wsgi_app(registry)

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
                return _text(start_response, "405 Method Not Allowed", "only GET")
            if path == "/metrics":
                return metrics(environ, start_response)  # type: ignore[no-any-return]
            if path == "/health/live":
                return _text(start_response, "200 OK", "live")
            if path == "/health/ready":
                why = unready()
                if why is None:
                    return _text(start_response, "200 OK", "ready")
                return _text(start_response, "503 Service Unavailable", f"not ready: {why}")
            return _text(start_response, "404 Not Found", "there are /metrics, /health/live and /health/ready")

        try:
            self._server = make_server("127.0.0.1", port, answer, _Server, _Quiet)
        except OSError as error:
            raise ConfigurationError(f"metrics_port {port} cannot be had: {error.strerror}") from None
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="pgqueue-probe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def ask_depth(conninfo: str, sql: Statements) -> Rows:
    """The depth of every queue, over a connection for this one question. Empty while the database is away."""
    try:
        raw, _ = connect(conninfo, "metrics", QUERY_TIMEOUT / 1_000 / 0.8)
        with raw:
            raw.execute("begin read only")
            raw.execute("select set_config('statement_timeout', %s, true)", [str(QUERY_TIMEOUT)])
            return perform_raw(raw, db.queue_depth(sql))
    except psycopg.Error:
        return []


class _Collector:
    def __init__(self, counts: Counts, depth: Callable[[], Rows]) -> None:
        self._counts = counts
        self._depth = depth

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labels = ("queue", "task")
        for name, what in (
            ("completed", "Jobs completed by this worker."),
            ("failed", "Attempts that failed in this worker."),
            ("dead_lettered", "Jobs this worker moved to the dead-letter table."),
        ):
            family = CounterMetricFamily(f"pgqueue_jobs_{name}", what, labels=labels)
            for key, value in list(getattr(self._counts, name).items()):
                family.add_metric(key, value)
            yield family
        yield CounterMetricFamily(
            "pgqueue_claims_lost", "Runs whose job was taken from them.", value=self._counts.claims_lost
        )
        for name, what in (("wait", "From due to started, in seconds."), ("run", "From started to ended, in seconds.")):
            histograms = HistogramMetricFamily(f"pgqueue_job_{name}_seconds", what, labels=labels)
            for key, histogram in list(getattr(self._counts, name).items()):
                histograms.add_metric(key, _cumulative(histogram), histogram.total)
            yield histograms
        depth = GaugeMetricFamily(
            "pgqueue_queue_depth", "Jobs by state; scheduled: due later.", labels=("queue", "state")
        )
        age = GaugeMetricFamily(
            "pgqueue_oldest_job_age_seconds", "How long the oldest due job is due.", labels=("queue",)
        )
        for queue, *states, oldest in self._depth():
            for state, count in zip(("queued", "scheduled", "running", "blocked", "dead"), states, strict=True):
                depth.add_metric((queue, state), count)
            age.add_metric((queue,), oldest)
        yield depth
        yield age


def _cumulative(histogram: Histogram) -> list[tuple[str, int]]:
    """Prometheus counts each observation in every bucket above it too."""
    total, found = 0, []
    for bound, count in zip((*map(str, BUCKETS), "+Inf"), histogram.buckets, strict=True):
        total += count
        found.append((bound, total))
    return found


def _text(start_response: Callable[..., Any], status: str, body: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [body.encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 5.0  # seconds for a client to send its request

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds; the log is for jobs."""
