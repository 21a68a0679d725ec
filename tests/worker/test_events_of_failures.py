"""A handler of a failure is given the error itself, if it was raised here: who groups errors does so by their stack."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgqueue import BadRow, Context, DeadLetter, PgQueue, RetryLater, RetryPolicy, TaskTimeout
from pgqueue.events import Event
from pgqueue.worker.processes import Killed
from pgqueue.worker.settle import Settler
from tests.helpers import eventually
from tests.worker import in_processes

Look = psycopg.Connection[Any]
ONCE = {"max_attempts": 1}


@pytest.fixture
def told(app: PgQueue) -> Iterator[dict[str, list[Event]]]:
    heard: dict[str, list[Event]] = {"failed": [], "retried": [], "dead_lettered": [], "rescued": []}
    for name in heard:
        app.on(name)(lambda event: heard[event.name].append(event))  # type: ignore[arg-type]
    yield heard
    app.events._handlers.clear()


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_it_is_the_error_itself_with_the_frames_of_the_task(
    app: PgQueue, connection: Look, work: Any, told: Any, kind: str
) -> None:
    errors = []

    def fails() -> None:
        errors.append(LookupError("no such plan"))
        raise errors[-1]

    async def fails_on_the_loop() -> None:
        await asyncio.sleep(0)
        fails()

    function: Callable[[], Any] = fails if kind == "def" else fails_on_the_loop
    task = app.task(name="test.fails", max_attempts=2, retry=RetryPolicy(delay=0))(function)
    job = task.enqueue(connection)
    work()
    eventually(lambda: told["dead_lettered"])
    eventually(lambda: len(told["failed"]) == 2)
    told["failed"].sort(key=lambda event: event.job.attempt)
    assert [event.exception for event in told["failed"]] == errors
    assert [event.exception for event in told["retried"]] == errors[:1]
    assert [event.exception for event in told["dead_lettered"]] == errors[1:]
    assert "fails" in {frame.name for frame in traceback.extract_tb(errors[1].__traceback__)}
    (dead,) = app.dead.list()
    assert dead.id == job.id
    assert told["dead_lettered"][0].traceback == dead.errors[-1]["traceback"]
    assert "no such plan" in told["dead_lettered"][0].traceback
    reasons = [event.reason for name in ("failed", "retried", "dead_lettered") for event in told[name]]
    assert reasons == [None, "attempts", None, "attempts"]
    assert "no such plan" not in repr(told["dead_lettered"][0])


def late(ctx: Context) -> None:
    while not ctx.cancelled:
        pass


async def late_on_the_loop() -> None:
    await asyncio.Event().wait()


def dead_letter() -> None:
    raise DeadLetter("enough")


def later() -> None:
    raise RetryLater(60)


@pytest.mark.parametrize(
    ("function", "options", "kind", "reason"),
    [
        (late, {"timeout": 0.05}, TaskTimeout, "timeout"),
        (late_on_the_loop, {"timeout": 0.05}, TaskTimeout, "timeout"),
        (dead_letter, {}, DeadLetter, "dead_letter"),
        (later, {}, RetryLater, "attempts"),
    ],
)
def test_what_stands_for_an_error_is_given_too(
    app: PgQueue, connection: Look, work: Any, told: Any, function: Any, options: Any, kind: Any, reason: str
) -> None:
    app.task(name="test.it", **ONCE, **options)(function).enqueue(connection)
    work()
    (event,) = eventually(lambda: told["dead_lettered"])
    assert type(event.exception) is kind
    assert event.reason == reason


def test_a_row_that_cannot_be_read_gives_the_badrow(app: PgQueue, connection: Look, work: Any, told: Any) -> None:
    @app.task(name="test.number")
    def number(n: int) -> None: ...

    connection.execute("select pgqueue.enqueue('test.number', '{\"n\": \"x\"}')")
    work()
    (event,) = eventually(lambda: told["dead_lettered"])
    assert isinstance(event.exception, BadRow)
    assert event.reason == "bad_row"


def test_an_error_of_another_process_comes_as_text_alone_and_its_steer_as_such(
    app: PgQueue, connection: Look, work: Any, told: Any
) -> None:
    fail = app.task(name="test.fail", run_in="process", **ONCE)(in_processes.fail)
    for kind in ("odd", "dead letter"):
        fail.enqueue(connection, kind)
    work(concurrency=1)
    eventually(lambda: len(told["dead_lettered"]) == 2, timeout=30)
    odd, steered = sorted(told["dead_lettered"], key=lambda event: str(event.job.id))
    assert odd.exception is None
    assert "in fail" in odd.traceback
    assert isinstance(steered.exception, DeadLetter)


def test_a_crash_and_a_kill_are_told_apart_from_errors(app: PgQueue, connection: Look, work: Any, told: Any) -> None:
    die = app.task(name="test.die", run_in="process")(in_processes.die)
    wait = app.task(name="test.wait", run_in="process", timeout=0.3, **ONCE)(in_processes.wait)
    work(concurrency=1)
    die.enqueue(connection, "killed")
    (dead,) = eventually(lambda: told["dead_lettered"], timeout=60)
    assert (dead.exception, dead.traceback, dead.reason) == (None, None, "crashed")
    assert {(event.exception, event.reason) for event in told["rescued"]} == {(None, None)}
    wait.enqueue(connection)
    eventually(lambda: len(told["dead_lettered"]) == 2, timeout=60)
    assert isinstance(told["dead_lettered"][1].exception, Killed)
    assert told["dead_lettered"][1].reason == "timeout"


def test_where_nobody_asks_no_error_is_kept_until_its_settle(
    app: PgQueue, connection: Look, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    add = Settler.add
    monkeypatch.setattr(Settler, "add", lambda self, item: (kept.append(item.exception), add(self, item)))
    app.on("completed")(lambda event: None)
    app.task(name="test.fail", **ONCE)(in_processes.fail).enqueue(connection, "odd")
    work()
    eventually(lambda: app.dead.list())
    assert kept == [None]
