"""What the measures share: a server, a fresh database a round, contestants in turn, medians and spread."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg.sql import SQL, Identifier

from benchmarks import raw
from benchmarks.contestants import Failed
from pgqueue import __version__, migrate
from pgqueue.embedded import EmbeddedPostgres

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
JOBS = os.environ.get("BENCH_JOBS")  # in place of a measure's own number of jobs: small, to see whether it runs at all
SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB"}  # else the default; fsync and synchronous_commit on

SHOWN = ["server_version", "shared_buffers", "max_wal_size", "fsync", "synchronous_commit"]

Contestant = Callable[[str], float | Mapping[str, float]]
"""Given a fresh, migrated database, one figure, or several by name. Raises Failed."""


def jobs(usual: int) -> int:
    """How many jobs a measure takes."""
    return int(JOBS) if JOBS else usual


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
            connection.execute(raw.TABLE)
        yield conninfo
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(SQL("drop database {} with (force)").format(Identifier(name)))


def compare(
    title: str,
    unit: str,
    contestants: Mapping[str, Contestant],
    floor: str,
    *,
    more_is_better: bool,
    notes: Iterable[str] = (),
    may_fail: Collection[str] = (),
) -> dict[str, float]:
    """Runs the contestants in turn, ROUNDS times, and prints medians, spread and the ratio to the floor; the medians.

    A contestant that gives several figures gets a table for each. One of `may_fail` that fails is told, and left out
    from then on."""
    tables: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, str] = {}
    with server() as url:
        for _ in range(ROUNDS):
            for name, contestant in contestants.items():
                if name in failed:
                    continue
                try:
                    with fresh_database(url) as database:
                        found = contestant(database)
                except Failed as error:
                    if name not in may_fail:
                        raise
                    failed[name] = str(error)
                    continue
                for part, figure in found.items() if isinstance(found, Mapping) else [("", found)]:
                    tables.setdefault(part, {}).setdefault(name, []).append(figure)
        print(f"\n{title}\n{machine()}; {ROUNDS} rounds, in turn\n{settings(url)}", *notes, sep="\n")
    medians = {}
    for part, figures in tables.items():
        if part:
            print(part)
        width = max(map(len, figures))
        base = statistics.median(figures[floor])
        for name, measured in figures.items():
            if name in failed:
                continue
            middle = medians[f"{name} {part}".rstrip()] = statistics.median(measured)
            ratio = middle / base if more_is_better else base / middle
            spread = f"{min(measured):,.{digits(middle)}f} to {max(measured):,.{digits(middle)}f}"
            print(f"  {name:<{width}}  {middle:>12,.{digits(middle)}f} {unit}  ({spread})  {ratio:.2f} of {floor}")
    for name, why in failed.items():
        print(f"  failed: {name}: {why}")
    return medians


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


def settings(url: str) -> str:
    """Versions, and the settings of the server that a figure hangs on."""
    with psycopg.connect(url) as connection:
        found = dict(
            connection.execute("select name, current_setting(name) from pg_settings where name = any(%s)", [SHOWN])
        )
    server = ", ".join(f"{name} {found[name]}" for name in SHOWN[1:])
    libraries = f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__})"
    loop = f"uvloop {metadata.version('uvloop')}" if find_spec("uvloop") else "no uvloop"
    return f"pgqueue {__version__}, {libraries}, {loop}; PostgreSQL {found[SHOWN[0]]}, {server}"
