"""What the tests of looking may ask for beside tests/conftest.py: the command line on the test's database."""

from __future__ import annotations

from tests.cli.conftest import no_settings_of_the_person_who_tests, on, run

__all__ = ["no_settings_of_the_person_who_tests", "on", "run"]
