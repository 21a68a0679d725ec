"""The map on the front door shows every room and no room that is not there; every module has a sign."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import pgqueue

PACKAGE = Path(pgqueue.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = [path for path in MODULES if path.name == "__init__.py"]


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def sign(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def shown(path: Path) -> set[str]:
    """The files and rooms that a sign names: `app.py`, `worker/`, `sql/job/`."""
    return set(re.findall(r"(?<![\w/.:])(?:\w+/)*\w+(?:\.py\b|/(?![\w:]))", sign(path)))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_has_a_sign_on_its_door(path: Path) -> None:
    assert len(sign(path).split()) >= 4


@pytest.mark.parametrize("room", [room for room in ROOMS if len(list(room.parent.glob("*.py"))) > 1], ids=relative)
def test_a_rooms_map_shows_every_module_and_room_in_it(room: Path) -> None:
    modules = {path.name for path in room.parent.glob("*.py")} - {"__init__.py", "__main__.py"}
    rooms = {f"{path.parent.name}/" for path in room.parent.glob("*/__init__.py")}
    assert modules | rooms <= shown(room)


def test_the_map_of_sql_shows_its_folders() -> None:
    folders = {f"sql/{path.parent.name}/" for path in (PACKAGE / "sql").glob("*/*.sql")}
    assert shown(PACKAGE / "sql" / "__init__.py") == folders


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_sign_points_only_to_what_is_there(path: Path) -> None:
    for name in shown(path) - {"conftest.py"}:  # which is the reader's own
        assert any(PACKAGE.rglob(name.rstrip("/"))), f"{relative(path)} points to {name}"
