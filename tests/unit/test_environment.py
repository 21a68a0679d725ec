"""The PGQUEUE_ variables: read strictly, by name; a misspelled one is spoken of once, and never with its value."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pgqueue
from pgqueue import ConfigurationError, PgQueue, environment

CANARY = "cAnArY"


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_told", set())


@pytest.mark.parametrize(
    ("read", "text", "means"),
    [
        (environment.whole, "5", 5),
        (environment.whole, "-1", -1),  # in no setting's bounds, which their own error names
        (environment.number, "5", 5.0),
        (environment.number, "0.25", 0.25),
        (environment.switch, "1", True),
        (environment.switch, "yes", True),
        (environment.switch, "TRUE", True),
        (environment.switch, "False", False),
        (environment.switch, "off", False),
        (environment.present, " as it is ", " as it is "),
    ],
)
def test_a_variable_means_what_it_says(read: Callable[[str, str], Any], text: str, means: Any) -> None:
    assert read("PGQUEUE_X", text) == means


NUMBERS = [
    "",
    " ",
    " 5 ",
    "5s",
    "5 s",
    "yes",
    "1_000",
    "\uff11\uff12",
    "0x10",
    "five",
    "5\n",
    "nan",
    "inf",
    "1e3",
    "9" * 19,
]


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((environment.whole, text) for text in [*NUMBERS, "5.0"]),
        *((environment.number, text) for text in [*NUMBERS, "5.", ".5", "0,5"]),
        *((environment.switch, text) for text in ["", " ", " true ", "perhaps", "2", "tru"]),
        *((environment.present, text) for text in ["", " ", "\t\n"]),
        *((lambda name, text: environment.one_of(name, text, ["text", "json"]), text) for text in ["", "xml", "JSON"]),
    ],
)
def test_what_a_variable_can_only_nearly_mean_is_refused_in_one_line_that_names_it(
    read: Callable[[str, str], Any], text: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"^PGQUEUE_X (must be|is empty)") as caught:
        read("PGQUEUE_X", text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PGQUEUE_CONCURENCY", "PGQUEUE_CONCURRENCY"),
        ("PGQUEUE_DATABASE", "PGQUEUE_DATABASE_URL"),
        ("PGQUEUE_poll_interval", "PGQUEUE_POLL_INTERVAL"),
        ("PGQUEUE_LOGLEVEL", "PGQUEUE_LOG_LEVEL"),
        ("PGQUEUE_", None),
        ("PGQUEUE_XYZZY", None),
        ("PGQUEUE_\x1b[31m", None),
    ],
)
def test_an_unknown_name_is_told_with_the_one_that_was_meant(name: str, meant: str | None) -> None:
    told: list[str] = []
    environment.warn(told.append, {name: CANARY, "HOME": "/", "MY_PGQUEUE_X": "1"})
    (line,) = told
    assert line.isprintable()
    assert CANARY not in line
    assert line.endswith(f"did you mean {meant}?" if meant else "is no setting of pgqueue and changes nothing")


def test_known_names_are_told_of_by_nobody_and_unknown_ones_once() -> None:
    told: list[str] = []
    environment.warn(told.append, dict.fromkeys(environment.KNOWN, ""))
    assert told == []
    for _ in range(2):
        environment.warn(told.append, {"PGQUEUE_B": "", "PGQUEUE_A": ""})
    assert [line.split()[3] for line in told] == ["PGQUEUE_A", "PGQUEUE_B"]


def test_an_app_warns_of_an_unknown_name_once_a_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PGQUEUE_SHEMA", CANARY)
    for _ in range(2):
        PgQueue("postgresql://h/d")
    ((name, level, line),) = caplog.record_tuples
    assert (name, level) == ("pgqueue", logging.WARNING)
    assert line.endswith("did you mean PGQUEUE_SCHEMA?")
    assert CANARY not in line


def test_every_variable_that_code_or_documentation_speaks_of_is_known() -> None:
    checkout = Path(pgqueue.__file__).parent.parent
    pages = [checkout / "README.md", checkout / "Makefile", *checkout.glob("docs/**/*.md"), *checkout.glob("*.toml")]
    files = [*Path(pgqueue.__file__).parent.rglob("*.py"), *(page for page in pages if page.exists())]
    named = {name for file in files for name in re.findall(r"\bPGQUEUE_[A-Z_]*[A-Z]\b", file.read_text("utf-8"))}
    assert named <= environment.KNOWN | {"PGQUEUE_X"}
    assert {"PGQUEUE_DATABASE_URL", "PGQUEUE_PG_BIN", "PGQUEUE_TEST_DATABASE_URL"} <= named
