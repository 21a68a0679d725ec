"""What the tests of a job's life may ask for, beside tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue, Task
from tests.life.workbench import Ears


@pytest.fixture
def send(app: PgQueue) -> Task[..., Any]:
    @app.task(name="send")
    def send(name: str) -> str:
        return name

    return send


@pytest.fixture
def ears(app: PgQueue, connection: psycopg.Connection[Any], pgqueue_database: str) -> Iterator[Ears]:
    """What sleeping workers would hear."""
    made = Ears(app, connection, pgqueue_database)
    yield made
    made.close()
