"""What a worker answers over HTTP: metrics as Prometheus reads them, and health for whoever restarts workers."""

from __future__ import annotations

import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from pgqueue.counts import BUCKETS, NAMES, Counts
from pgqueue.errors import ConfigurationError
from pgqueue.settings import WorkerSettings
from pgqueue.worker.probe import Probe, Remembered
from pgqueue.worker.supervisor import Supervisor
from tests.helpers import eventually

KEY = ("email", "shop.send")


@pytest.fixture
def serve() -> Iterator[Callable[..., Probe]]:
    served: list[Probe] = []

    def start(counts: Counts | None = None, host: str = "127.0.0.1", port: int = 0, **answers: Any) -> Probe:
        given = {"silent": None, "unready": None, "slots": (0, 0), "depth": [], **answers}
        asked = {name: one if callable(one) else partial(lambda same: same, one) for name, one in given.items()}
        served.append(Probe(host, port, counts or Counts(), **asked))
        return served[-1]

    yield start
    for probe in served:
        probe.close()


def get(probe: Probe, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"{probe.url}{path}", method=method)
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
    status, text = get(serve(counts, slots=(3, 20), depth=[("email", 4, 1, 2, 0, 7, 12.5)]), "/metrics")

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
    assert 'pgqueue_worker_slots{state="busy"} 3.0' in text
    assert 'pgqueue_worker_slots{state="free"} 17.0' in text
    assert "pgqueue_database_up 1.0" in text


def test_while_the_database_does_not_answer_there_is_no_figure_of_its_queues(serve) -> None:
    _, text = get(serve(depth=lambda: None), "/metrics")
    assert "pgqueue_database_up 0.0" in text
    assert "pgqueue_queue_depth{" not in text
    assert "pgqueue_claims_lost_total 0.0" in text


def test_however_many_scrape_the_database_is_asked_once_a_second_and_by_one_at_a_time() -> None:
    now, asked, gate = [100.0], [], threading.Event()

    def ask() -> list[tuple]:
        asked.append(now[0])
        assert gate.wait(30)
        return [(len(asked),)]

    remembered = Remembered(ask, clock=lambda: now[0])
    with ThreadPoolExecutor(8) as crowd:
        answers = [crowd.submit(remembered) for _ in range(50)]
        eventually(lambda: asked)
        gate.set()
        assert {tuple(one.result(30)) for one in answers} == {((1,),)}
    assert asked == [100.0]
    now[0] = 100.9
    assert remembered() == [(1,)]
    now[0] = 101.0
    assert remembered() == [(2,)]


def test_without_the_extra_health_is_served_and_metrics_say_what_to_install(serve, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    probe = serve()
    assert get(probe, "/health/live") == (200, "live\n")
    assert get(probe, "/health/ready") == (200, "ready\n")
    assert get(probe, "/metrics") == (501, "/metrics needs the extra: pip install 'pgqueue-py[metrics]'\n")
    assert "/metrics needs the extra" in caplog.text


def test_a_supervisor_whose_loop_does_not_come_round_is_not_live() -> None:
    supervisor = Supervisor([], WorkerSettings(), {}, check=lambda heart: None)
    assert supervisor._silent() is None
    supervisor._turned -= 29.0
    assert supervisor._silent() is None
    supervisor._turned -= 2.0
    assert supervisor._silent() == "the supervisor has been silent for 31 s"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_ipv6_is_served_too(serve) -> None:
    try:
        probe = serve(host="::1")
    except ConfigurationError:
        pytest.skip("no IPv6 here")
    assert probe.url == f"http://[::1]:{probe.port}"
    assert get(probe, "/health/live") == (200, "live\n")


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.name.invalid"])
def test_an_address_that_is_not_ours_is_a_clear_error(host: str, serve) -> None:
    with pytest.raises(ConfigurationError, match=f"metrics_port 0 of metrics_host '{host}' cannot be had: "):
        serve(host=host)


def test_what_children_hand_over_adds_up() -> None:
    child, total = Counts(claims_lost=1), Counts()
    for number, name in enumerate(NAMES, 2):
        getattr(child, name)[KEY] += number
    child.ended(KEY, wait=0.01, run=0.02)
    total.add(child.to_json())
    total.add(child.to_json())
    assert [getattr(total, name)[KEY] for name in NAMES] == [2 * number for number in range(2, 2 + len(NAMES))]
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
    silent = serve(silent="the supervisor has been silent for 31 s")
    assert get(silent, "/health/live") == (503, "not live: the supervisor has been silent for 31 s\n")
    assert get(silent, "/health/ready") == (503, "not ready: the supervisor has been silent for 31 s\n")


def test_a_port_that_is_taken_is_a_clear_error(serve) -> None:
    taken = serve()
    with pytest.raises(
        ConfigurationError, match=f"metrics_port {taken.port} of metrics_host '127.0.0.1' cannot be had"
    ):
        serve(port=taken.port)
