"""pgqueue bench: measures the database at hand, and leaves nothing in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import psycopg

from tests.cli.conftest import Run
from tests.helpers import eventually

SCHEMAS = "select nspname from pg_namespace where nspname like 'pgqueue_bench%'"
MEASURES = (
    "round_trip_ms",
    "enqueue_per_s",
    "enqueue_many_per_s",
    "run_per_s",
    "pick_up_ms",
    "pick_up_p99_ms",
)


def test_it_prints_every_measure_and_leaves_no_schema_and_no_job(on: Run, connection: psycopg.Connection[Any]) -> None:
    found = json.loads(on("bench", "--jobs", "2200", "--json").stdout)
    assert set(found) == {"jobs", "concurrency", *MEASURES}
    assert all(found[name] > 0 for name in MEASURES)
    assert found["pick_up_ms"] <= found["pick_up_p99_ms"]
    assert connection.execute(SCHEMAS).fetchall() == []
    assert connection.execute("select count(*) from pgqueue.all_jobs").fetchone() == (0,)


def test_for_people_it_is_a_line_a_measure(on: Run) -> None:
    lines = on("bench", "--jobs", "100").stdout.splitlines()
    assert "100 jobs that do nothing, worker with concurrency 20" in lines[0]
    words = ("a round trip", "enqueue, a commit each", "run, start of worker in", "an idle worker starts one", "")
    assert [line.strip().startswith(word) for line, word in zip(lines[1:], words, strict=True)] == [True] * 5


def test_a_schema_is_not_taken_for_the_place_to_measure(on: Run) -> None:
    assert "leave out --schema" in on("bench", "--schema", "pgqueue", code=2).stderr


def test_stopped_midway_it_takes_its_schema_away(connection: psycopg.Connection[Any], pgqueue_database: str) -> None:
    line = [sys.executable, "-m", "pgqueue", "bench", "--jobs", "1000000"]
    environment = {**os.environ, "PGQUEUE_DATABASE_URL": pgqueue_database}
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        eventually(lambda: connection.execute(SCHEMAS).fetchone(), timeout=30)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    assert b"Traceback" not in said
    assert connection.execute(SCHEMAS).fetchall() == []
