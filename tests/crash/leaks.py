"""An application whose errors tell more than a log may: PostgreSQL's DETAIL, SQLAlchemy's parameters. Raised by
tasks after their own transactions, by handlers of events, and by a lifespan that closes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psycopg
import sqlalchemy as sa

from pgqueue import Context, PgQueue
from pgqueue.context import AppState
from pgqueue.events import Event

app = PgQueue()  # PGQUEUE_DATABASE_URL

PAN = "4111-cAnArY"
TWICE = "create temp table cards (pan text primary key)", "insert into cards values ({}), ({})"


def by_sqlalchemy() -> None:
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(os.environ["PGQUEUE_DATABASE_URL"])
    )
    with engine.begin() as connection:
        connection.execute(sa.text(TWICE[0]))
        connection.execute(sa.text(TWICE[1].format(":pan", ":pan")), {"pan": PAN})


def by_psycopg() -> None:
    with psycopg.connect(os.environ["PGQUEUE_DATABASE_URL"]) as connection:
        connection.execute(TWICE[0])
        connection.execute(TWICE[1].format("%s", "%s").encode(), [PAN, PAN])


@app.task
def pay(ctx: Context) -> None:
    with ctx.transaction():
        pass
    by_sqlalchemy()


@app.task(run_in="process")
def pay_apart(ctx: Context) -> None:
    with ctx.transaction():
        pass
    by_sqlalchemy()


@app.on("completed")
def hears(event: Event) -> None:
    by_psycopg()


@app.on("completed")
async def hears_too(event: Event) -> None:
    by_sqlalchemy()


@app.lifespan
def cards(state: AppState) -> Iterator[Any]:
    yield
    by_sqlalchemy()
