"""A worker in one's own process opens what the lifespans open, hands it to the tasks, and closes it again."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pgqueue import ConfigurationError, Context, LifespanFailed
from tests.helpers import eventually


def test_tasks_of_both_kinds_find_in_their_context_what_was_opened(app, connection, drain):
    told = []

    @app.lifespan
    def number(state):
        state.number = 7
        yield
        told.append("closed number")

    @app.lifespan
    async def client(state):
        async with asyncio.TaskGroup():  # may span the yield: all of it happens in one asyncio task
            state.client = f"client {state.number}"
            yield
        told.append("closed client")

    @app.task
    def in_a_thread(ctx: Context) -> None:
        told.append((ctx.state.client, ctx.state is app.state))

    @app.task
    async def on_the_loop(ctx: Context) -> None:
        told.append((ctx.state.client, ctx.state is app.state))

    in_a_thread.enqueue(connection)
    on_the_loop.enqueue(connection)
    for _ in range(2):  # a worker may be run again
        drain()
    assert told == [("client 7", True)] * 2 + ["closed client", "closed number"] * 2


def test_what_a_lifespan_put_there_is_gone_afterwards_and_what_the_application_put_there_stays(app, drain):
    @app.lifespan
    def both(state):
        state.mine = "worker's"
        state.pool = object()
        yield

    app.state.mine = "application's"
    drain()
    assert app.state.mine == "application's"
    with pytest.raises(AttributeError, match=r"^app.state has no 'pool' here: an @app.lifespan that sets state.pool"):
        _ = app.state.pool


def test_a_start_that_fails_closes_what_was_open_and_runs_no_job(app, connection, drain):
    told = []

    @app.lifespan
    async def good(state):
        yield
        told.append("closed")

    @app.lifespan
    def bad(state):
        raise OSError("no\nsecond line")
        yield

    @app.task
    def never() -> None:
        told.append("ran")

    never.enqueue(connection)
    with pytest.raises(LifespanFailed, match=r"bad did not open: OSError: no \(.*test_lifespan.py, line \d+\)$"):
        drain()
    assert told == ["closed"]
    assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)


def test_a_close_that_fails_is_told_and_the_others_are_closed_all_the_same(app, drain, logged):
    told = []

    @app.lifespan
    def good(state):
        yield
        told.append("closed")

    @app.lifespan
    async def bad(state):
        yield
        raise OSError("broken pipe")

    with pytest.raises(LifespanFailed, match="bad did not close: OSError: broken pipe"):
        drain()
    assert told == ["closed"]
    assert len(logged("lifespan_failed")) == 1


def test_a_close_that_hangs_in_a_thread_is_left_after_the_grace_period(app, drain, monkeypatch):
    gate, ended = threading.Event(), threading.Event()

    @app.lifespan
    def hangs(state):
        yield
        gate.wait(30)
        ended.set()

    monkeypatch.setattr("pgqueue.worker.loop._LAST_CLOSE", 0.0)
    with pytest.raises(LifespanFailed, match="hangs did not close within 1 s and is left as it is"):
        drain(grace=0.0)
    gate.set()
    assert ended.wait(10)
    eventually(lambda: not [one for one in threading.enumerate() if one.name.startswith("pgqueue-job")])


def test_without_a_lifespan_a_worker_makes_neither_task_nor_thread(app, drain, monkeypatch):
    monkeypatch.setattr("pgqueue.worker.lifespan.Held._hold", None)
    monkeypatch.setattr("pgqueue.worker.lifespan.Threads", None)
    drain()


def test_two_workers_of_one_app_do_not_share_a_state_in_one_process(app):
    @app.lifespan
    def one(state):
        yield

    async def both() -> None:
        first = app.worker(poll_interval=0.05)
        running = asyncio.create_task(first.run_async())
        while not app.lifespans.is_open:
            await asyncio.sleep(0.01)
        try:
            await app.worker(drain=True).run_async()
        finally:
            first.stop()
            await running

    with pytest.raises(ConfigurationError, match="another worker of this app runs in this process"):
        asyncio.run(both())


def plain(state):
    return iter(())


def without_state():
    yield


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (plain, "without @contextmanager, not a function without a yield"),
        (without_state, "lifespan tests.worker.test_lifespan.without_state must take one argument"),
        (7, "not int"),
    ],
)
def test_what_cannot_be_a_lifespan_is_refused_in_one_line(app, given, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        app.lifespan(given)
    assert "\n" not in str(refused.value)
