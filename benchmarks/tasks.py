"""The jobs that are measured: they say that they run, or wait."""

from __future__ import annotations

import asyncio

from benchmarks.report import ran
from pgqueue import PgQueue

app = PgQueue("postgresql:///unused")  # each measure gives its worker a database of its own


@app.task(name="bench.noop")
async def noop(user_id: int, note: str) -> None:
    """On the loop."""
    ran(user_id)


@app.task(name="bench.noop_thread")
def noop_thread(user_id: int, note: str) -> None:
    """In a thread."""
    ran(user_id)


@app.task(name="bench.noop_unkept", keep=0)
async def noop_unkept(user_id: int, note: str) -> None:
    """On the loop; leaves no row behind."""
    ran(user_id)


@app.task(name="bench.linger")
async def linger() -> None:
    """For longer than any measure takes."""
    await asyncio.sleep(3_600)
