"""What every test may ask for: an app on a database of its own, a connection to look with, a worker to drain it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterator
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue

pytest_plugins = ["pgqueue.testing"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has printed and logged can hold half a surrogate pair; pytest-xdist cannot send that from one process
    to another, and breaks the whole run off."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def app(pgqueue_database: str) -> Iterator[PgQueue]:
    """An app without tasks on a fresh, migrated database."""
    made = PgQueue(pgqueue_database)
    yield made
    made.close()


@pytest.fixture
def connection(pgqueue_database: str) -> Iterator[psycopg.Connection[Any]]:
    """The test's own eyes: an autocommitting connection to the same database."""
    with psycopg.connect(pgqueue_database, autocommit=True) as made:
        yield made


@pytest.fixture
def drain(app: PgQueue) -> Callable[..., None]:
    """Runs a worker in this process until nothing is left to run: `drain(concurrency=2)`."""

    def run(**settings: Any) -> None:
        fast = {"drain": True, "poll_interval": 0.05, "grace": 5.0, **settings}
        asyncio.run(app.worker(**fast).run_async())

    return run


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[logging.LogRecord]]:
    """The log records of an event: `logged("claim_lost")`."""
    caplog.set_level(logging.DEBUG, logger="pgqueue")
    return lambda event: [record for record in caplog.records if getattr(record, "event", None) == event]
