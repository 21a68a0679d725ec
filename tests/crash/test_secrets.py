"""S16: what is in a URL, an argument or a key goes to the database and to the task, and shows nowhere else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue import migrate
from tests.crash.leaks import PAN
from tests.crash.processes import ROOT, children_of, ended, environment
from tests.helpers import eventually

PASSWORD = "p%40-cAnArY/:#%"
ARGUMENT = "aRgUmEnT-cAnArY"


def test_password_and_arguments_show_in_no_line_table_command_metric_or_process_list(
    start: Any, pgqueue_database: str, connection: psycopg.Connection[Any]
) -> None:
    url = make_conninfo(pgqueue_database, password=PASSWORD)  # these servers trust whoever comes
    worker = start(url=url, log_level="debug", metrics_port=0, processes=1)
    jobs = {
        "ran": ("tests.crash.tasks.quick", {"canary": ARGUMENT}),
        "a value that does not fit": ("tests.crash.tasks.quick", {"canary": [ARGUMENT]}),
        "an argument too many": ("tests.crash.tasks.quick", {"other": ARGUMENT}),
        "of another type": ("tests.crash.tasks.quick", {"canary": {ARGUMENT: 1}}),
    }
    ids = {}
    for name, (task, args) in jobs.items():
        query = "select pgqueue.enqueue(%s, %s::jsonb)"
        ids[name] = connection.execute(query, [task, json.dumps(args)]).fetchone()[0]
    states = {name: ended(connection, job).state for name, job in ids.items()}
    assert states == {"ran": "completed"} | dict.fromkeys(list(jobs)[1:], "dead")
    said: dict[str, str] = {}
    (probe,) = eventually(lambda: worker.log("probe"))
    where = probe["message"].rpartition(" ")[2]
    with urlopen(f"{where}/metrics") as answer:
        said["metrics"] = answer.read().decode()
    running = [worker.pid, *children_of(worker.pid)]
    said["process list"] = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in running)
    dead = "select error, errors::text, reason, result::text from pgqueue.all_jobs where state = 'dead'"
    said["dead letters"] = str(connection.execute(dead).fetchall())
    for command in (["dead", "list"], ["dead", "show", str(ids["an argument too many"])], ["jobs", "list", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "pgqueue", *command],
            env=environment(PGQUEUE_DATABASE_URL=url),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0
        said[" ".join(command[:2])] = done.stdout + done.stderr
    activity = "select string_agg(query || application_name, ' ') from pg_stat_activity where pid <> pg_backend_pid()"
    said["pg_stat_activity"] = str(connection.execute(activity).fetchone())
    said["log"] = worker.text()
    assert "pgqueue_jobs" in said["metrics"]
    for place, text in said.items():
        assert text, place
        assert "cAnArY" not in text, place


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_a_databases_error_says_of_a_row_shows_in_no_line_of_the_log(
    start: Any, connection: psycopg.Connection[Any], form: str
) -> None:
    worker = start("tests.crash.leaks:app", log_format=form)
    for task in ("pay", "pay_apart"):
        job = connection.execute("select pgqueue.enqueue(%s)", [f"tests.crash.leaks.{task}"]).fetchone()[0]
        assert ended(connection, job).state == "completed"
    eventually(lambda: worker.text().count("handler of completed failed") == 4, timeout=30)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1  # for its lifespan does not close
    said = worker.text()
    assert said.count("failed after its own transaction had completed it") == 2
    assert "tests.crash.leaks.cards did not close: sqlalchemy.exc.IntegrityError: duplicate key value" in said
    # Where it came from is told, and what is wrong; not with which row.
    assert said.count("in by_psycopg") == 2
    assert said.count("in by_sqlalchemy") >= 2 + 2 + 1
    assert said.count("duplicate key value violates unique constraint") >= 4 + 2 + 1
    for word in (PAN, "DETAIL", "parameters:"):
        assert word not in said
    assert "pgqueue/worker/" not in said  # its own frames are of no use to whoever wrote the task


@pytest.mark.parametrize("password", [PASSWORD, "100%", "%(here)s", "a b@c"])
def test_a_password_with_percent_signs_goes_through_alembic_as_it_is(
    pgqueue_blank_database: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    connect = psycopg.connect
    monkeypatch.setattr(psycopg, "connect", lambda *a, **k: used.append(str(a[0])) or connect(*a, **k))
    migrate.upgrade(make_conninfo(pgqueue_blank_database, password=password))
    assert migrate.current(pgqueue_blank_database) == migrate.head()
    assert psycopg.conninfo.conninfo_to_dict(used[0])["password"] == password


def test_a_worker_whose_environment_asks_for_another_encoding_runs_jobs_of_any_text(
    start: Any, connection: psycopg.Connection[Any]
) -> None:
    query = "select pgqueue.enqueue('tests.crash.tasks.quick', %s::jsonb)"
    jobs = [connection.execute(query, [json.dumps({"canary": text})]).fetchone()[0] for text in ("a", "日本 €", "b")]
    assert start(env={"PGCLIENTENCODING": "LATIN1"}, drain=True).wait() == 0
    assert [ended(connection, job).state for job in jobs] == ["completed"] * 3
