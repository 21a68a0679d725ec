"""What a worker answers over HTTP: /metrics for Prometheus, /health/live and /health/ready for probes.

Served by the supervisor, which no job can hold up. live: the supervisor's loop comes round. ready: every child works
and holds its lease, and the database answers; 503 otherwise, and while the worker stops, with the reason in one line.
/metrics needs the extra `metrics` (prometheus-client), imported here alone; health needs nothing.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from socketserver import TCPServer, ThreadingMixIn
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
_BELIEVED = (
    1.0  # seconds for which an answer about the queues serves every scrape: none of them loads the database more
)

log = logging.getLogger("pgqueue")

_COUNTERS = {
    "completed": "Jobs completed by this worker.",
    "failed": "Attempts that failed in this worker.",
    "retried": "Attempts that failed, and after which the job runs again.",
    "dead_lettered": "Jobs moved to the dead-letter table, those whose process died under them too often among them.",
    "rescued": "Jobs that were taken back from a worker that is gone, and run again.",
    "cancelled": "Jobs that were cancelled after their claim.",
    "expired": "Jobs that were not started in time, as this worker's sweep found them.",
}
_STATES = ("queued", "scheduled", "running", "blocked", "dead")


class Probe:
    """The HTTP server, in threads of its own. At each request it asks `silent` and `unready` (why not live, not ready,
    or None) and `slots` (busy ones, and all); once a second at most `depth` (None: the database does not answer)."""

    def __init__(
        self,
        host: str,
        port: int,
        counts: Counts,
        *,
        silent: Callable[[], str | None],
        unready: Callable[[], str | None],
        slots: Callable[[], tuple[int, int]],
        depth: Callable[[], Rows | None],
    ) -> None:
        """Raises ConfigurationError when the address cannot be had."""
        metrics = _metrics(counts, slots, Remembered(depth))

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
                return _text(start_response, "405 Method Not Allowed", "only GET")
            if path == "/metrics":
                return metrics(environ, start_response)
            if path == "/health/live":
                return _health(start_response, "live", silent())
            if path == "/health/ready":
                return _health(start_response, "ready", silent() or unready())
            return _text(start_response, "404 Not Found", "there are /metrics, /health/live and /health/ready")

        kind = _ServerV6 if ":" in host else _Server
        try:
            self._server = make_server(host, port, answer, kind, _Quiet)
        except OSError as error:
            raise ConfigurationError(
                f"metrics_port {port} of metrics_host {host!r} cannot be had: {error.strerror}"
            ) from None
        self.port = self._server.server_port
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="pgqueue-probe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Remembered:
    """An answer that serves everybody for a moment: however many scrape, the database is asked by one at a time."""

    def __init__(self, ask: Callable[[], Rows | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._turn = threading.Lock()
        self._asked_at: float | None = None
        self._answer: Rows | None = None

    def __call__(self) -> Rows | None:
        with self._turn:
            if self._asked_at is None or self._clock() - self._asked_at >= _BELIEVED:
                self._answer = self._ask()
                self._asked_at = self._clock()
            return self._answer


def ask_depth(conninfo: str, sql: Statements) -> Rows | None:
    """The depth of every queue, over a connection for this one question. None while the database is away."""
    try:
        raw, _ = connect(conninfo, "metrics", QUERY_TIMEOUT / 1_000 / 0.8)
        with raw:
            raw.execute("begin read only")
            raw.execute("select set_config('statement_timeout', %s, true)", [str(QUERY_TIMEOUT)])
            return perform_raw(raw, db.queue_depth(sql))
    except psycopg.Error:
        return None


def _metrics(
    counts: Counts, slots: Callable[[], tuple[int, int]], depth: Callable[[], Rows | None]
) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """What answers /metrics: prometheus-client, or, where it is not installed, how to install it."""
    try:
        from prometheus_client import CollectorRegistry, make_wsgi_app
    except ImportError:
        missing = "/metrics needs the extra: pip install 'pgqueue-py[metrics]'"
        log.warning("%s; /health is served without it", missing, extra={"event": "no_metrics"})
        return lambda _, start_response: _text(start_response, "501 Not Implemented", missing)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(counts, slots, depth))
    return make_wsgi_app(registry)


class Collector:
    """The families of /metrics, as they stand."""

    def __init__(self, counts: Counts, slots: Callable[[], tuple[int, int]], depth: Callable[[], Rows | None]) -> None:
        self._counts = counts
        self._slots = slots
        self._depth = depth

    def collect(self) -> Iterator[Any]:
        yield from self._counters()
        yield from self._gauges()

    def _counters(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        labels = ("queue", "task")
        for name, what in _COUNTERS.items():
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

    def _gauges(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        busy, every = self._slots()
        slots = GaugeMetricFamily("pgqueue_worker_slots", "Slots of this worker's processes.", labels=("state",))
        slots.add_metric(("busy",), busy)
        slots.add_metric(("free",), every - busy)
        yield slots
        depth = GaugeMetricFamily(
            "pgqueue_queue_depth", "Jobs by state; scheduled: due later.", labels=("queue", "state")
        )
        age = GaugeMetricFamily(
            "pgqueue_oldest_job_age_seconds", "How long the oldest due job is due.", labels=("queue",)
        )
        rows = self._depth()
        for queue, *states, oldest in rows or ():
            for state, count in zip(_STATES, states, strict=True):
                depth.add_metric((queue, state), count)
            age.add_metric((queue,), oldest)
        yield depth
        yield age
        yield GaugeMetricFamily(
            "pgqueue_database_up", "Whether the database told the two above: 1, or 0.", value=float(rows is not None)
        )


def _cumulative(histogram: Histogram) -> list[tuple[str, int]]:
    """Prometheus counts each observation in every bucket above it too."""
    total, found = 0, []
    for bound, count in zip((*map(str, BUCKETS), "+Inf"), histogram.buckets, strict=True):
        total += count
        found.append((bound, total))
    return found


def _health(start_response: Callable[..., Any], what: str, why_not: str | None) -> list[bytes]:
    if why_not is None:
        return _text(start_response, "200 OK", what)
    return _text(start_response, "503 Service Unavailable", f"not {what}: {why_not}")


def _text(start_response: Callable[..., Any], status: str, body: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [body.encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # not HTTPServer's, which asks the name servers of a strange network for our name
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 5.0  # seconds for a client to send its request

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds; the log is for jobs."""
