"""What reaches the terminal: nothing that steers it, nothing that breaks a narrow one, no traceback when it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.cli.conftest import Fill, Run

HOSTILE = {
    "escape": "\x1b[2J\x1b]0;owned\x07",
    "one byte csi": "\x9b31m",
    "newline": "two\nlines\r\nthree",
    "bidi": "\u202egnp.exe\u202c",
    "isolate": "\u2066x\u2069",
    "line separator": "a\u2028b\x85c",
    "zero width": "a\u200bb\ufeff",
    "markup": "[red]not red[/red] [link=http://x]y[/link]",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_field_of_a_job_steers_the_terminal(on: Run, fill: Fill, text: str) -> None:
    error = {"attempt": 1, "fence": 1, "at": "2026-01-01", "error": text, "traceback": f"  {text}\n{text}"}
    job_id = fill(
        "dead", task=text, queue=text, unique_key=text, meta={text: text}, args={"a": text}, error=text, errors=[error]
    )
    live = fill(task=text, queue=text, unique_key=text, meta={text: text})
    for arguments in (
        ("jobs", "list"),
        ("dead", "list"),
        ("jobs", "show", str(live)),
        ("dead", "show", str(job_id), "--args"),
        ("jobs", "list", "--json"),
        ("dead", "list", "--json"),
        ("dead", "show", str(job_id), "--args", "--json"),
    ):
        printed = on(*arguments).stdout
        assert all(line.isprintable() for line in printed.split("\n")), ascii(printed)
    assert text[-5:] in on("dead", "list").stdout or not text.isprintable()  # what is harmless is shown as it is
    shown = json.loads(on("dead", "show", str(job_id), "--args", "--json").stdout)
    assert shown["task"] == shown["args"]["a"] == shown["errors"][0]["error"] == text


@pytest.mark.parametrize("arguments", [("enqueue",), ("jobs", "list", "--state"), ("dead", "redrive", "1", "--args")])
def test_what_was_typed_comes_back_in_one_printable_line(on: Run, arguments: tuple[str, ...]) -> None:
    result = on(*arguments, "\x1b[2J\u202e\nx", code=2)
    assert all(line.isprintable() for line in result.stderr.split("\n"))


@pytest.mark.parametrize("columns", [30, 40, 60, 80])
@pytest.mark.parametrize("command", ["jobs", "dead"])
def test_a_terminal_too_narrow_for_a_table_gets_one_job_below_the_other_whole(
    on: Run, fill: Fill, command: str, columns: int
) -> None:
    error = "RemoteError: " + "the other side said no " * 5
    task = "shop.tasks.import_all"
    ids = [fill("dead", task, queue="a-queue-of-a-very-long-name", error=error) for _ in range(3)]
    text = on(command, "list", env={"COLUMNS": str(columns)}).stdout
    assert all(len(line) <= columns for line in text.splitlines())
    lines = text.splitlines()
    assert [int(line.split()[1]) for line in lines if line.startswith("id ")] == ids[::-1]
    assert text.count(task) == 3
    if command == "dead":
        assert text.count("RemoteError:") == 3
        assert "".join(text.split()).count("".join(error.split())) == 3


def test_a_table_that_fits_is_a_table(on: Run, fill: Fill) -> None:
    fill("dead", "shop.send", queue="vip", error="Boom: no")
    for command in ("jobs", "dead"):
        lines = on(command, "list", env={"COLUMNS": "80"}).stdout.splitlines()
        assert len(lines) == 3
        assert lines[0].split()[:3] == ["id", "task", "queue"]
        assert lines[2].split()[:3] == ["1", "shop.send", "vip"]


def test_into_a_file_or_a_pipe_nothing_is_cut(on: Run, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    fill("dead", "shop.send", error="Boom: " + "x" * 150)
    lines = on("dead", "list").stdout.splitlines()
    assert len(lines) == 3
    assert "Boom: " + "x" * 150 in lines[2]


# -- a process of its own ----------------------------------------------------------------------------------------------


def command(url: str, *arguments: str, **more: str) -> tuple[list[str], dict[str, str]]:
    line = [sys.executable, "-W", "error", "-m", "pgqueue", *arguments]
    return line, {**os.environ, "PGQUEUE_DATABASE_URL": url, "COLUMNS": "120", **more}


@pytest.mark.parametrize(
    "arguments", [("jobs", "list"), ("jobs", "list", "--json", "--limit", "1000")], ids=["table", "json"]
)
def test_a_reader_who_has_seen_enough_hears_nothing_more(
    pgqueue_database: str, fill: Fill, arguments: tuple[str, ...]
) -> None:
    """`pgqueue jobs list | head -1`, with more output than a pipe holds."""
    fill(meta={"k": "x" * 200_000}, task="shop." + "x" * 100_000)
    line, environment = command(pgqueue_database, *arguments)
    reader, writer = os.pipe()
    process = subprocess.Popen(line, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.close(reader)  # before the first word
    _, err = process.communicate(timeout=60)
    assert err == ""
    assert process.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_one_line(pgqueue_database: str) -> None:
    line, environment = command(pgqueue_database, "jobs", "list")
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == "pgqueue: the output cannot be written: No space left on device\n"
    assert done.returncode == 1


def test_a_terminal_of_another_encoding_gets_what_it_cannot_show_escaped(pgqueue_database: str, fill: Fill) -> None:
    fill("dead", "日本", error="grün")
    line, environment = command(pgqueue_database, "dead", "list", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    done = subprocess.run(line, env=environment, capture_output=True)
    assert done.stderr == b""
    assert b"\\u65e5\\u672c" in done.stdout
    assert "grün".encode("latin-1") in done.stdout


def test_python_m_pgqueue_and_the_script_are_the_same_command(pgqueue_database: str) -> None:
    line, environment = command(pgqueue_database, "enqueue", "shop.send", "--unique-key", "k", "--json")
    script = [os.path.join(os.path.dirname(sys.executable), "pgqueue"), *line[5:]]
    said = [subprocess.run(one, env=environment, capture_output=True, text=True).stdout for one in (line, script)]
    assert [json.loads(one) for one in said] == [{"id": 1, "existing": False}, {"id": 1, "existing": True}]


def test_an_error_of_the_database_is_exit_3_and_one_line_from_a_process_too() -> None:
    line, environment = command("postgresql://u:cAnArY@127.0.0.1:1/shop", "jobs", "list")
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("pgqueue: cannot reach 127.0.0.1:1/shop: ")
    assert done.stderr.count("\n") == 1
    assert "cAnArY" not in done.stderr
