"""Which migrations this version brings, and where they lie: told from their file names, without loading Alembic, since
every command asks whether the schema is this version's. migrate.py runs them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pgqueue.errors import SchemaError


@cache
def head() -> str:
    """The newest migration, the one this version's statements were written for."""
    return revisions()[-1]


@cache
def revisions() -> tuple[str, ...]:
    """Every migration, oldest first: they are one line, and numbered."""
    found = sorted(file.name.partition("_")[0] for file in (location() / "versions").glob("[0-9]*_*.py"))
    if not found:
        raise SchemaError("the migrations are missing from this installation: reinstall pgqueue-py")
    return tuple(found)


def location() -> Path:
    """Where the migrations are: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).parent
    for folder in (here / "alembic", here.parent / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise SchemaError("the migrations are missing from this installation: reinstall pgqueue-py")
