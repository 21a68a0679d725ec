"""What every part of the shop shares: the queue, the engines, and where its files are.

The shop and its queue live in one database, the one that PGQUEUE_DATABASE_URL names. That is what lets a customer and
the jobs that serve her be one transaction.
"""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from pgqueue import PgQueue


def sqlalchemy_url(url: str) -> str:
    """SQLAlchemy 2.0 takes a bare postgresql:// for psycopg2; the shop uses psycopg 3, as pgqueue does."""
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


app = PgQueue()  # no URL here: PGQUEUE_DATABASE_URL

DATABASE = sqlalchemy_url(os.environ["PGQUEUE_DATABASE_URL"])
engine = create_engine(DATABASE)
async_engine = create_async_engine(DATABASE)  # for jobs that are `async def`

SMTP = os.environ.get("SHOP_SMTP", "127.0.0.1:1025")  # services.py starts both of these
API = os.environ.get("SHOP_API", "http://127.0.0.1:8025")

PHOTOS = Path(__file__).with_name("photos")
FILES = Path(os.environ.get("SHOP_FILES", ".demo/files")).absolute()  # what the jobs make
TEMPORARY = FILES / "tmp"
