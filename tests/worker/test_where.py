"""A worker works on the database that its application enqueues to, however the application says where that is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict

from pgqueue import ConfigurationError, PgQueue


@pytest.mark.parametrize("way", ["connect_args", "creator"])
def test_an_engine_whose_url_does_not_say_where_is_asked(way: str, pgqueue_database: str) -> None:
    parts = conninfo_to_dict(pgqueue_database)
    if way == "connect_args":
        engine = sa.create_engine("postgresql+psycopg://", connect_args=parts)
    else:
        engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(**parts))
    app = PgQueue(engine)

    @app.task(name="test.here")
    def here() -> None: ...

    job = here.delay()
    assert conninfo_to_dict(app.conninfo)["dbname"] == parts["dbname"]
    asyncio.run(app.worker(drain=True, poll_interval=0.05).run_async())
    assert app.jobs.get(job.id).state == "completed"
    engine.dispose()


def test_the_password_of_an_engine_travels_as_it_is(pgqueue_database: str) -> None:
    url = sa.make_url(pgqueue_database).set(drivername="postgresql+psycopg", password="p@%:/ ")
    engine = sa.create_engine(url)
    found = conninfo_to_dict(PgQueue(engine).conninfo)
    assert found["password"] == "p@%:/ "
    psycopg.connect(**found).close()
    engine.dispose()


def test_a_worker_of_an_engine_that_reaches_nothing_says_so_in_one_line(tmp_path) -> None:
    (tmp_path / "far.py").write_text(
        "import sqlalchemy as sa\nfrom pgqueue import PgQueue\n"
        "url = 'postgresql+psycopg://u:c4nary@127.0.0.1:1/x'\napp = PgQueue(sa.create_engine(url))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PGQUEUE_DATABASE_URL"}
    environment["PYTHONPATH"] = os.getcwd()
    command = [sys.executable, "-m", "pgqueue", "worker", "far:app"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert "cannot reach" in done.stderr
    assert "c4nary" not in done.stdout + done.stderr


def test_hosts_that_libpq_would_lose_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="several hosts are written postgresql://h1:5432,h2:5433"):
        PgQueue("postgresql+psycopg://u:secret@/shop?host=h1:5432&host=h2:5433")
    assert conninfo_to_dict(PgQueue("postgresql://h1:5432,h2:5433/shop").conninfo)["host"] == "h1,h2"
