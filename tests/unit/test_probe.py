"""What a worker answers over HTTP: metrics as Prometheus reads them, and health for whoever restarts workers."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from pgqueue.counts import BUCKETS, Counts
from pgqueue.errors import ConfigurationError
from pgqueue.worker.probe import Probe

KEY = ("email", "shop.send")


@pytest.fixture
def serve() -> Iterator[Callable[..., Probe]]:
    served: list[Probe] = []

    def start(counts: Counts | None = None, unready: str | None = None, depth: list[tuple] | None = None) -> Probe:
        served.append(Probe(0, counts or Counts(), lambda: unready, lambda: depth or []))
        return served[-1]

    yield start
    for probe in served:
        probe.close()


def get(probe: Probe, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{probe.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_counters_histograms_and_gauges_are_as_prometheus_reads_them(serve) -> None:
    counts = Counts(claims_lost=2)
    counts.completed[KEY] += 3
    counts.failed[KEY] += 1
    counts.ended(KEY, wait=0.2, run=5000.0)
    counts.ended(KEY, wait=-1.0, run=0.0005)  # a clock that runs behind is no negative wait
    status, text = get(serve(counts, depth=[("email", 4, 1, 2, 0, 7, 12.5)]), "/metrics")

    assert status == 200
    labels = '{queue="email",task="shop.send"}'
    assert f"pgqueue_jobs_completed_total{labels} 3.0" in text
    assert f"pgqueue_jobs_failed_total{labels} 1.0" in text
    assert "pgqueue_claims_lost_total 2.0" in text
    assert f"pgqueue_job_wait_seconds_sum{labels} 0.2" in text
    assert 'pgqueue_job_run_seconds_bucket{le="0.001",queue="email",task="shop.send"} 1.0' in text
    assert f'pgqueue_job_run_seconds_bucket{{le="{BUCKETS[-1]}",queue="email",task="shop.send"}} 1.0' in text
    assert 'pgqueue_job_run_seconds_bucket{le="+Inf",queue="email",task="shop.send"} 2.0' in text
    assert 'pgqueue_queue_depth{queue="email",state="dead"} 7.0' in text
    assert 'pgqueue_oldest_job_age_seconds{queue="email"} 12.5' in text


def test_what_children_hand_over_adds_up() -> None:
    child, total = Counts(claims_lost=1), Counts()
    child.completed[KEY] += 2
    child.ended(KEY, wait=0.01, run=0.02)
    total.add(child.to_json())
    total.add(child.to_json())
    assert total.completed[KEY] == 4
    assert total.claims_lost == 2
    assert sum(total.run[KEY].buckets) == 2
    assert total.run[KEY].total == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("path", "method", "unready", "status"),
    [
        ("/health/live", "GET", "stopping", 200),
        ("/health/ready", "GET", None, 200),
        ("/health/ready", "GET", "stopping", 503),
        ("/health", "GET", None, 404),
        ("/metrics/../health/live", "GET", None, 404),
        ("/metrics", "POST", None, 405),
    ],
)
def test_health_says_live_and_ready_and_nothing_else_is_there(serve, path, method, unready, status) -> None:
    assert get(serve(unready=unready), path, method)[0] == status


def test_health_says_what_is_wrong(serve) -> None:
    assert get(serve(unready="stopping"), "/health/ready") == (503, "not ready: stopping\n")


def test_a_port_that_is_taken_is_a_clear_error(serve) -> None:
    taken = serve()
    with pytest.raises(ConfigurationError, match=f"metrics_port {taken.port} cannot be had"):
        Probe(taken.port, Counts(), lambda: None, list)
