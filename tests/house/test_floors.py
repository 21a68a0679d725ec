"""Imports go down the stairs: the contract in .importlinter holds, and it would not if somebody went up."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import pgqueue

CHECKOUT = Path(pgqueue.__file__).parent.parent
LINT = Path(sys.executable).parent / "lint-imports"

pytestmark = pytest.mark.skipif(not (CHECKOUT / ".importlinter").exists(), reason="not run from a checkout")


def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [str(LINT), "--no-logo", "--no-cache", "--config", str(checkout / ".importlinter")]
    # -P and the like would not do: the checkout must be found before the one that is installed.
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, env={"PYTHONPATH": str(checkout)})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout to do wrong in."""
    ignore = shutil.ignore_patterns("__pycache__", "alembic")
    shutil.copytree(CHECKOUT / "pgqueue", tmp_path / "pgqueue", ignore=ignore)
    shutil.copy(CHECKOUT / ".importlinter", tmp_path)
    return tmp_path


def test_no_floor_imports_one_above_or_beside_it() -> None:
    done = lint(CHECKOUT)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "says"),
    [
        ("retry.py", "from pgqueue.worker import loop", "pgqueue.retry is not allowed to import pgqueue.worker"),
        ("monitor.py", "import pgqueue.control", "pgqueue.monitor is not allowed to import pgqueue.control"),
        (
            "context.py",
            "def late(): from pgqueue.app import PgQueue",
            "pgqueue.context is not allowed to import pgqueue.app",
        ),
    ],
    ids=["above", "beside", "hidden in a function"],
)
def test_an_import_that_goes_up_is_caught(copy: Path, module: str, line: str, says: str) -> None:
    with (copy / "pgqueue" / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1
    assert says in " ".join(done.stdout.split())


def test_a_new_module_must_say_on_which_floor_it_stands(copy: Path) -> None:
    (copy / "pgqueue" / "attic.py").write_text("")
    done = lint(copy)
    assert done.returncode == 1
    assert "attic" in done.stdout


def test_the_floors_are_rooms_that_exist() -> None:
    contract = ConfigParser()
    contract.read(CHECKOUT / ".importlinter")
    named = contract["importlinter:contract:floors"]["layers"].replace("|", " ").split()
    package = CHECKOUT / "pgqueue"
    there = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(named) == sorted(there - {"__init__", "__main__"})
