"""The jobs that are measured: they do nothing, or wait."""

from __future__ import annotations

import asyncio

from pgqueue import PgQueue

app = PgQueue("postgresql:///unused")  # each measure gives its worker a database of its own


@app.task(name="bench.noop")
async def noop(user_id: int, note: str) -> None:
    """Nothing, on the loop."""


@app.task(name="bench.noop_thread")
def noop_thread(user_id: int, note: str) -> None:
    """Nothing, in a thread."""


@app.task(name="bench.linger")
async def linger() -> None:
    """For longer than any measure takes."""
    await asyncio.sleep(3_600)
