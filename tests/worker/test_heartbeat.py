"""The heart of a worker: beats by a connection of its own, and what must reach the database reaches it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pgqueue import db
from pgqueue.cli.child import Channel
from pgqueue.worker.heartbeat import Heart, now
from tests.helpers import eventually

ROW = {"host": "test", "pid": 1, "queues": None, "tasks": ["test.task"], "concurrency": 1, "version": "test"}
LONG = 600.0  # a lease of which no test sees the third


class Troubled(Heart):
    """Raises what it finds in `troubles` instead of performing."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.troubles: list[Exception] = []

    def perform(self, steps: Any) -> Any:
        if self.troubles:
            raise self.troubles.pop(0)
        return super().perform(steps)


@pytest.fixture
def heart(app, pgqueue_database) -> Iterator[Troubled]:
    made = Troubled(pgqueue_database, app.statements, LONG)
    made.start()
    yield made
    assert made.end(10)


@pytest.fixture
def worker_id(heart) -> UUID:
    made, written = uuid4(), threading.Event()
    heart.register(made, written.set, **ROW)
    assert written.wait(10)
    return made


@pytest.fixture
def beat(connection) -> Callable[[], datetime]:
    return lambda: connection.execute("select heartbeat_at from pgqueue.workers").fetchone()[0]


@pytest.mark.parametrize(
    "trouble", [psycopg.OperationalError("the connection is lost"), psycopg.errors.DeadlockDetected()]
)
def test_a_beat_that_failed_is_repeated_at_once_and_not_when_the_next_is_due(heart, worker_id, beat, trouble):
    before = beat()
    heart.troubles += [trouble] * 2
    heart.resume(worker_id)  # beats now; the next beat would be due in minutes
    eventually(lambda: beat() > before)
    assert not heart.troubles


def test_a_refused_beat_costs_no_errand(heart, worker_id, connection):
    done = threading.Event()
    heart.troubles.append(psycopg.errors.InsufficientPrivilege())
    heart.send(lambda: db.leave(heart.sql, [worker_id]), lambda _: done.set())
    heart.resume(worker_id)
    assert done.wait(10)
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)


def test_a_refused_errand_costs_no_other(heart, worker_id):
    done: list[str] = []
    with heart._changed:  # so that both are there before the first is run
        heart.troubles.append(psycopg.errors.InsufficientPrivilege())
        heart.send(lambda: db.rise(heart.sql, worker_id), lambda _: done.append("refused"))
        heart.send(lambda: db.rise(heart.sql, worker_id), lambda _: done.append("second"))
    eventually(lambda: done)
    assert done == ["second"]


def test_an_errand_waits_for_the_database_however_long_it_is_away(heart, worker_id):
    done = threading.Event()
    heart.troubles += [psycopg.OperationalError("the connection is lost")] * 3
    heart.send(lambda: db.rise(heart.sql, worker_id), lambda _: done.set())
    assert done.wait(10)
    assert not heart.troubles


def test_nothing_is_renewed_for_a_worker_that_rests_and_all_is_when_it_goes_on(heart, worker_id, beat):
    other, written = uuid4(), threading.Event()
    heart.register(other, written.set, **ROW)
    assert written.wait(10)
    before = heart.deadline(worker_id)
    heart.rest(worker_id)
    heart.resume(other)
    eventually(lambda: heart.deadline(other) > before + 0.001)
    assert heart.deadline(worker_id) == before
    heart.resume(worker_id)
    eventually(lambda: heart.deadline(worker_id) > before)


def test_a_worker_whose_row_is_gone_is_told_so(heart, worker_id, connection):
    connection.execute("delete from pgqueue.workers")
    heart.resume(worker_id)
    eventually(lambda: heart.has_lost(worker_id))
    assert heart.deadline(worker_id) == float("inf")  # nobody counts on it any more


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="the system has no clock that counts a suspension")
def test_a_lease_ends_while_the_machine_is_suspended(heart, worker_id, monkeypatch):
    """time.monotonic() stands still meanwhile, and would let a worker believe in what others have taken since."""
    honest, suspended = time.clock_gettime, [0.0]
    monkeypatch.setattr(
        time, "clock_gettime", lambda clock: honest(clock) + suspended[0] * (clock == time.CLOCK_BOOTTIME)
    )
    ours, theirs = socket.socketpair()
    channel, heard = Channel(ours), []
    until = heart.deadline(worker_id) + 3_600.0
    child = threading.Thread(target=lambda: heard.append(channel.receive(until=until)), daemon=True)
    child.start()
    heart.rest(worker_id)
    assert now() < heart.deadline(worker_id)

    suspended[0] = 10_000.0
    assert now() > heart.deadline(worker_id)
    eventually(lambda: heard == [{}])  # a child that waits for news of it, too
    child.join()
    theirs.close()
    ours.close()
