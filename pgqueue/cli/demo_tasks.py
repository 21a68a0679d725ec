"""The small application that `pgqueue demo` plays with; demo.py enqueues its tasks, a real worker runs them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pgqueue.app import PgQueue
from pgqueue.context import Context
from pgqueue.retry import RetryPolicy

app = PgQueue()

SOON = RetryPolicy(delay=0.3, factor=1, jitter=0)


@app.task(name="demo.send_receipt", queue="email")
def send_receipt(order_id: int, email: str) -> str:
    """Succeeds."""
    return f"receipt of order {order_id} sent to {email}"


@app.task(name="demo.ask_warehouse", retry=SOON)
async def ask_warehouse(ctx: Context, sku: str) -> str:
    """Fails twice, as services do."""
    if ctx.job.attempt < 3:
        raise ConnectionError("503 from the warehouse")
    return f"{sku} is in stock"


@app.task(name="demo.charge", queue="payments", max_attempts=2, retry=SOON)
def charge(order_id: int, amount: str) -> float:
    """Fails for good when the amount is no number."""
    return float(amount)


@app.task(name="demo.import_catalogue", max_attempts=1)
def import_catalogue(ctx: Context, mark: str) -> int:
    """Tells its process and waits to be killed, the first time that anybody runs it; its number of runs."""
    if ctx.job.fence == 1:
        Path(mark).write_text(str(os.getpid()), encoding="ascii")
        while not ctx.cancelled:
            time.sleep(0.05)
    return ctx.job.fence
