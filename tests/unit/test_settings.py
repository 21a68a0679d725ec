"""Every knob within its bounds; database URLs as people write them, whose passwords show nowhere."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from psycopg import conninfo
from psycopg.pq import Conninfo

from pgqueue import ConfigurationError, Job, PgQueue
from pgqueue.db import Claim
from pgqueue.drivers import Call
from pgqueue.settings import (
    MAX_SCHEMA_BYTES,
    WorkerSettings,
    conninfo_from_url,
    database_url,
    describe,
    positive_seconds,
    schema_name,
    scrub,
)
from pgqueue.sql import quote
from pgqueue.worker.claim import attempt
from pgqueue.worker.run import Succeeded
from pgqueue.worker.settle import Settlement, ToComplete

CANARY = "cAnArY"

# -- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("postgresql://u:p@h:5433/d", {"user": "u", "password": "p", "host": "h", "port": "5433", "dbname": "d"}),
        ("postgres://u@h/d", {"user": "u", "host": "h", "dbname": "d"}),
        ("postgresql+psycopg://u:p@h/d", {"user": "u", "password": "p", "host": "h", "dbname": "d"}),
        ("postgresql+psycopg2://h/d", {"host": "h", "dbname": "d"}),
        ("postgresql+asyncpg://h/d", {"host": "h", "dbname": "d"}),
        ("postgresql://", {}),
        ("postgresql:///d", {"dbname": "d"}),
        ("postgresql:///d?host=/run/postgresql", {"dbname": "d", "host": "/run/postgresql"}),
        ("postgresql:///d?host=@abstract", {"dbname": "d", "host": "@abstract"}),
        ("postgresql://%2Frun%2Fpostgresql/d", {"dbname": "d", "host": "/run/postgresql"}),
        ("postgresql://u@[::1]:5432/d", {"user": "u", "host": "::1", "port": "5432", "dbname": "d"}),
        ("postgresql://u@a:1,b:2/d", {"user": "u", "host": "a,b", "port": "1,2", "dbname": "d"}),
        (
            "postgresql://h/d?sslmode=require&application_name=a@b",
            {"host": "h", "dbname": "d", "sslmode": "require", "application_name": "a@b"},
        ),
        ("postgresql://u:%40%3A%2F%25%23@h/d", {"user": "u", "password": "@:/%#", "host": "h", "dbname": "d"}),
        ("postgresql+psycopg://u:p w @h/d\n", {"user": "u", "password": "p w ", "host": "h", "dbname": "d"}),
        ("postgresql://u:p#?:x@h/d", {"user": "u", "password": "p#?:x", "host": "h", "dbname": "d"}),
        ("host=h dbname=d password='with space'", {"host": "h", "dbname": "d", "password": "with space"}),
        ("service=shop", {"service": "shop"}),
    ],
)
def test_a_url_is_taken_as_people_write_it(url: str, means: dict[str, str]) -> None:
    assert conninfo.conninfo_to_dict(conninfo_from_url(url)) == means


MALFORMED = [
    "",
    "localhost",
    f"user:{CANARY}@host/db",
    f"postgresql//u:{CANARY}@host/db",
    f"postgresql:/u:{CANARY}@host/db",
    f"postgresql:u:{CANARY}@host/db",
    f" postgresql://u:{CANARY}@host/db",
    f"POSTGRESQL://u:{CANARY}@host/db",
    f"mysql://u:{CANARY}@host/db",
    f"sqlite:///{CANARY}.db",
    f"u:{CANARY}@host://db",
    f"postgresql://u:{CANARY}%zz@host/db",
    f"postgresql://u:{CANARY}%@host/db",
    f"postgresql://u:{CANARY}/x@host/db",
    f"postgresql://u:12/{CANARY}@host/db",
    f"postgresql://u:p@{CANARY}@host/db",
    f"postgresql://u:p?x@{CANARY}@host/db",
    f"postgresql://u:p@x/{CANARY}@host/db",
    f"postgresql://u:{CANARY}@host:99999/db",
    f"postgresql://u:{CANARY}@host:0/db",
    f"postgresql://u:{CANARY}@host:-1/db",
    f"postgresql://u:{CANARY}@host:abc/db",
    f"postgresql://u:{CANARY}@a:1,b:{CANARY}/db",
    f"postgresql://u:{CANARY}@[::1/db",
    f"postgresql://u:{CANARY}@host/db?no_such_option={CANARY}",
    f"postgresql://u:{CANARY}@host/db?{CANARY}",
    f"postgresql://u@host/db?password={CANARY}&x",
    f"postgresql://u:{CANARY}\0@host/db",
    f"postgresql://u:{CANARY}\udcff@host/db",
    f"host=h password={CANARY} {CANARY}",
    f"host=h password='{CANARY}",
    f"host=h {CANARY}=1",
    f"host=h port=x{CANARY}",
    f"password={CANARY}\0 host=h",
]


@pytest.mark.parametrize("url", MALFORMED, ids=repr)
def test_a_malformed_url_is_refused_in_one_line_without_its_password(url: str) -> None:
    for use in (conninfo_from_url, PgQueue):
        with pytest.raises(ConfigurationError) as caught:
            use(url)
        message = str(caught.value)
        assert "database URL" in message
        assert message.isprintable()
        assert CANARY not in message
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None  # not in a traceback either
    assert describe(url) == "the database"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_password_survives_a_url_made_by_sqlalchemy_and_shows_nowhere(password: str) -> None:
    password = f"{CANARY}{password}"
    url = sa.URL.create("postgresql+psycopg", "u", password, "h", 5432, "d").render_as_string(hide_password=False)
    known = conninfo_from_url(url)
    assert conninfo.conninfo_to_dict(known)["password"] == password
    assert describe(url) == "h:5432/d"
    assert CANARY not in scrub(f"{url} {known} {password}", url)


@given(st.text(max_size=30), st.text(max_size=30))
def test_whatever_is_written_for_a_url_the_answer_is_a_conninfo_or_a_configuration_error(one: str, two: str) -> None:
    for url in (one, f"postgresql://{one}", f"postgresql://u:{one}@{two}", f"host={one} password={two}"):
        describe(url)
        scrub("text", url)
        try:
            conninfo.conninfo_to_dict(conninfo_from_url(url))
        except ConfigurationError:
            pass


def test_the_url_given_counts_before_the_environment() -> None:
    environ = {"PGQUEUE_DATABASE_URL": " postgresql://from/environment\n"}
    assert database_url("postgresql://given/here", environ) == "postgresql://given/here"
    assert database_url(None, environ) == "postgresql://from/environment"


@pytest.mark.parametrize(
    ("given_", "environ"),
    [(None, {}), (None, {"PGQUEUE_DATABASE_URL": ""}), ("", {}), (" ", {}), (None, {"DATABASE_URL": "x"})],
)
def test_without_a_database_the_message_says_how_to_name_one(given_: str | None, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="PGQUEUE_DATABASE_URL"):
        database_url(given_, environ)


@pytest.mark.parametrize(
    ("url", "where"),
    [
        (f"postgresql://u:{CANARY}@db.example:5433/shop", "db.example:5433/shop"),
        (f"postgresql://{CANARY}@db.example/shop", "db.example/shop"),
        (f"postgresql:///shop?host=/run/pg&password={CANARY}", "/run/pg/shop"),
        (f"hostaddr=10.0.0.1 dbname=shop password={CANARY}", "10.0.0.1/shop"),
        ("postgresql:///shop", "the local socket/shop"),
        ("postgresql://shop@", "the local socket/shop"),  # as libpq: the user's name, for want of another
    ],
)
def test_describe_says_where_and_not_who(url: str, where: str) -> None:
    assert describe(url) == where


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{CANARY}@h/d",
        "postgresql://u:c%41nArY@h/d",
        f"postgresql://h/d?password={CANARY}",
        f"postgresql://h/d?sslpassword={CANARY}",
        f"host=h password={CANARY}",
        f"mysql://u:{CANARY}@h/d",
        f"postgresql://u:{CANARY}@h:99999/d",
    ],
)
def test_scrub_takes_the_password_out_of_any_text_in_whatever_encoding(url: str) -> None:
    text = scrub(f'connection to "{url}" failed: password "{CANARY}" is wrong', url)
    assert CANARY not in text
    assert "c%41nArY" not in text
    assert text.count("***") == 2


@pytest.mark.parametrize("name", ["sslpassword", "oauth_client_secret"])
def test_scrub_knows_the_other_secrets_of_a_connection_string(name: str) -> None:
    if name not in {option.keyword.decode() for option in Conninfo.get_defaults()}:
        pytest.skip(f"this libpq has no {name}")
    for url in (f"host=h {name}={CANARY}", f"postgresql://h/d?{name}={CANARY}"):
        assert CANARY not in scrub(f"cannot use {CANARY} of {url}", url)


def test_scrub_leaves_other_text_alone() -> None:
    assert scrub("could not connect to h: no route", "postgresql://u@h/d") == "could not connect to h: no route"
    assert scrub("could not connect", "") == "could not connect"


# -- the app ---------------------------------------------------------------------------------------------------------


def test_an_app_takes_a_url_an_engine_on_psycopg_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", "postgresql://from/environment")
    engine = sa.create_engine("postgresql+psycopg://u:p%40@h/d")
    assert PgQueue(engine).engine is engine
    assert PgQueue("postgres://h/d").conninfo == "postgresql://h/d"
    assert PgQueue().conninfo == "postgresql://from/environment"


@pytest.mark.parametrize("database", [sa.create_engine("sqlite://"), 7, b"postgresql://h/d", object()])
def test_an_app_refuses_what_is_no_database(database: Any) -> None:
    with pytest.raises(ConfigurationError):
        PgQueue(database)


@pytest.mark.parametrize("retention", [0, -1, math.inf, math.nan, "1", True, None])
def test_retention_is_a_positive_number_of_seconds(retention: Any) -> None:
    with pytest.raises(ConfigurationError, match="retention must be a positive number of seconds"):
        PgQueue("postgresql://h/d", retention=retention)
    with pytest.raises(ConfigurationError, match="x must"):
        positive_seconds("x", retention)


# -- schema names ----------------------------------------------------------------------------------------------------

ODD_NAMES = [
    'a"; drop table x; --',
    "100%",
    "%s",
    "a b",
    "MiXed",
    "a:b",
    "a.b",
    "'",
    "\\",
    "ü" * 20,
    "x" * 40,
    "$$",
    "-- a",
    "\n",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_schema_may_have_any_name_of_40_bytes_and_is_quoted(name: str) -> None:
    assert schema_name(name) == name
    assert quote(name) == '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize(
    "name", ["", "x" * 41, "ü" * 21, "a\0b", "pg_queue", "pg_", "\ud800", "\ud800" * 41, None, 7, b"pgqueue"]
)
def test_a_name_that_cannot_be_a_schema_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        schema_name(name)
    with pytest.raises(ConfigurationError, match="schema"):
        PgQueue("postgresql://h/d", schema=name)


def test_a_schema_name_leaves_room_for_what_is_derived_from_it() -> None:
    assert len("finished_jobs_20260101") + MAX_SCHEMA_BYTES <= 63


# -- worker settings --------------------------------------------------------------------------------------------------

BOUNDS = {
    "concurrency": (1, 10_000),
    "processes": (1, 1_000),
    "grace": (0.0, 86_400.0),
    "lease": (0.5, 3_600.0),
    "poll_interval": (0.01, 3_600.0),
    "sweep_interval": (0.01, 3_600.0),
    "metrics_port": (0, 65_535),
    "max_jobs_per_process": (1, 1_000_000_000),
    "max_memory": (1, 1_000_000_000),
    "max_age": (1.0, 1_000_000_000.0),
}


@pytest.mark.parametrize(("name", "least", "most"), [(name, *bounds) for name, bounds in BOUNDS.items()])
def test_a_number_is_taken_at_its_bounds_and_refused_beyond(name: str, least: float, most: float) -> None:
    for value in (least, most):
        assert getattr(WorkerSettings(**{name: value}), name) == value
    whole = isinstance(least, int)
    beyond = [least - 1, most + 1, "5", True, math.nan, math.inf, [], b"5", *([1.5] if whole else [])]
    for value in beyond:
        with pytest.raises(ConfigurationError, match=f"^{name} must be"):
            WorkerSettings(**{name: value})


def test_the_bounds_above_are_those_of_every_number_there_is() -> None:
    kinds = ("int", "float", "int | None", "float | None")
    numbers = {item.name for item in dataclasses.fields(WorkerSettings) if item.type in kinds}
    assert numbers == set(BOUNDS)


def test_queues_are_all_or_some_and_never_none_at_all() -> None:
    assert WorkerSettings().queues is None
    assert WorkerSettings(queues=("a", "b")).queues == ("a", "b")
    with pytest.raises(ConfigurationError, match="queues must name at least one queue"):
        WorkerSettings(queues=())
    for value in ("email", (7,), ("a", None)):  # a text would be served letter by letter
        with pytest.raises(ConfigurationError, match="queues must be a list of names"):
            PgQueue("postgresql://h/d").worker(queues=value)


def test_every_setting_says_what_it_is_for() -> None:
    for item in dataclasses.fields(WorkerSettings):
        assert item.metadata["help"].endswith("."), item.name


def test_two_heartbeats_may_be_lost_before_a_lease_ends() -> None:
    assert WorkerSettings(lease=15).beat_interval * 3 == 15


def test_settings_are_the_same_after_the_way_to_a_child() -> None:
    made = WorkerSettings(queues=("a",), concurrency=3, drain=True)
    assert WorkerSettings(**made.as_dict()) == made


def test_a_listen_url_is_a_url_or_refused_without_its_password() -> None:
    for url in (7, "", f"mysql://u:{CANARY}@h/d", f"postgresql://u:{CANARY}%zz@h/d"):
        with pytest.raises(ConfigurationError, match=r"listen_url must be a URL, not int|database URL") as caught:
            WorkerSettings(listen_url=url)  # type: ignore[arg-type]
        assert CANARY not in str(caught.value)


def test_what_an_error_report_prints_of_our_objects_shows_no_password_and_no_argument() -> None:
    app = PgQueue(f"postgresql://u:{CANARY}@h/d")

    @app.task(name="t")
    def t(name: str) -> None: ...

    new = t.options(unique_key="k").job(CANARY)
    claim = Claim(1, "t", "q", 0, 1, 4, 1, 0, 0.0, 0.0, 0.0, None, new.args, None, None, None)
    call = Call("select %(args)s", {"args": CANARY})
    made = attempt(claim, t, uuid4())
    settled = Settlement(made, ToComplete(f'"{CANARY}"'), 0.0)
    objects = (
        *(app, t, new, [new], claim, call, made, made.job, settled, Succeeded(CANARY)),
        WorkerSettings(listen_url=f"postgresql://u:{CANARY}@h/d"),
        Job(1, "t", args=[CANARY], result=CANARY, error=CANARY, errors=[{"error": CANARY}]),
    )
    for one in objects:
        assert CANARY not in f"{one!r} {one}"


def test_an_unknown_setting_of_app_worker_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="concurency"):
        PgQueue("postgresql://h/d").worker(concurency=3)


def test_a_worker_inside_an_application_is_one_process() -> None:
    with pytest.raises(ConfigurationError, match="processes must be 1"):
        PgQueue("postgresql://h/d").worker(processes=2)
