"""Right uses of the connections whose libraries are extras. Nothing here is run."""

from __future__ import annotations

from typing import assert_type

import asyncpg  # type: ignore[import-untyped, unused-ignore]
import psycopg2.extensions  # type: ignore[import-untyped, unused-ignore]
from django.db import connection as django_connection  # type: ignore[import-untyped, unused-ignore]
from django.db import connections  # type: ignore[import-untyped, unused-ignore]
from pydantic import BaseModel

from pgqueue import Job
from tests.typing.tasks import app, bare


class Order(BaseModel):
    id: int
    note: str = ""


@app.task
def ship(order: Order) -> None: ...


async def on_asyncpg(connection: asyncpg.Connection) -> None:  # type: ignore[type-arg, unused-ignore]
    job: Job = await bare.enqueue(connection, 7, "a@b")
    ids: list[int] = await bare.enqueue_many(connection, [(7,)])
    print(job, ids)


def on_psycopg2(connection: psycopg2.extensions.connection) -> None:
    job: Job = bare.enqueue(connection, 7, "a@b")
    ids: list[int] = bare.enqueue_many(connection, [(7,)])
    print(job, ids)


def on_django() -> None:
    job: Job = bare.enqueue(django_connection, 7, "a@b")
    other: Job = bare.enqueue(connections["default"], 7)
    print(job, other)


def models() -> None:
    assert_type(ship.delay(Order(id=7)), Job)
