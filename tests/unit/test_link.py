"""What a worker adds to a URL, and how it waits before it tries again."""

from __future__ import annotations

import psycopg
import pytest

from pgqueue.link import backoff, bounded, reach, reason


def test_a_dead_peer_is_noticed_by_the_operating_system_too() -> None:
    assert reach("postgresql://localhost/shop", 5.0) == {
        "connect_timeout": 5,
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "tcp_user_timeout": 5000,
    }


def test_what_the_url_says_itself_stands() -> None:
    said = (
        "connect_timeout=7&keepalives=0&keepalives_idle=60&keepalives_interval=9&keepalives_count=2&tcp_user_timeout=0"
    )
    assert reach(f"postgresql://a,b/shop?{said}&target_session_attrs=any", 5.0) == {}


def test_so_does_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "20")
    assert "connect_timeout" not in reach("host=localhost", 5.0)


@pytest.mark.parametrize("conninfo", ["postgresql://a:1,b:2/shop", "hostaddr=127.0.0.1,127.0.0.2"])
def test_among_several_hosts_the_one_that_takes_writes_is_meant(conninfo) -> None:
    assert reach(conninfo, 5.0)["target_session_attrs"] == "read-write"


def test_waits_double_up_to_five_seconds_and_are_jittered_downwards() -> None:
    assert [backoff(tries, lambda: 1.0) for tries in (1, 2, 3, 6, 7, 500)] == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0]
    assert backoff(500, lambda: 0.0) == 2.5


def test_an_answer_that_dribbles_in_is_no_answer_when_its_time_is_over() -> None:
    def dribble():
        while True:
            yield 1

    waiting = bounded(dribble(), -1.0)
    next(waiting)
    with pytest.raises(psycopg.OperationalError, match="no answer within"):
        waiting.send(1)


def test_a_reason_is_one_line_without_the_password() -> None:
    error = psycopg.OperationalError("no entry for user:s3cret\n\tIs the server running?")
    assert reason(error, "postgresql://user:s3cret@host/shop") == "OperationalError: no entry for user:***"
