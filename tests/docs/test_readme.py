"""The README runs as printed: its Python, its commands and its SQL, in their order, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def shell(pgqueue_blank_database: str, tmp_path: Path):
    """Runs a command as a reader would: in an empty directory, with `pgqueue` and `python` of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PGQUEUE_DATABASE_URL": pgqueue_blank_database, "COLUMNS": "200"}

    def run(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run.directory = tmp_path
    return run


def test_the_readme_runs_as_printed(shell, pgqueue_blank_database: str) -> None:
    said: dict[str, str] = {}
    for language, text in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        if language == "python":
            name = text.splitlines()[0].removeprefix("# ")
            (shell.directory / name).write_text(text, encoding="utf-8")
            said[name] = shell(f"python {name}")
        elif language == "sh" and not text.startswith("make"):
            for command in text.splitlines():
                if not command.startswith("export"):
                    said[command] = said.get(command, "") + shell(command)
        elif language == "sql":
            with psycopg.connect(pgqueue_blank_database, autocommit=True) as connection:
                for statement in filter(str.strip, text.split(";")):
                    said[statement.split("FROM ")[1].split()[0].strip()] = str(connection.execute(statement).fetchall())

    assert "enqueued job 1" in said["signup.py"]
    assert "('payments', 0, 0, 0, 1, None)" in said["pgqueue.queue_stats"]
    assert "ada@example.org" in said["pgqueue.all_jobs"]
    assert "nobody@example.org" not in said["pgqueue.all_jobs"]
    assert "('shop.charge', 'attempts', \"ValueError: could not convert string to float" in said["pgqueue.dead_jobs"]
    assert said["pgqueue.dead_jobs"].endswith("3)]")
    assert "1 job redriven" in said[next(command for command in said if "redrive" in command)]
    assert "is dead: ValueError" in said["pgqueue worker shop:app --drain"]
    with psycopg.connect(pgqueue_blank_database, autocommit=True) as connection:
        ended = connection.execute("SELECT task, result FROM pgqueue.finished_jobs ORDER BY id").fetchall()
    assert ended == [
        ("shop.send_welcome_email", {"sent_to": "ada@example.org"}),
        ("shop.charge", "12.50"),
        ("shop.charge", "12.50"),
        ("shop.send_welcome_email", {"sent_to": "grace@example.org"}),
    ]
