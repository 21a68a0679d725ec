"""What the tests of a worker may ask for: one in this process, in a thread of its own; or real processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue
from pgqueue.worker.solo import Worker
from tests.crash.processes import ledger, start
from tests.crash.proxy import proxy
from tests.helpers import eventually

__all__ = ["ledger", "proxy", "start"]

Work = Callable[..., Worker]


@pytest.fixture
def work(app: PgQueue) -> Iterator[Work]:
    """Starts a worker of `app` and returns it: `work(concurrency=1)`. At the end of the test it is stopped."""
    with ExitStack() as working:
        yield lambda **settings: working.enter_context(_working(app, **settings))
    eventually(lambda: not [one for one in threading.enumerate() if one.name.startswith("pgqueue-")])


@contextmanager
def _working(app: PgQueue, **settings: Any) -> Iterator[Worker]:
    worker = app.worker(**{"poll_interval": 0.05, "sweep_interval": 0.05, "lease": 30.0, "grace": 5.0, **settings})
    broken: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:
            broken.append(error)

    thread = threading.Thread(target=run, name="a worker under test")
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(timeout=30)
        assert not thread.is_alive()
        assert not broken, broken


@pytest.fixture
def asleep(connection: psycopg.Connection[Any]) -> Callable[..., None]:
    """Waits until the workers (`workers=1`) are idle, listen, and have looked for the last time before their poll."""
    last_words = {"pgqueue claim": "min(due.run_at)", "pgqueue listener": "cancelling is not null"}

    def wait(workers: int = 1) -> None:
        def are_asleep() -> bool:
            sessions = connection.execute(
                "select application_name, query from pg_stat_activity"
                " where state = 'idle' and application_name = any(%s) and datname = current_database()",
                [list(last_words)],
            ).fetchall()
            ready = [name for name, query in sessions if last_words[name] in query]
            return sorted(ready) == sorted([*last_words] * workers)

        eventually(are_asleep)

    return wait
