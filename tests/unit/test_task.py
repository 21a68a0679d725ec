"""@app.task: names, what can be a task and what cannot, options that copy, and a call that is still just a call."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
import math
import runpy
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgqueue import (
    ConfigurationError,
    Context,
    DuplicateTask,
    InvalidArguments,
    InvalidOption,
    InvalidTask,
    PgQueue,
    RetryPolicy,
    Task,
)
from pgqueue.enqueue import NewJob, Options
from pgqueue.retention import Retention


@pytest.fixture
def app() -> PgQueue:
    """Connects to nothing."""
    return PgQueue("postgresql://localhost/nowhere")


# -- calling -------------------------------------------------------------------------------------------------------


def test_calling_a_task_calls_the_function_and_enqueues_nothing(app: PgQueue) -> None:
    @app.task
    def add(a: int, b: int = 1) -> int:
        """Adds."""
        return a + b

    assert add(2) == 3
    assert add(2, b=5) == 7
    with pytest.raises(ZeroDivisionError):
        app.task(name="divide")(lambda x: 1 / x)(0)


def test_calling_an_async_task_gives_its_coroutine(app: PgQueue) -> None:
    @app.task
    async def add(a: int) -> int:
        return a + 1

    assert add.is_async
    assert asyncio.run(add(2)) == 3


def test_a_task_still_looks_like_its_function(app: PgQueue) -> None:
    def send(user_id: int, email: str = "x") -> dict[str, int]:
        """Sends."""
        return {}

    task = app.task(send)
    assert task.__name__ == "send"
    assert task.__doc__ == "Sends."
    assert task.__wrapped__ is send
    assert inspect.signature(task) == inspect.signature(send)
    assert repr(task) == f"<Task {__name__}.send>"


def test_a_decorated_function_is_async_when_what_it_wraps_is(app: PgQueue) -> None:
    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def around(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return around

    @app.task
    @traced
    async def inner(x: int) -> int:
        return x

    assert inner.is_async
    assert json.loads(inner.job(7).args) == {"x": 7}


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_task_is_called_by_module_and_function_unless_named(app: PgQueue) -> None:
    @app.task
    def plain() -> None: ...

    @app.task()
    def called() -> None: ...

    @app.task(name="shop:send-mail.v2_1")
    def named() -> None: ...

    assert (plain.name, called.name, named.name) == (f"{__name__}.plain", f"{__name__}.called", "shop:send-mail.v2_1")
    assert app.tasks == {task.name: task for task in (plain, called, named)}


SCRIPT = """
from pgqueue import PgQueue
app = PgQueue("postgresql://localhost/nowhere")

@app.task
def send(): ...
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `shop_of_the_test` with tasks in `tasks.py` and in `__main__.py`."""
    package = tmp_path / "shop_of_the_test"
    package.mkdir()
    for name in ("__init__", "tasks", "__main__"):
        (package / f"{name}.py").write_text(SCRIPT if name != "__init__" else "")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for module in [name for name in sys.modules if name.startswith("shop_of_the_test")]:
        del sys.modules[module]


def test_a_script_names_its_tasks_as_an_import_of_it_would(shop: Path) -> None:
    """Or the worker, which imports it, would not know what the script enqueued."""
    run, name = runpy.run_module, "shop_of_the_test"
    as_module = run(f"{name}.tasks", run_name="__main__", alter_sys=True)  # python -m shop_of_the_test.tasks
    as_package = run(name, run_name="__main__", alter_sys=True)  # python -m shop_of_the_test
    assert as_module["send"].name == importlib.import_module(f"{name}.tasks").send.name == f"{name}.tasks.send"
    assert as_package["send"].name == importlib.import_module(f"{name}.__main__").send.name == f"{name}.send"
    as_file = runpy.run_path(str(shop / "tasks.py"), run_name="__main__")  # python tasks.py
    assert as_file["send"].name == "tasks.send"


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "a b", "a\nb", "a/../b", "50%", "grün", "\u202e", "a;b", 7, b"x", "a\0"]
)
def test_a_name_that_rows_and_commands_could_not_hold_is_refused(app: PgQueue, name: Any) -> None:
    with pytest.raises(InvalidOption, match="task name must be"):

        @app.task(name=name)
        def send() -> None: ...

    assert not app.tasks


def test_two_functions_of_one_name_are_refused(app: PgQueue) -> None:
    @app.task(name="send")
    def one() -> None: ...

    with pytest.raises(DuplicateTask, match="task send is defined twice: give one of them another name="):

        @app.task(name="send")
        def two() -> None: ...

    assert app.tasks["send"] is one


def test_a_module_that_is_imported_twice_defines_its_tasks_twice_without_harm(app: PgQueue) -> None:
    """As __main__ and by name, or reloaded by a development server."""

    def module() -> Task[[], int]:
        @app.task(name="send")
        def send() -> int:
            return 1

        return send

    module()
    again = module()
    assert app.tasks["send"] is again


# -- what cannot be a task -----------------------------------------------------------------------------------------


class Shop:
    def method(self) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...

    @staticmethod
    def static(x: int) -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (lambda: None, "a lambda has no name"),
        (Shop.method, "looks like a method"),
        (Shop().method, "a plain function, not method"),
        (Shop.of_class, "a plain function, not method"),
        (Shop.__dict__["of_class"], "below @staticmethod"),
        (Shop.__dict__["static"], "below @staticmethod"),
        (Shop, "a plain function, not type"),
        (generator, "generator is a generator"),
        (async_generator, "async_generator is a generator"),
        (functools.partial(generator), "a plain function, not partial"),
        (len, "a plain function, not builtin_function_or_method"),
        (None, "a plain function, not NoneType"),
        ("shop.send", "a plain function, not str"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_a_worker_could_not_find_or_finish_cannot_be_a_task(app: PgQueue, thing: Any, says: str) -> None:
    with pytest.raises(InvalidTask, match=says):
        app.task(thing)
    assert not app.tasks


def test_a_task_is_no_task_of_a_task(app: PgQueue) -> None:
    @app.task
    def send() -> None: ...

    with pytest.raises(InvalidTask, match="is a task already"):
        app.task(send)


def test_a_static_method_with_the_decorator_below_is_a_plain_function(app: PgQueue) -> None:
    class Local:
        @staticmethod
        @app.task
        def send(x: int) -> int:
            return x

    assert Local.send(7) == 7
    assert Local.send.name == f"{__name__}.send"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"queue": "no spaces"}, "queue"),
        ({"queue": 7}, "queue"),
        ({"priority": 101}, "priority"),
        ({"priority": True}, "priority"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": "3"}, "max_attempts"),
        ({"max_attempts": 2**31}, "max_attempts"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": timedelta.max}, "delay"),
        ({"expires_in": -1}, "expires_in"),
        ({"retry": 3}, "retry"),
        ({"tags": "one"}, "tags"),
        ({"tags": [""]}, "tag"),
        ({"meta": []}, "meta"),
        ({"colour": "red"}, "colour"),
        ({"unique_key": "x"}, "unique_key"),  # a key for every call of a task would let one of them through
        ({"run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "run_at"),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name_at_the_definition(
    app: PgQueue, options: dict[str, Any], names: str
) -> None:
    with pytest.raises(InvalidOption, match=names):

        @app.task(**options)
        def send() -> None: ...

    assert not app.tasks


# -- the call that is to be enqueued --------------------------------------------------------------------------------


def test_a_job_carries_the_options_of_its_task(app: PgQueue) -> None:
    @app.task(queue="email", priority=5, delay=2, max_attempts=7, expires_in=60, tags=["a"], meta={"k": 1})
    def send(user_id: int) -> None: ...

    assert send.job(7) == NewJob(
        send.name,
        '{"user_id":7}',
        Options(queue="email", priority=5, delay=2, max_attempts=7, expires_in=60, tags=["a"], meta={"k": 1}),
    )


def test_retry_and_timeout_of_a_task_stay_with_the_code(app: PgQueue) -> None:
    """A new deploy may change them for jobs that wait already; those of one call travel with it."""
    policy = RetryPolicy(delay=9)

    @app.task(retry=policy, timeout=30)
    def send() -> None: ...

    assert (send.retry, send.timeout) == (policy, 30.0)
    assert (send.job().options.retry, send.job().options.timeout) == (None, None)
    own = send.options(retry=policy, timeout=timedelta(minutes=1)).job()
    assert (own.options.retry, own.options.timeout) == (policy, 60.0)


def test_a_function_may_stand_for_a_retry_policy(app: PgQueue) -> None:
    @app.task(retry=lambda attempt, error: attempt * 10.0)
    def send() -> None: ...

    assert send.retry.delay_after(3, ValueError(), lambda: 0.0) == 30.0
    with pytest.raises(InvalidOption, match="set it on the task"):
        send.options(retry=RetryPolicy(backoff=lambda attempt, error: 1.0))


def test_options_give_a_copy_and_leave_the_task_alone(app: PgQueue) -> None:
    @app.task(queue="email")
    def send(x: int) -> int:
        return x

    vip = send.options(queue="vip", unique_key="k")
    assert vip.job(1).options == Options(queue="vip", unique_key="k")
    assert vip.options(priority=3).job(1).options == Options(queue="vip", unique_key="k", priority=3)
    assert send.job(1).options == Options(queue="email")
    assert (vip.name, vip(7)) == (send.name, 7)
    assert app.tasks[send.name] is send


def test_of_delay_and_run_at_the_later_word_counts(app: PgQueue) -> None:
    @app.task(delay=30)
    def send() -> None: ...

    at = datetime.now(UTC) + timedelta(hours=1)
    assert send.options(run_at=at).job().options == Options(run_at=at)
    assert send.options(run_at=at).options(delay=5).job().options == Options(delay=5)
    with pytest.raises(InvalidOption, match="either delay or run_at"):
        send.options(run_at=at, delay=5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"qeue": "x"}, "options() takes no option 'qeue'; it takes debounce_for, delay, expires_in, "),
        ({"run_at": datetime(2030, 1, 1)}, "run_at must have a time zone"),
        ({"run_at": "tomorrow"}, "run_at must be a datetime"),
        ({"run_at": datetime(1, 1, 1, tzinfo=UTC)}, "run_at must lie within"),
        ({"run_at": datetime(9999, 1, 1, tzinfo=UTC)}, "run_at must lie within"),
        ({"unique_key": ""}, "unique_key"),
        ({"unique_key": " \t"}, "unique_key"),
        ({"unique_key": "a\0"}, "unique_key"),
        ({"unique_key": "\ud800"}, "unique_key"),
        ({"unique_key": "x" * 513}, "unique_key"),
        ({"unique_key": 7}, "unique_key"),
        ({"tags": ["x"] * 33}, "tags may be 32 at most"),
        ({"timeout": True}, "timeout"),
    ],
)
def test_options_of_one_call_are_checked_at_once(app: PgQueue, options: dict[str, Any], says: str) -> None:
    @app.task
    def send() -> None: ...

    with pytest.raises(InvalidOption) as caught:
        send.options(**options)
    assert says in str(caught.value)


def test_a_task_may_have_parameters_named_as_ours(app: PgQueue) -> None:
    @app.task
    def send(self: int, session: int, connection: int, queue: str, args: int, kwargs: int) -> tuple[int, str]:
        return self, queue

    named: dict[str, Any] = {"self": 1, "session": 2, "connection": 3, "queue": "q", "args": 4, "kwargs": 5}
    assert json.loads(send.job(**named).args) == named
    assert send(**named) == (1, "q")
    for method in (Task.delay, Task.delay_async, Task.job, Task.__call__):
        assert inspect.signature(method).bind(send, **named).kwargs == named
    assert inspect.signature(Task.enqueue).bind(send, object(), **named).kwargs == named


def test_the_context_is_handed_in_by_the_worker_and_not_by_the_caller(app: PgQueue) -> None:
    @app.task
    def send(ctx: Context, user_id: int) -> None: ...

    assert json.loads(send.job(7).args) == {"user_id": 7}
    with pytest.raises(InvalidArguments):
        send.job(None, 7)


def test_calls_in_bulk_are_tuples_or_dicts(app: PgQueue) -> None:
    @app.task
    def send(user_id: int, email: str = "x") -> None: ...

    calls = [(1,), {"user_id": 2}, [3, "y"], {"user_id": 4, "email": "z"}]
    assert [json.loads(job.args) for job in send._jobs(calls)] == [
        {"user_id": 1},
        {"user_id": 2},
        {"user_id": 3, "email": "y"},
        {"user_id": 4, "email": "z"},
    ]
    with pytest.raises(InvalidArguments, match="call 1 must be a tuple or a dict of arguments, not int"):
        list(send._jobs([(1,), 2]))


def test_a_task_with_annotations_that_cannot_be_read_stops_a_worker_at_the_start(app: PgQueue) -> None:
    @app.task
    def send(x: NoSuchThing) -> None: ...  # noqa: F821

    with pytest.raises(InvalidTask, match=f"task {send.name}: .*cannot be resolved"):
        app.worker()


# -- retention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, -1, 1.0, "5", 2**31, math.nan, [1]])
@pytest.mark.parametrize("option", ["keep", "keep_dead"])
def test_a_count_of_jobs_to_keep_is_a_whole_number_or_refused_by_name(app: PgQueue, option: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=f"^{option} must be "):
        app.task(name="t", **{option: value})(lambda: None)
    with pytest.raises(ConfigurationError, match=f"^{option} must be "):
        PgQueue("postgresql://localhost/nowhere", **{option: value})
    assert not app.tasks


@pytest.mark.parametrize("value", [True, -1, "5", math.nan, math.inf, timedelta(seconds=-1), timedelta(days=4000)])
@pytest.mark.parametrize("option", ["keep_for", "keep_dead_for"])
def test_how_long_jobs_are_kept_is_a_duration_or_refused_by_name(app: PgQueue, option: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=f"^{option} must be "):
        app.task(name="t", **{option: value})(lambda: None)
    if option == "keep_dead_for":
        with pytest.raises(ConfigurationError, match=f"^{option} must be "):
            PgQueue("postgresql://localhost/nowhere", keep_dead_for=value)
    assert not app.tasks


def test_retention_is_an_option_of_a_task_and_not_of_one_call(app: PgQueue) -> None:
    task = app.task(name="t", keep=0, keep_for=timedelta(minutes=1), keep_dead=5, keep_dead_for=2)(lambda: None)
    assert task.retention == Retention(0, 60.0, 5, 2.0)
    for option in Retention.NAMES:
        with pytest.raises(InvalidOption, match=f"takes no option '{option}'"):
            task.options(**{option: 1})
