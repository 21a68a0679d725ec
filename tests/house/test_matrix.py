"""`make matrix` leaves out no pair of versions, and no version that pyproject.toml says is supported."""

from __future__ import annotations

import re
from itertools import combinations, product
from pathlib import Path

import pytest

from tests.matrix import NEWEST, OLDEST_PYTHON, SERVERS, SQLALCHEMY, every_cell, pairwise

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("pythons", [["3.11"], ["3.11", "3.13"], ["3.11", "3.12", "3.13"]], ids=len)
def test_every_two_versions_meet_in_some_cell(pythons: list[str]) -> None:
    versions = [[*SERVERS, NEWEST], pythons, list(SQLALCHEMY)]
    cells = [(cell.postgres, cell.python, cell.sqlalchemy) for cell in pairwise(*versions)]
    for first, second in combinations(range(3), 2):
        met = {(cell[first], cell[second]) for cell in cells}
        assert met == set(product(versions[first], versions[second]))
    assert len(cells) == len(set(cells)) <= 15
    assert len(every_cell(*versions)) == 10 * len(pythons)


def test_the_versions_are_those_that_the_readme_and_the_package_name() -> None:
    majors = [int(major) for major in (*SERVERS, NEWEST)]
    assert f"PostgreSQL {majors[0]} to {majors[-1]}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert majors == list(range(majors[0], majors[-1] + 1))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">=3.{OLDEST_PYTHON}"' in text
    low, high = re.findall(r"sqlalchemy\[asyncio\]>=([\d.]+),<([\d.]+)", text)[0]
    assert f">={low}," in SQLALCHEMY["2.0"]
    assert SQLALCHEMY["2.1"].endswith(f"<{high}")
