"""What the measures share: a server, a fresh database a round, contestants in turn, medians and spread."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg.sql import SQL, Identifier

from pgqueue import __version__, migrate
from pgqueue.embedded import EmbeddedPostgres

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB"}  # else the default; fsync and synchronous_commit on

Contestant = Callable[[str], float]
"""Given a fresh, migrated database, one figure."""

# The floor: the smallest table that can be a queue, and no library.
RAW_TABLE = """
create table raw_jobs (id bigint generated always as identity primary key, state text not null default 'queued',
    run_at timestamptz not null default now(), args jsonb not null);
create index on raw_jobs (run_at, id) where state = 'queued';
"""
ARGS = '{"user_id": 7, "note": "forty bytes of payload"}'


@contextmanager
def server() -> Iterator[str]:
    """URL of a server to measure on."""
    given = os.environ.get("BENCH_DATABASE_URL")
    if given:
        yield given
        return
    with EmbeddedPostgres(settings=SETTINGS) as embedded:
        yield embedded.url()


@contextmanager
def fresh_database(url: str) -> Iterator[str]:
    """URL of a migrated database with the raw table beside pgqueue's; dropped afterwards."""
    name = f"bench_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SQL("create database {}").format(Identifier(name)))
    try:
        mine = psycopg.conninfo.conninfo_to_dict(url) | {"dbname": name}
        conninfo = psycopg.conninfo.make_conninfo("", **mine)
        migrate.upgrade(conninfo)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(RAW_TABLE)
        yield conninfo
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(SQL("drop database {} with (force)").format(Identifier(name)))


def compare(title: str, unit: str, contestants: Mapping[str, Contestant], floor: str, *, more_is_better: bool) -> None:
    """Runs the contestants in turn, ROUNDS times, and prints medians, spread and the ratio to the floor."""
    with server() as url:
        figures: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(ROUNDS):
            for name, contestant in contestants.items():
                with fresh_database(url) as database:
                    figures[name].append(contestant(database))
        version = _version(url)
    print(f"\n{title}\n{machine()}; PostgreSQL {version}; pgqueue {__version__}; {ROUNDS} rounds, in turn")
    width = max(map(len, figures))
    base = statistics.median(figures[floor])
    for name, found in figures.items():
        middle = statistics.median(found)
        ratio = middle / base if more_is_better else base / middle
        spread = f"{min(found):,.{digits(middle)}f} to {max(found):,.{digits(middle)}f}"
        print(f"  {name:<{width}}  {middle:>12,.{digits(middle)}f} {unit}  ({spread})  {ratio:.2f} of {floor}")


def digits(value: float) -> int:
    return 0 if value >= 100 else 2


def machine() -> str:
    """Cores, processor, Python."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{os.cpu_count()} cores, {model}; Python {platform.python_version()}"


def _version(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("select current_setting('server_version')").fetchone()
    return str(row[0]) if row else "?"
