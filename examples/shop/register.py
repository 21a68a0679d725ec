"""The application: a customer registers. Her row and her jobs are one transaction, and that is the heart of pgqueue.

If anything raises before the commit there is neither a customer nor a job; after the commit there are all three, and no
crash in between can lose one. By hand: python -m examples.shop.register "Ada Lovelace" ada@example.org aurora.jpg
"""

from __future__ import annotations

import argparse

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from examples.shop.app import PHOTOS, engine
from examples.shop.models import Customer
from examples.shop.tasks import make_thumbnail, send_welcome_email


def register(session: Session, name: str, email: str, photo: str) -> Customer:
    """A new customer and her two jobs, in the caller's transaction: it is the caller who commits."""
    customer = Customer(name=name, email=email, photo=photo)
    session.add(customer)
    session.flush()  # gives her an id
    send_welcome_email.enqueue(session, customer.id)
    make_thumbnail.enqueue(session, photo)
    return customer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.shop.register", description="Register one customer.")
    parser.add_argument("name")
    parser.add_argument("email")
    parser.add_argument("photo", choices=sorted(path.name for path in PHOTOS.iterdir()))
    parser.add_argument("--roll-back", action="store_true", help="change your mind just before the commit")
    wanted = parser.parse_args()
    try:
        with Session(engine) as session, session.begin():
            customer = register(session, wanted.name, wanted.email, wanted.photo)
            number = customer.id
            if wanted.roll_back:
                session.rollback()
    except IntegrityError:
        raise SystemExit(f"{wanted.email} is registered already; nothing was written, no job either") from None
    if wanted.roll_back:
        print(f"customer {number} was rolled back, and her two jobs with her")
    else:
        print(f"customer {number} is registered; her two jobs are in the queue")


if __name__ == "__main__":
    main()
