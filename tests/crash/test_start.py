"""What cannot work says so at the start: in one line, with an exit code that means something, without the password."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pgqueue.cli import cli
from pgqueue.cli.child import load
from pgqueue.errors import ConfigurationError

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--concurrency", "0"], "concurrency"),
        (["--concurrency", "1000000000"], "concurrency"),
        (["--concurrency", "many"], "concurrency"),
        (["--processes", "-1"], "processes"),
        (["--lease", "nan"], "lease"),
        (["--lease", "0"], "lease"),
        (["--grace", "-1"], "grace"),
        (["--poll-interval", "inf"], "poll_interval"),
        (["--sweep-interval", "0"], "sweep_interval"),
        (["--queues", " , "], "queues"),
        (["--log-format", "xml"], "log-format"),
        (["--listen-url", f"mysql://me:{PASSWORD}@here/db"], "mysql"),
        (["--database-url", f"postgresql//me:{PASSWORD}@here"], "malformed"),
        (["--schema", "pg_mine"], "schema"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_a_flag_that_cannot_work_is_a_usage_error_that_names_it(flags, named):
    result = CliRunner().invoke(cli, ["worker", "tests.crash.tasks:app", *flags])
    assert result.exit_code == 2
    assert named in result.output
    assert PASSWORD not in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("value", ["0", "5s", "yes"])
def test_so_is_one_from_the_environment(value):
    result = CliRunner().invoke(cli, ["worker", "tests.crash.tasks:app"], env={"PGQUEUE_PROCESSES": value})
    assert result.exit_code == 2
    assert "processes" in result.output.lower()


@pytest.mark.parametrize("app", ["tests.crash.tasks", ":app", "tests.crash.tasks:"])
def test_so_is_an_application_that_is_not_named_as_one(app):
    result = CliRunner().invoke(cli, ["worker", app])
    assert result.exit_code == 2
    assert "MODULE:APP" in result.output


MODULES = {
    "broken": "x = 1\nraise RuntimeError('no settings file')\n",
    "needs_more": "import no_such_library\n",
    "cut_short": "def f(:\n",
    "leaves": "import sys\nsys.exit('bye')\n",
}


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("absent:app", ["absent"]),
        ("broken:app", ["RuntimeError: no settings file", "broken.py, line 2"]),
        ("needs_more:app", ["No module named 'no_such_library'", "needs_more.py, line 1"]),
        ("cut_short:app", ["SyntaxError", "cut_short.py, line 1"]),
        ("leaves:app", ["SystemExit: bye"]),
        ("tests.crash.tasks:nothing", ["tests.crash.tasks:nothing is nothing, not a PgQueue"]),
        ("tests.crash.tasks:not_an_app", ["tests.crash.tasks:not_an_app is a str, not a PgQueue"]),
    ],
)
def test_an_application_that_cannot_be_loaded_is_refused_with_the_import_s_own_words(tmp_path, monkeypatch, app, words):
    for module, source in MODULES.items():
        (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        load(app)
    assert all(word in str(refused.value) for word in words), refused.value
    assert "\n" not in str(refused.value)


def test_a_worker_says_once_that_its_application_cannot_be_loaded(start, tmp_path):
    (tmp_path / "broken.py").write_text(MODULES["broken"])
    worker = start("broken:app", url="postgresql://localhost", env={"PYTHONPATH": str(tmp_path)}, processes=2)
    assert worker.wait() == 2
    (line,) = worker.text().splitlines()
    assert "RuntimeError: no settings file" in line


def test_an_unreachable_database_is_one_line_without_the_password(start):
    worker = start(url=f"postgresql://me:{PASSWORD}@localhost:1/none?connect_timeout=2")
    assert worker.wait() == 3
    (line,) = worker.text().splitlines()
    assert "localhost:1/none" in line
    assert PASSWORD not in line


def test_a_database_without_the_schema_is_one_line_that_says_what_to_do(start, pgqueue_blank_database):
    worker = start(url=pgqueue_blank_database)
    assert worker.wait() == 3
    (line,) = worker.text().splitlines()
    assert "pgqueue migrate" in line


def test_a_worker_without_a_database_url_is_a_usage_error(start):
    worker = start(url="")
    assert worker.wait() == 2
    (line,) = worker.text().splitlines()
    assert "PGQUEUE_DATABASE_URL" in line


def test_a_worker_tells_once_of_a_misspelled_variable_however_many_processes_it_has(start):
    worker = start(env={"PGQUEUE_CONCURENCY": PASSWORD}, processes=2, drain=True)
    assert worker.wait() == 0
    told = [line for line in worker.text().splitlines() if "PGQUEUE_CONCURENCY" in line]
    assert len(told) == 1
    assert "did you mean PGQUEUE_CONCURRENCY?" in told[0]
    assert PASSWORD not in worker.text()
