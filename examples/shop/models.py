"""The shop's own tables, in a schema of their own. Nothing in here knows of jobs."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import Engine, ForeignKey, MetaData, Numeric, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateSchema
from sqlalchemy.types import DateTime


class Base(DeclarativeBase):
    metadata = MetaData(schema="shop")
    type_annotation_map = {Decimal: Numeric(10, 2), datetime: DateTime(timezone=True)}  # noqa: RUF012  SQLAlchemy's way


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str] = mapped_column(unique=True)
    photo: Mapped[str | None]  # the file she uploaded, in photos/
    registered_at: Mapped[datetime] = mapped_column(server_default=func.now())
    welcomed_at: Mapped[datetime | None]  # set by the job send_welcome_email


class Product(Base):
    __tablename__ = "products"

    sku: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[Decimal]
    stock: Mapped[int | None]  # null until the job sync_inventory has asked the warehouse


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id))
    sku: Mapped[str] = mapped_column(ForeignKey(Product.sku))
    quantity: Mapped[int]
    total: Mapped[Decimal]  # EUR
    ordered_at: Mapped[datetime] = mapped_column(server_default=func.now())
    paid_at: Mapped[datetime | None]  # set by the job charge_order


def create_tables(engine: Engine) -> None:
    """Safe to do twice."""
    with engine.begin() as connection:
        connection.execute(CreateSchema("shop", if_not_exists=True))
        Base.metadata.create_all(connection)
