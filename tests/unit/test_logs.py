"""Log lines: one line whatever the fields hold, nothing that steers a terminal, and JSON that a machine can read."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import re
import sys
from typing import Any, ClassVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue import logs
from pgqueue.context import JobLogger
from pgqueue.logs import FIELDS, JsonFormatter, TextFormatter, one_line

HOSTILE = [
    "two\nlines",
    "two\r\nlines",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",  # a CSI of one byte
    "\u202egnp.exe",  # written from right to left
    "\u2066\u2069\u200f",
    "\u2028\u2029\x85\x0b\x0c\x1c",  # what else ends a line somewhere
    "a\0b",
    "\ud800",
    "\ufeff\u200b",
]


def record(message: str = "completed", /, exc_info: Any = None, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("pgqueue", logging.INFO, __file__, 1, message, None, exc_info)
    made.created = 1769847302.1134
    vars(made).update(fields)
    return made


def caught(error: BaseException) -> Any:
    try:
        raise error
    except type(error):
        return sys.exc_info()


def test_a_line_of_text_says_when_what_and_which_job() -> None:
    line = TextFormatter().format(
        record(event="job_completed", job_id=7, task="shop.send", attempt=1, seconds=0.02, worker_id=None)
    )
    assert line == "2026-01-31T08:15:02.113Z INFO    completed job_id=7 task=shop.send attempt=1 seconds=0.02"


def test_a_line_of_json_has_the_same_and_the_event() -> None:
    line = JsonFormatter().format(record(event="job_completed", job_id=7, task="shop.send"))
    assert json.loads(line) == {
        "time": "2026-01-31T08:15:02.113Z",
        "level": "INFO",
        "logger": "pgqueue",
        "message": "completed",
        "event": "job_completed",
        "job_id": 7,
        "task": "shop.send",
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_it_is_one_printable_line_whatever_message_and_fields_hold(formatter: logging.Formatter, text: str) -> None:
    line = formatter.format(record(f"handler of {text} failed", **dict.fromkeys(FIELDS, text)))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    line.encode()


@given(
    st.text(),
    st.one_of(st.none(), st.text(), st.integers(), st.floats(allow_nan=False), st.binary(), st.lists(st.text())),
)
def test_a_line_of_json_can_be_read_back(message: str, value: Any) -> None:
    line = JsonFormatter().format(record(message.replace("%", "%%"), error=value))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == message.replace("%", "%%")


@given(st.text())
def test_what_is_printable_stays_as_it_is_and_the_rest_is_escaped(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert (line == text) is text.isprintable()
    assert [char for char in text if char.isprintable()] == [char for char in text if char in line]


def test_words_in_any_language_are_left_alone() -> None:
    for text in ("grün", "日本語", "مرحبا", "naïve 😀", "a\\nb"):
        assert one_line(text) == text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_traceback_follows_below_in_text_and_steers_no_terminal(text: str) -> None:
    lines = TextFormatter().format(record("the worker broke", caught(ValueError(text)))).split("\n")
    assert lines[0].rstrip().endswith("the worker broke")
    assert lines[1] == "Traceback (most recent call last):"
    assert all(line.isprintable() for line in lines)


def test_a_traceback_stays_on_its_line_in_json() -> None:
    line = JsonFormatter().format(record("the worker broke", caught(ValueError("two\nlines"))))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["traceback"].endswith("ValueError: two\nlines")


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_traceback_that_comes_as_text_is_laid_out_as_any_other(text: str) -> None:
    given = f"  File shop.py, line 7\nValueError: {text}"
    lines = TextFormatter().format(record("failed", traceback=given)).split("\n")
    assert lines[0].rstrip().endswith("failed")
    assert lines[1] == "  File shop.py, line 7"
    assert lines[2].startswith("ValueError: ")
    assert all(line.isprintable() for line in lines)
    assert json.loads(JsonFormatter().format(record("failed", traceback=given)))["traceback"] == given


def test_a_field_that_is_no_json_is_written_as_text() -> None:
    assert json.loads(JsonFormatter().format(record(worker_id=ValueError("x"))))["worker_id"] == "x"


def test_what_else_is_said_in_extra_stands_below_extra_in_json() -> None:
    said = {"order_id": 7, "items": [{"sku": "a"}], "total": 1.5, "paid": True, "note": None, "when": UUID(int=1)}
    line = json.loads(JsonFormatter().format(record(job_id=7, **said)))
    assert line["extra"] == said | {"when": str(UUID(int=1))}
    assert line["job_id"] == 7
    assert "extra" not in json.loads(JsonFormatter().format(record(job_id=7)))
    assert "extra" not in json.loads(JsonFormatter().format(record("taskName and all", taskName="Task-1")))


class Unprintable:
    def __str__(self) -> str:
        raise SystemExit(3)


def itself() -> list[Any]:
    made: list[Any] = [1]
    made += [made, {"again": made}]
    return made


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), "nan"),
        ([1.5, float("inf"), -float("inf")], [1.5, "inf", "-inf"]),
        ({"deep": [{"er": float("nan")}]}, {"deep": [{"er": "nan"}]}),
        ({(1, 2): "a", 3: "b"}, {"(1, 2)": "a", "3": "b"}),
        (10**5000, "(a int that cannot be printed: ValueError)"),
        (Unprintable(), "(a Unprintable that cannot be printed: SystemExit)"),
        (itself(), [1, "…", {"again": "…"}]),
        ("two\nlines \x1b[2J \u2028", "two\nlines \x1b[2J \u2028"),
    ],
    ids=["NaN", "infinities", "deep", "keys that are no text", "a huge number", "unprintable", "cyclic", "hostile"],
)
def test_whatever_stands_in_extra_the_line_is_one_of_valid_json(value: Any, written: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    line = JsonFormatter().format(record(job_id=7, odd=value))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line, parse_constant=refuse)["extra"]["odd"] == written


def test_what_is_nested_for_ever_is_cut() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"in": deep}
    assert json.loads(JsonFormatter().format(record(odd=deep)))["extra"]["odd"]["in"]["in"]


class Running:
    log_fields: ClassVar[dict[str, Any]] = {"job_id": 7, "task": "shop.send", "attempt": 2}


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_a_line_that_a_library_logs_inside_a_job_names_the_job_unless_it_names_one(formatter: Any) -> None:
    token = logs.running.set(Running())
    try:
        inside, another = formatter.format(record("GET /")), formatter.format(record("completed", job_id=9))
    finally:
        logs.running.reset(token)
    outside = formatter.format(record("GET /"))
    assert [inside.count("shop.send"), another.count("shop.send"), outside.count("shop.send")] == [1, 0, 0]
    assert [re.findall(r"job_id\W+(\d+)", line) for line in (inside, another, outside)] == [["7"], ["9"], []]


def test_a_formatter_may_be_made_as_logging_config_makes_it() -> None:
    config: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"class": "pgqueue.logs.JsonFormatter"}},
        "handlers": {"it": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {"test.of.config": {"handlers": ["it"], "propagate": False}},
    }
    logging.config.dictConfig(config)
    (handler,) = logging.getLogger("test.of.config").handlers
    assert json.loads(handler.format(record()))["message"] == "completed"


@pytest.fixture
def root() -> Any:
    """The root logger, left as it was found."""
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    quiet = logging.getLogger("psycopg").level
    yield logger
    logger.handlers[:] = before
    logger.setLevel(level)
    logging.getLogger("psycopg").setLevel(quiet)


@pytest.mark.parametrize(
    ("form", "expected"), [("text", r"^\S+Z WARNING aloud job_id=7\n$"), ("json", r'^\{"time".*\}\n$')]
)
def test_configure_logs_to_standard_error_from_a_level_on(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, form: str, expected: str
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    logs.configure("warning", form)
    logging.getLogger("pgqueue").info("not heard", extra={"job_id": 7})
    logging.getLogger("pgqueue").warning("aloud", extra={"job_id": 7})
    logging.getLogger("psycopg").warning("error ignored terminating the connection")
    assert re.fullmatch(expected, err.getvalue())


def test_a_jobs_own_lines_name_the_job_and_may_say_more(caplog: pytest.LogCaptureFixture) -> None:
    log = JobLogger(logging.getLogger("pgqueue"), {"job_id": 7, "task": "shop.send", "attempt": 2})
    with caplog.at_level("INFO", "pgqueue"):
        log.info("sent %d", 3, extra={"seconds": 1.5})
    (line,) = caplog.records
    assert TextFormatter().format(line).endswith("INFO    sent 3 job_id=7 task=shop.send attempt=2 seconds=1.5")
