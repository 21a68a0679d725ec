"""The shop's jobs: what a worker runs. Start one with: pgqueue worker examples.shop.tasks:app

A job may run twice: its worker can die after the work and before the news of it reached the database. So each of these
leaves the same behind whether it ran once or twice, and its docstring says how.
"""

from __future__ import annotations

import csv
import smtplib
import time
from datetime import date
from decimal import Decimal, InvalidOperation
from email.headerregistry import Address
from email.message import EmailMessage
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from PIL import Image, ImageOps
from sqlalchemy import func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from examples.shop import report
from examples.shop.app import API, FILES, PHOTOS, SMTP, TEMPORARY, app, async_engine, engine
from examples.shop.models import Customer, Order, Product
from pgqueue import DeadLetter, RetryPolicy, Schedule


@app.task(queue="email", timeout=30)
def send_welcome_email(customer_id: int) -> dict[str, Any]:
    """Over real SMTP. Twice: skipped once `welcomed_at` is set; until then the Message-ID tells a double."""
    with Session(engine) as session, session.begin():
        customer = session.get(Customer, customer_id)
        if customer is None:
            raise DeadLetter(f"there is no customer {customer_id}")  # no number of retries would find her
        if customer.welcomed_at is not None:
            return {"to": customer.email, "skipped": "welcomed before"}
        mail = _welcome(customer)
        host, _, port = SMTP.partition(":")
        with smtplib.SMTP(host, int(port), timeout=10) as server:
            server.send_message(mail)
        customer.welcomed_at = func.now()
        return {"to": customer.email, "bytes": len(bytes(mail))}


@app.task(queue="images", timeout=60)
def make_thumbnail(photo: str, size: int = 320) -> dict[str, Any]:
    """Twice: the same file again, put in place whole."""
    with Image.open(PHOTOS / Path(photo).name) as image:  # the name alone: an argument must not lead out of PHOTOS
        small = ImageOps.exif_transpose(image).convert("RGB")
        small.thumbnail((size, size), Image.Resampling.LANCZOS)
    data = BytesIO()
    small.save(data, "JPEG", quality=85)
    path = _put(FILES / "thumbnails" / f"{Path(photo).stem}-{size}.jpg", data.getvalue())
    return {"path": str(path), "size": list(small.size), "bytes": len(data.getvalue())}


@app.task(queue="reports", timeout=120)
def monthly_report(month: date) -> dict[str, Any]:
    """A PDF of a month's sales; any day in it will do. Twice: the same file again, put in place whole."""
    with Session(engine) as session:
        figures = report.figures(session, month)
    data = report.draw(figures)
    path = _put(FILES / "reports" / f"sales-{figures.first:%Y-%m}.pdf", data)
    return {"path": str(path), "bytes": len(data), "orders": figures.orders, "revenue": str(figures.revenue)}


@app.task(queue="inventory", retry=RetryPolicy(delay=1, factor=2, jitter=0))
async def sync_inventory(sku: str) -> dict[str, Any]:
    """Asks the warehouse's API. An error answer raises, and so is retried after 1, 2, 4 s. Twice: the later wins."""
    async with httpx.AsyncClient(base_url=API, timeout=10) as client:
        answer = await client.get(f"/stock/{sku}")
    answer.raise_for_status()
    stock = int(answer.json()["stock"])
    async with AsyncSession(async_engine) as session, session.begin():
        await session.execute(update(Product).where(Product.sku == sku).values(stock=stock))
    return {"sku": sku, "stock": stock}


@app.task(queue="payments", retry=RetryPolicy(delay=0.5, factor=2, jitter=0))
def charge_order(order_id: int, amount: str) -> dict[str, Any]:
    """Marks an order paid. Twice: an order that is paid already is left alone.

    An amount that is no number is an error in the code that enqueued the job. It fails four times, then waits in
    the dead-letter table until somebody sends it on with corrected arguments.
    """
    try:
        charged = Decimal(amount)
    except InvalidOperation:
        raise ValueError(f"the amount {amount!r} is not a number such as 12.50") from None
    with Session(engine) as session, session.begin():
        order = session.scalars(select(Order).where(Order.id == order_id).with_for_update()).one()
        if charged != order.total:
            raise ValueError(f"order {order_id} costs {order.total}, not {charged}")
        if order.paid_at is None:
            order.paid_at = func.now()
    return {"order": order_id, "charged": str(charged)}


@app.task(queue="imports", timeout=120)
def import_catalogue(path: str) -> dict[str, Any]:
    """Reads a CSV of products, one transaction a row. Twice: a row that is there already is updated, not doubled."""
    rows = new = 0
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            time.sleep(0.08)  # stands for a supplier's slow line: slow enough to be killed in the middle
            with Session(engine) as session, session.begin():
                product = insert(Product).values(sku=row["sku"], name=row["name"], price=Decimal(row["price"]))
                product = product.on_conflict_do_update(
                    index_elements=[Product.sku], set_={"name": product.excluded.name, "price": product.excluded.price}
                )
                new += bool(session.scalar(product.returning(literal_column("xmax = 0"))))  # true: inserted
            rows += 1
    return {"rows": rows, "new": new, "there_already": rows - new}


@app.task(timeout=60, schedules=[Schedule(cron="0 2 * * *", name="nightly", args={"older_than_seconds": 3600})])
def clean_up(older_than_seconds: float) -> dict[str, Any]:
    """Deletes what killed jobs left half-written, each night. Twice: there is nothing left to delete."""
    files = size = 0
    for path in TEMPORARY.glob("*.part"):
        try:
            found = path.stat()
            if time.time() - found.st_mtime < older_than_seconds:
                continue
            path.unlink()
        except FileNotFoundError:
            continue  # another run of this job was faster
        files, size = files + 1, size + found.st_size
    return {"files": files, "bytes": size}


def _put(path: Path, data: bytes) -> Path:
    """Writes a file whole or not at all: under another name first, then renamed. A reader never sees half of it."""
    TEMPORARY.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = TEMPORARY / f"{uuid4()}.part"
    part.write_bytes(data)
    return part.replace(path)


def _welcome(customer: Customer) -> EmailMessage:
    """Text for every mail program, HTML for those that want it."""
    mail = EmailMessage()
    mail["From"] = Address("The print shop", addr_spec="hello@shop.example")
    mail["To"] = Address(customer.name, addr_spec=customer.email)
    mail["Subject"] = f"Welcome, {customer.name}"
    mail["Message-ID"] = f"<welcome-{customer.id}@shop.example>"
    mail.set_content(
        f"Hello {customer.name},\n\nyour photo has arrived, and we print it on almost anything.\n\nThe print shop\n"
    )
    mail.add_alternative(
        f"<h1>Hello {escape(customer.name)},</h1>"
        "<p>your photo has arrived, and we print it on <em>almost anything</em>.</p><p>The print shop</p>",
        subtype="html",
    )
    return mail
