"""Tasks of every shape, for right.py and wrong.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pgqueue import Context, PgQueue, RetryPolicy

app = PgQueue("postgresql://localhost/nowhere")


@dataclass
class Line:
    sku: str
    count: int = 1


@app.task
def bare(user_id: int, email: str = "x") -> dict[str, int]:
    return {email: user_id}


@app.task(queue="email", max_attempts=6, timeout=30, retry=RetryPolicy(delay=5))
def with_options(lines: list[Line], *, order: UUID | None = None) -> None: ...


@app.task
async def on_the_loop(user_id: int, *, note: str) -> str:
    return note


@app.task(queue="email")
async def on_the_loop_with_options(user_id: int) -> bool:
    return True


@app.task
def no_arguments() -> int:
    return 7


@app.task
def context_first(ctx: Context, user_id: int, email: str = "x") -> None: ...


@app.task(queue="email")
async def context_first_with_options(ctx: Context, user_id: int) -> None: ...


@app.task
def context_first_or_none(ctx: Context | None, user_id: int) -> None: ...


@app.task
def context_last(user_id: int, ctx: Context | None = None) -> None: ...


@app.task(queue="email")
def context_by_keyword(user_id: int, *, ctx: Context | None = None) -> None: ...


@app.task
def context_demanded(user_id: int, *, ctx: Context) -> None: ...


@app.task
def anything(payload: Any, times: int = 1) -> None: ...


@app.task(queue="email")
def anything_with_options(payload: Any, times: int = 1) -> None: ...
