"""Tables, and a month of sales to report on. By hand: python -m examples.shop.seed (safe to do twice)."""

from __future__ import annotations

import csv
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from examples.shop.app import engine
from examples.shop.models import Customer, Order, Product, create_tables

CATALOGUE = Path(__file__).with_name("catalogue.csv")
ON_SALE = 14  # products of the catalogue that the shop has from the start; the job import_catalogue brings the rest
CUSTOMERS = ("Grace Hopper", "Alan Turing", "Katherine Johnson", "Edsger Dijkstra", "Barbara Liskov", "Donald Knuth")


def last_month() -> date:
    """The first day of it."""
    return (datetime.now(UTC).date().replace(day=1) - timedelta(days=1)).replace(day=1)


def seed(session: Session) -> None:
    """The same sales every time: about 15 orders a day, more at the week-end, some never paid."""
    if session.scalar(select(Order.id).limit(1)) is not None:
        return
    with CATALOGUE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:ON_SALE]
    products = [Product(sku=row["sku"], name=row["name"], price=Decimal(row["price"])) for row in rows]
    emails = [f"{name.split()[0].lower()}@example.com" for name in CUSTOMERS]
    customers = [Customer(name=name, email=email) for name, email in zip(CUSTOMERS, emails, strict=True)]
    session.add_all([*products, *customers])
    session.flush()

    chance = random.Random(1815)
    first = last_month()
    day = datetime(first.year, first.month, 1, tzinfo=UTC)
    while day.month == first.month:
        for _ in range(chance.randint(9, 20) + (8 if day.weekday() >= 5 else 0)):
            at = day + timedelta(minutes=chance.randint(7 * 60, 23 * 60))
            product = chance.choices(products, weights=range(len(products), 0, -1))[0]
            quantity = chance.choice((1, 1, 1, 2, 2, 3, 5))
            paid = at + timedelta(minutes=2) if chance.random() < 0.97 else None
            order = Order(
                customer_id=chance.choice(customers).id,
                sku=product.sku,
                quantity=quantity,
                total=product.price * quantity,
                ordered_at=at,
                paid_at=paid,
            )
            session.add(order)
        day += timedelta(days=1)


def prepare() -> None:
    create_tables(engine)
    with Session(engine) as session, session.begin():
        seed(session)


if __name__ == "__main__":
    prepare()
    print(f"the shop has its tables, its first products and the sales of {last_month():%Y-%m}")
