"""Step 3, run: one attempt, whatever the job does; what it returns or raises becomes its outcome and hurts nobody."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import psycopg
import pytest

from pgqueue import Context, Job, PgQueue
from tests.helpers import eventually
from tests.life.workbench import ended, working

Look = psycopg.Connection[Any]
Drain = Callable[..., None]


@pytest.fixture(params=["sync", "async"])
def task(request: pytest.FixtureRequest, app: PgQueue) -> Callable[..., Any]:
    """`@task(…)`: as @app.task, of a plain function as it stands, and of an async one with the same body."""

    def register(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(register, **options)
        if request.param == "sync":
            return app.task(**options)(function)

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return function(*args, **kwargs)

        return app.task(**options)(awaited)

    register.kind = request.param  # type: ignore[attr-defined]
    return register


# -- what a job gets ------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "r"
    BLUE = "b"


class Size(IntEnum):
    SMALL = 1


@dataclass
class Item:
    name: str
    price: Decimal


@dataclass
class Basket:
    items: list[Item]
    paid: datetime | None = None


class Point(NamedTuple):
    x: int
    y: float


class Address(TypedDict, total=False):
    street: str
    number: int


ARGUMENTS: dict[str, tuple[Any, Any]] = {
    "text": (str, "ü\u202e\U0001f600\n"),
    "whole": (int, 2**63),
    "fraction": (float, 0.1),
    "flag": (bool, True),
    "moment": (datetime, datetime(2026, 1, 31, 8, 15, 2, 113000, tzinfo=UTC)),
    "day": (date, date(2026, 1, 31)),
    "span": (timedelta, timedelta(days=1, microseconds=7)),
    "uuid": (UUID, UUID(int=7)),
    "price": (Decimal, Decimal("0.10")),
    "colour": (Colour, Colour.BLUE),
    "size": (Size, Size.SMALL),
    "basket": (Basket, Basket([Item("a", Decimal("1.50"))], datetime(2026, 1, 1, tzinfo=UTC))),
    "point": (Point, Point(1, 2.5)),
    "address": (Address, {"street": "a", "number": 7}),
    "pairs": (list[tuple[int, UUID]], [(1, UUID(int=1)), (2, UUID(int=2))]),
    "table": (dict[str, list[int]] | None, None),
    "mode": (Literal["fast", "slow"], "slow"),
    "anything": (Any, {"a": [1, None, "b", 1.5]}),
}


def test_arguments_arrive_as_annotated(task: Any, connection: Look, drain: Drain) -> None:
    got: list[dict[str, Any]] = []

    def anything(**given: Any) -> None:
        got.append(given)

    names = ", ".join(ARGUMENTS)
    body = f"def everything({names}, left_out=7): record({', '.join(f'{n}={n}' for n in ARGUMENTS)}, left_out=left_out)"
    scope: dict[str, Any] = {"record": anything, "__name__": __name__}
    exec(body, scope)
    scope["everything"].__annotations__ = {name: hint for name, (hint, _) in ARGUMENTS.items()}
    everything = task(scope["everything"])

    values = {name: value for name, (_, value) in ARGUMENTS.items()}
    everything.enqueue(connection, **values)
    everything.enqueue(connection, *values.values())
    drain()
    for given in got:
        assert given == {**values, "left_out": 7}
        assert {name: type(value) for name, value in given.items() if name != "left_out"} == {
            name: type(value) for name, value in values.items()
        }
        assert [type(item) for item in given["basket"].items] == [Item]
    assert len(got) == 2


def test_a_context_parameter_is_filled_in_wherever_it_stands(
    task: Any, app: PgQueue, connection: Look, drain: Drain, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Job] = []

    @task(name="first")
    def first(ctx: Context, n: int) -> int:
        seen.append(ctx.job)
        ctx.log.warning("half way", extra={"seconds": 7})
        return n

    @task(name="last")
    def last(n: int = 1, *, ctx: Context) -> bool:
        return ctx.cancelled

    one = first.options(queue="q", priority=3, tags=["t"], meta={"m": 1}, max_attempts=2).enqueue(connection, 7)
    other = last.enqueue(connection)
    drain()
    assert (ended(connection, one).result, ended(connection, other).result) == (7, False)
    (job,) = seen
    assert (job.id, job.task, job.queue, job.priority, job.attempt, job.max_attempts, job.fence) == (
        *(one.id, "first", "q"),
        *(3, 1, 2, 1),
    )
    assert (job.tags, job.meta, job.run_at, job.created_at) == (("t",), {"m": 1}, one.run_at, one.created_at)
    assert job.worker_id == ended(connection, one).worker_id
    (line,) = [record for record in caplog.records if record.message == "half way"]
    assert {name: vars(line)[name] for name in ("job_id", "task", "attempt", "seconds")} == {
        "job_id": one.id,
        "task": "first",
        "attempt": 1,
        "seconds": 7,
    }


def test_a_decorated_function_runs_as_what_it_is(app: PgQueue, connection: Look, drain: Drain) -> None:
    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @app.task(name="one")
    @decorated
    async def one(n: int) -> int:
        return n + 1

    @app.task(name="other")
    @decorated
    def other(n: int) -> int:
        return n + 2

    one.enqueue(connection, 1)
    other.enqueue(connection, 1)
    drain()
    assert connection.execute("select result from pgqueue.finished_jobs order by id").fetchall() == [(2,), (3,)]


def test_a_job_sees_what_was_committed_with_it_and_starts_no_sooner(
    task: Any, app: PgQueue, connection: Look, pgqueue_database: str
) -> None:
    connection.execute("create table orders (id int primary key)")

    @task(name="look")
    def look(order: int) -> bool:
        with psycopg.connect(pgqueue_database) as mine:
            return mine.execute("select from orders where id = %s", [order]).rowcount == 1

    with working(app), psycopg.connect(pgqueue_database) as application:
        for order in range(20):
            look.enqueue(application, order)  # the job comes first, what it needs afterwards
            application.execute("insert into orders values (%s)", [order])
            application.commit()
        done = "select count(*) from pgqueue.finished_jobs"
        eventually(lambda: connection.execute(done).fetchone() == (20,))
    results = connection.execute("select distinct result, attempt from pgqueue.finished_jobs").fetchall()
    assert results == [(True, 1)]


def test_a_job_that_enqueues_another_and_fails_takes_that_one_back(
    task: Any, app: PgQueue, connection: Look, drain: Drain, pgqueue_database: str
) -> None:
    @app.task(name="child")
    def child() -> None: ...

    @task(name="parent", max_attempts=1)
    def parent() -> None:
        with psycopg.connect(pgqueue_database) as mine:
            child.enqueue(mine)
            raise RuntimeError("after the enqueue")

    parent.enqueue(connection)
    drain()
    assert connection.execute("select task, state from pgqueue.all_jobs").fetchall() == [("parent", "dead")]


# -- how many at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 5])
def test_sync_jobs_run_side_by_side_up_to_the_concurrency_and_no_further(
    concurrency: int, app: PgQueue, connection: Look, drain: Drain
) -> None:
    all_here = threading.Barrier(concurrency, timeout=20)
    peak, inside, lock = 0, 0, threading.Lock()

    @app.task(name="meet", max_attempts=1)
    def meet() -> None:
        nonlocal peak, inside
        with lock:
            inside += 1
            peak = max(peak, inside)
        all_here.wait()  # breaks unless that many are here at once
        with lock:
            inside -= 1

    meet.enqueue_many(connection, [()] * 3 * concurrency)
    drain(concurrency=concurrency)
    assert connection.execute("select state, count(*) from pgqueue.all_jobs group by state").fetchall() == [
        ("completed", 3 * concurrency)
    ]
    assert peak == concurrency


@pytest.mark.parametrize("concurrency", [1, 5])
def test_async_jobs_run_side_by_side_up_to_the_concurrency_and_no_further(
    concurrency: int, app: PgQueue, connection: Look, drain: Drain
) -> None:
    peak, inside, arrivals = 0, 0, 0

    @app.task(name="meet", max_attempts=1)
    async def meet() -> None:
        nonlocal peak, inside, arrivals
        arrivals += 1
        inside += 1
        peak = max(peak, inside)
        mine = -(-arrivals // concurrency) * concurrency  # all of this round
        async with asyncio.timeout(20):
            while arrivals < mine:
                await asyncio.sleep(0)
        for _ in range(10):  # stays a little, so that one too many would be met
            await asyncio.sleep(0)
        inside -= 1

    meet.enqueue_many(connection, [()] * 3 * concurrency)
    drain(concurrency=concurrency)
    assert connection.execute("select state, count(*) from pgqueue.all_jobs group by state").fetchall() == [
        ("completed", 3 * concurrency)
    ]
    assert peak == concurrency


# -- what it returns ------------------------------------------------------------------------------------------------

KEPT: list[tuple[Any, Any]] = [
    (None, None),
    (0, 0),
    ("ü\U0001f600", "ü\U0001f600"),
    ({"a": [1, 2.5, None]}, {"a": [1, 2.5, None]}),
    (Item("a", Decimal("1.50")), {"name": "a", "price": "1.50"}),
    ({1: Colour.RED, "at": date(2026, 1, 31)}, {"1": "r", "at": "2026-01-31"}),
    ("x" * 262_142, "x" * 262_142),
]


def test_what_a_job_returns_is_kept_as_json(task: Any, connection: Look, drain: Drain) -> None:
    @task
    def give(index: int) -> Any:
        return KEPT[index][0]

    give.enqueue_many(connection, [(index,) for index in range(len(KEPT))])
    drain()
    rows = connection.execute("select state, result, error, errors from pgqueue.finished_jobs order by id").fetchall()
    assert rows == [("completed", expected, None, None) for _, expected in KEPT]


class Hostile(dict[str, Any]):
    def items(self) -> Any:
        raise SystemExit("no items for you")


@dataclass
class HalfMade:
    there: int = 1
    missing: int = field(init=False)


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


DROPPED: list[tuple[Any, str]] = [
    ("x" * 262_143, "result takes 262,145 bytes as JSON, more than 262,144"),
    (object(), "result is a object"),
    ({"a": [lambda: 0]}, "result.a[0] is a function"),
    ({"when": {1, 2}}, "result.when is a set"),
    (b"bytes", "result is a bytes"),
    (float("nan"), "result is nan"),
    ({"a": float("-inf")}, "result.a is -inf"),
    (Decimal("NaN"), "result is NaN"),
    ("a\0b", "result contains a NUL"),
    ("\ud800", "result contains a lone surrogate"),
    (10**5000, "more than 4,000 digits"),
    (_deep(150), "nested more than 100 deep"),
    ({(1, 2): 3}, "key of type tuple"),
    ({"x" * 500_000: b""}, "result.xxx"),
    (HalfMade(), "result cannot be read: AttributeError"),
    (Hostile(a=1), "result cannot be read: SystemExit"),
]


def test_a_result_that_cannot_be_kept_is_replaced_by_a_marker_and_the_job_is_done(
    task: Any, connection: Look, drain: Drain
) -> None:
    @task
    def give(index: int) -> Any:
        return DROPPED[index][0]

    give.enqueue_many(connection, [(index,) for index in range(len(DROPPED))])
    drain()
    rows = connection.execute("select state, attempt, result, error from pgqueue.finished_jobs order by id").fetchall()
    for (state, attempt, result, error), (_, why) in zip(rows, DROPPED, strict=True):
        assert (state, attempt, error) == ("completed", 1, None)
        assert why in result["why"]
        assert result == {"$pgqueue": "result dropped", "bytes": result["bytes"], "why": result["why"][:1000]}
    assert rows[0][2]["bytes"] == 262_145


# -- what it raises -------------------------------------------------------------------------------------------------


class Own(BaseException): ...


def _recurse() -> None:
    _recurse()


RAISES: dict[str, tuple[Callable[[], Any], str]] = {
    "ValueError": (lambda: int("x"), "ValueError: invalid literal"),
    "sys.exit()": (lambda: sys.exit(3), "SystemExit: 3"),
    "KeyboardInterrupt": (lambda: _throw(KeyboardInterrupt()), "KeyboardInterrupt"),
    "CancelledError": (lambda: _throw(asyncio.CancelledError("own")), "asyncio.exceptions.CancelledError: own"),
    "StopIteration": (lambda: next(iter(())), "RuntimeError: "),
    "StopAsyncIteration": (lambda: _throw(StopAsyncIteration(1)), "StopAsyncIteration: 1"),
    "GeneratorExit": (lambda: _throw(GeneratorExit()), "GeneratorExit"),
    "MemoryError": (lambda: _throw(MemoryError()), "MemoryError"),
    "RecursionError": (_recurse, "RecursionError: maximum recursion depth"),
    "a group": (lambda: _throw(BaseExceptionGroup("both", [Own(), OSError()])), "BaseExceptionGroup: both"),
    "a class of its own": (lambda: _throw(Own("x")), f"{__name__}.Own: x"),
    "TimeoutError": (lambda: _throw(TimeoutError("its own")), "TimeoutError: its own"),
    "an assertion": (lambda: _throw(AssertionError()), "AssertionError"),
}


def _throw(error: BaseException) -> None:
    raise error


def test_whatever_a_job_raises_is_its_own_failure_and_the_worker_goes_on(
    task: Any, app: PgQueue, connection: Look, drain: Drain
) -> None:
    @task(max_attempts=1)
    def raises(name: str) -> None:
        RAISES[name][0]()

    @app.task(name="good")
    def good() -> None: ...

    jobs = {}
    for name in RAISES:
        jobs[name] = raises.enqueue(connection, name)
        good.enqueue(connection)
    drain(concurrency=4)
    for name, (_, error) in RAISES.items():
        row = ended(connection, jobs[name])
        assert (row.state, row.reason, row.attempt, len(row.errors)) == ("dead", "attempts", 1, 1), name
        assert row.error.startswith(error), name
    fine = "select count(*) from pgqueue.finished_jobs where task = 'good' and state = 'completed' and attempt = 1"
    assert connection.execute(fine).fetchone() == (len(RAISES),)


def test_a_job_that_cancels_its_own_asyncio_task_has_failed(app: PgQueue, connection: Look, drain: Drain) -> None:
    @app.task(name="suicide", max_attempts=1)
    async def suicide() -> None:
        me = asyncio.current_task()
        assert me is not None
        me.cancel()
        await asyncio.sleep(0)

    job = suicide.enqueue(connection)
    drain()
    row = ended(connection, job)
    assert (row.state, row.error) == ("dead", "asyncio.exceptions.CancelledError")


class BrokenStr(Exception):
    def __init__(self, how: BaseException | None) -> None:
        self.how = how

    def __str__(self) -> str:
        if self.how is None:
            return 7  # type: ignore[return-value]
        raise self.how


def _in_a_circle() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    raise one


def _with_a_cause() -> None:
    try:
        int("seven")
    except ValueError as error:
        raise LookupError("no such order") from error


MESSAGES: dict[str, tuple[Callable[[], None], str]] = {
    "its __str__ raises": (lambda: _throw(BrokenStr(ValueError("x"))), "(its message cannot be printed: ValueError)"),
    "its __str__ exits": (lambda: _throw(BrokenStr(SystemExit(3))), "(its message cannot be printed: SystemExit)"),
    "its __str__ gives no text": (lambda: _throw(BrokenStr(None)), "(its message cannot be printed: TypeError)"),
    "NUL": (lambda: _throw(ValueError("a\0b")), "ValueError: a\\x00b"),
    "a lone surrogate": (lambda: _throw(ValueError("a\ud800b")), "ValueError: a\\ud800b"),
    "a circle of causes": (_in_a_circle, "ValueError: one"),
    "a huge message": (lambda: _throw(ValueError("x" * 5_000_000)), "ValueError: xxx"),
    "a cause": (_with_a_cause, "LookupError: no such order"),
    "no message": (lambda: _throw(KeyError()), "KeyError"),
}


def test_every_error_is_stored_as_text_that_the_database_can_hold(task: Any, connection: Look, drain: Drain) -> None:
    @task(max_attempts=1)
    def raises(name: str) -> None:
        MESSAGES[name][0]()

    jobs = {name: raises.enqueue(connection, name) for name in MESSAGES}
    drain()
    found = {name: ended(connection, job) for name, job in jobs.items()}
    for name, (_, text) in MESSAGES.items():
        (entry,) = found[name].errors
        assert text in found[name].error, name
        assert entry["error"] == found[name].error, name
        assert len(found[name].error) <= 10_000, name
        assert len(entry["traceback"]) <= 100_000, name
    assert len(found["a huge message"].error) == 10_000
    trace = found["a cause"].errors[0]["traceback"]
    assert trace.index("ValueError: invalid literal") < trace.index("LookupError: no such order")
    assert "in _with_a_cause" in trace
    assert "pgqueue/worker" not in trace  # the job's own frames, not ours
    assert found["a circle of causes"].errors[0]["traceback"].count("ValueError: one") == 1


def test_the_end_of_a_long_traceback_is_kept(task: Any, connection: Look, drain: Drain) -> None:
    @task(max_attempts=1)
    def raises() -> None:
        error: Exception = OSError("the beginning")
        for n in range(10):
            later = ValueError(f"{n}" * 20_000)
            later.__cause__ = error
            error = later
        raise error

    job = raises.enqueue(connection)
    drain()
    trace = ended(connection, job).errors[0]["traceback"]
    assert len(trace) == 100_000
    assert trace.endswith("ValueError: " + "9" * (10_000 - len("ValueError: ")))


def test_what_a_database_error_says_about_the_rows_is_not_stored(
    task: Any, connection: Look, drain: Drain, pgqueue_database: str
) -> None:
    connection.execute("create table cards (number text primary key)")

    @task(max_attempts=1)
    def pay(twice: bool) -> None:
        with psycopg.connect(pgqueue_database) as mine:
            for _ in range(2):
                mine.execute("insert into cards values ('4111 1111')")

    job = pay.enqueue(connection, True)
    drain()
    row = ended(connection, job)
    assert row.error == ('psycopg.errors.UniqueViolation: duplicate key value violates unique constraint "cards_pkey"')
    assert "4111" not in row.errors[0]["traceback"].replace("insert into cards values ('4111 1111')", "")


# -- how long it takes ----------------------------------------------------------------------------------------------


def test_an_async_job_that_runs_too_long_is_cancelled_and_has_failed(
    app: PgQueue, connection: Look, drain: Drain
) -> None:
    said: list[str] = []

    @app.task(name="slow", timeout=0.05, max_attempts=1)
    async def slow() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            said.append("cancelled")
            raise
        finally:
            said.append("cleaned up")
        return "late"

    @app.task(name="stubborn", timeout=0.05, max_attempts=1)
    async def stubborn() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
        return "late, but it counts for nothing"

    jobs = [slow.enqueue(connection), stubborn.enqueue(connection)]
    drain()
    assert said == ["cancelled", "cleaned up"]
    for job in jobs:
        row = ended(connection, job)
        assert (row.state, row.reason, row.result) == ("dead", "timeout", None)
        assert row.error == "pgqueue.errors.TaskTimeout: the attempt ran longer than its timeout of 0.05 s"


def test_a_sync_job_that_runs_too_long_is_told_and_has_failed_however_it_ends(
    app: PgQueue, connection: Look, drain: Drain, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(name="slow", timeout=0.05, max_attempts=1)
    def slow(how: str, ctx: Context) -> str:
        while not ctx.cancelled:
            time.sleep(0.001)
        if how == "raises":
            raise ValueError("late")
        return "late"

    jobs = [slow.enqueue(connection, how) for how in ("returns", "raises")]
    drain()
    for job in jobs:
        row = ended(connection, job)
        assert (row.state, row.reason, row.result) == ("dead", "timeout", None)
        assert row.error == "pgqueue.errors.TaskTimeout: the attempt ran longer than its timeout of 0.05 s"
    stuck = {vars(record)["job_id"] for record in caplog.records if vars(record).get("event") == "job_stuck"}
    assert stuck == {job.id for job in jobs}


def test_the_jobs_own_timeout_goes_before_the_tasks(app: PgQueue, connection: Look, drain: Drain) -> None:
    @app.task(name="wait", timeout=0.02, max_attempts=1)
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "in time"

    short, long, own = (
        wait.enqueue(connection, 60),
        wait.options(timeout=60).enqueue(connection, 0.1),
        wait.options(timeout=0.01).enqueue(connection, 60),
    )
    drain()
    assert ended(connection, short).error.endswith("timeout of 0.02 s")
    assert ended(connection, long).result == "in time"
    assert ended(connection, own).error.endswith("timeout of 0.01 s")
