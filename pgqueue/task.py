"""@app.task gives a function its name, its options and `.enqueue()`; calling it still just calls the function."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, get_args, overload

from pgqueue import enqueue as enqueueing
from pgqueue.arguments import Signature
from pgqueue.context import AppState
from pgqueue.drivers import AsyncConnection, SyncConnection
from pgqueue.enqueue import NewJob, Options, Sender
from pgqueue.errors import EnqueueError, InvalidArguments, InvalidOption, InvalidTask, seconds
from pgqueue.hooks import Hook
from pgqueue.hooks import apply as hooked
from pgqueue.job import Job, Waits
from pgqueue.middleware import UNNAMED, Middleware, body_of, unfit
from pgqueue.retention import Retention
from pgqueue.retry import RetryPolicy
from pgqueue.schedule import NOT_UNIQUE, Schedule
from pgqueue.sql import Statements
from pgqueue.unique import OnConflict, Until, check_known

P = ParamSpec("P")
R = TypeVar("R")

RunIn = Literal["auto", "loop", "thread", "process"]
"""Where a task's jobs run: an `async def` on the worker's loop, a `def` in a thread; or in a process of their own."""

_AT_RUN_TIME = ("hard_timeout", "run_in", "keep_log", "keep_result")
_OPTION_NAMES = frozenset(field.name for field in fields(Options))
_SCHEDULE = frozenset({"cron", "every", "timezone", "schedules"})


class CallOptions(TypedDict, total=False):
    """What `task.options(...)` takes, for type checkers: the fields of `Options`, which says what they mean."""

    queue: str
    priority: int
    delay: float | timedelta
    run_at: datetime | None
    max_attempts: int
    retry: RetryPolicy | None
    timeout: float | timedelta | None
    expires_in: float | timedelta | None
    unique_key: str | None
    unique: bool | tuple[str, ...] | list[str]
    unique_until: Until
    unique_for: float | timedelta | None
    on_conflict: OnConflict
    debounce_for: float | timedelta | None
    tags: tuple[str, ...] | list[str]
    meta: Mapping[str, Any] | None
    wake: bool


class Home(Protocol):
    """What a task needs of its app: the statements of its schema, connections for delay(), what is kept by default."""

    kept: Retention
    state: AppState
    around: list[Middleware]
    hooks: list[Hook]
    sender: Sender

    @property
    def jobs(self) -> Waits: ...

    @property
    def statements(self) -> Statements: ...

    def enqueue_alone(self, new: NewJob) -> Job: ...

    async def enqueue_alone_async(self, new: NewJob) -> Job: ...


class Task(Generic[P, R]):
    """A registered function. `retry`, `timeout` and `retention` hold at run time; `options` are those of its jobs.

    P, for type checkers, is what a call that is enqueued takes: the function's own signature, without a Context that
    stands first. `function` is the function itself, and takes that, too.
    """

    def __init__(
        self,
        home: Home,
        function: Callable[..., R],
        name: str,
        *,
        options: Options,
        retry: RetryPolicy,
        timeout: float | None,
        retention: Retention,
        schedules: tuple[Schedule, ...] = (),
        middleware: tuple[Middleware, ...] = (),
        hard_timeout: float | None = None,
        run_in: RunIn = "auto",
        keep_log: bool = False,
        keep_result: bool = True,
    ) -> None:
        self.name = name
        self.function = function
        self.retry = retry
        self.timeout = timeout
        self.hard_timeout = hard_timeout
        self.run_in = run_in
        self.keep_log = keep_log
        self.keep_result = keep_result
        self.retention = retention
        self.schedules = schedules
        self.middleware = middleware
        # A decorator's wrapper counts as well as what it wraps: either may be the async one.
        self.is_async = any(map(inspect.iscoroutinefunction, (function, inspect.unwrap(function))))
        self.signature = Signature(function, name)
        self._home = home
        self._options = options
        functools.update_wrapper(self, function)

    @functools.cached_property
    def body(self) -> Callable[..., Any]:
        """What an attempt calls: the function, inside the app's middleware and its own, if there is any."""
        around = (*self._home.around, *self.middleware)
        return body_of(self.function, around, self.signature.context_parameter, is_async=self.is_async)

    @functools.cached_property
    def takes(self) -> str | None:
        """The name by which `body` takes the job's Context; None when nobody asks for one."""
        parameter = self.signature.context_parameter
        return parameter if self.body is self.function or parameter is not None else UNNAMED

    def forget_body(self) -> None:
        """The app's middleware has changed."""
        for name in ("body", "takes"):
            vars(self).pop(name, None)

    @property
    def state(self) -> AppState:
        """The app's: what its lifespans have opened."""
        return self._home.state

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function here and now; nothing is enqueued."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    @overload
    def enqueue(self, connection: SyncConnection, /, *args: P.args, **kwargs: P.kwargs) -> Job: ...
    @overload
    def enqueue(
        self, connection: AsyncConnection, /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, Job]: ...
    def enqueue(
        self, connection: SyncConnection | AsyncConnection, /, *args: P.args, **kwargs: P.kwargs
    ) -> Job | Awaitable[Job]:
        """Enqueues one call in the connection's own transaction: it commits or rolls back with everything else there.

        An async connection gives an awaitable, and type checkers report it when nobody awaits it. Raises EnqueueError
        before any SQL when the call, an option or the connection cannot work; the transaction stays usable.
        """
        new = self._hooked(self.job(*args, **kwargs))
        return enqueueing.enqueue(self._home.sender, self._home.statements, connection, new, self._home.jobs)

    @overload
    def enqueue_many(
        self, connection: SyncConnection, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]], /
    ) -> list[int]: ...
    @overload
    def enqueue_many(
        self, connection: AsyncConnection, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]], /
    ) -> Coroutine[Any, Any, list[int]]: ...
    def enqueue_many(
        self, connection: SyncConnection | AsyncConnection, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]], /
    ) -> list[int] | Awaitable[list[int]]:
        """Enqueues many calls, each a tuple or a dict of arguments; all or none. The ids, in input order.

        The input is consumed in chunks of 5,000, so a generator of any length needs no more memory than its ids.
        """
        new = self._jobs(calls)
        return enqueueing.enqueue_many(self._home.sender, self._home.statements, connection, new)

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Enqueues one call in a short transaction of its own, on the app's connection; committed on return."""
        return self._home.enqueue_alone(self._hooked(self.job(*args, **kwargs)))

    async def delay_async(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """`delay` for the running event loop."""
        return await self._home.enqueue_alone_async(self._hooked(self.job(*args, **kwargs)))

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """One call that is not enqueued yet, for `app.enqueue_many`. Raises EnqueueError."""
        return NewJob(self.name, self.signature.encode(args, kwargs), self._options)

    def check(self) -> None:
        """Raises InvalidTask when the annotations cannot be read, or a schedule's arguments do not fit them."""
        self.signature.check()
        self.scheduled()

    def scheduled(self) -> list[dict[str, Any]]:
        """The rows of its schedules. Raises InvalidTask; not when it is decorated, as an annotation may name a class
        that comes later in its module."""
        rows = []
        for one in self.schedules:
            name = one.name or self.name
            args, kwargs = ((), one.args) if isinstance(one.args, Mapping) else (tuple(one.args), {})
            try:
                text = self.signature.encode(args, kwargs)
            except EnqueueError as error:
                raise InvalidTask(f"schedule {name}: {error}") from None
            rows.append(one.columns(name, NewJob(self.name, text, self._options)))
        return rows

    def options(self, **options: Unpack[CallOptions]) -> Task[P, R]:
        """The same task with other options for the jobs enqueued through what this returns; see `Options`.

        send.options(delay=30, priority=10, queue="vip", unique_key="welcome:7").enqueue(session, 7, "a@b.c")
        """
        _refuse_unknown("options", options, _OPTION_NAMES)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        enqueueing.later_word(options, self._options)
        other._options = replace(self._options, **options)
        if "unique" in options:
            check_known(other._options.unique, self.signature.names, self.name)
        if other._options.retry is not None:
            other._options.retry.to_json()  # refuse here what cannot travel
        return other

    def _hooked(self, new: NewJob) -> NewJob:
        """As the app's hooks leave it."""
        hooks = self._home.hooks
        return hooked(hooks, new) if hooks else new

    def _jobs(self, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]]) -> Iterator[NewJob]:
        encode = self.signature.encode
        for place, call in enumerate(calls):
            if isinstance(call, Mapping):
                text = encode((), call)
            elif isinstance(call, tuple | list):
                text = encode(tuple(call), {})
            else:
                raise InvalidArguments(
                    f"call {place} must be a tuple or a dict of arguments, not {type(call).__name__}"
                )
            yield self._hooked(NewJob(self.name, text, self._options))


def make(
    home: Home,
    function: Callable[..., Any],
    *,
    name: str | None = None,
    retry: object = None,
    timeout: object = None,
    hard_timeout: object = None,
    run_in: object = "auto",
    keep_log: object = False,
    keep_result: object = True,
    keep: Any = None,
    keep_for: Any = None,
    keep_dead: Any = None,
    keep_dead_for: Any = None,
    cron: Any = None,
    every: Any = None,
    timezone: Any = None,
    schedules: Any = (),
    middleware: Any = (),
    **options: Any,
) -> Task[Any, Any]:
    """A Task of a plain function. Raises InvalidTask, InvalidOption."""
    if isinstance(function, Task):
        raise InvalidTask(f"{function.name} is a task already")
    if isinstance(function, staticmethod | classmethod | property):
        raise InvalidTask("a task must be a plain function: put @app.task below @staticmethod, or outside the class")
    if not inspect.isfunction(function):
        raise InvalidTask(f"a task must be a plain function, not {type(function).__name__}: wrap it in a def")
    if function.__name__ == "<lambda>" and name is None:
        raise InvalidTask("a lambda has no name that a worker could find it by: use def, or pass name=")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidTask(f"task {function.__name__} is a generator; a task returns once")
    if next(iter(inspect.signature(function).parameters), None) in ("self", "cls") and "." in _inside(function):
        raise InvalidTask(f"{function.__qualname__} looks like a method; a task must be a plain function")
    known = _OPTION_NAMES - {"run_at", "unique_key"} | {*Retention.NAMES, *_AT_RUN_TIME, *_SCHEDULE, "middleware"}
    _refuse_unknown("task", options, known)
    if callable(retry) and not isinstance(retry, RetryPolicy):
        retry = RetryPolicy(backoff=retry)
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise InvalidOption(
            f"retry must be a RetryPolicy or a function of (attempt, error), not {type(retry).__name__}"
        )
    if not isinstance(keep_log, bool):
        raise InvalidOption(f"keep_log must be True or False, not {type(keep_log).__name__}")
    retention = Retention(keep, keep_for, keep_dead, keep_dead_for).over(home.kept)
    declared = _schedules(cron, every, timezone, schedules)
    checked = Options(timeout=timeout, **options)  # type: ignore[arg-type]
    if declared and checked.has_key:
        raise InvalidOption(NOT_UNIQUE)
    made: Task[Any, Any] = Task(
        home,
        function,
        enqueueing.name("task name", name if name is not None else default_name(function)),
        options=replace(checked, timeout=None),  # at run time the task's own holds: a new deploy may change it
        retry=retry or RetryPolicy(),
        timeout=checked.timeout,  # type: ignore[arg-type]
        retention=retention,
        schedules=declared,
        middleware=_around(middleware),
        keep_log=keep_log,
    )
    if hard_timeout is not None:
        made.hard_timeout = seconds("hard_timeout", hard_timeout, least=0.001)
        if made.timeout is not None and made.hard_timeout < made.timeout:
            raise InvalidOption(f"hard_timeout must not be shorter than timeout, {made.timeout:g} s")
    made.run_in = _place(run_in, made)
    if not isinstance(keep_result, bool):
        raise InvalidOption(f"keep_result must be True or False, not {type(keep_result).__name__}")
    made.keep_result = keep_result
    check_known(checked.unique, made.signature.names, made.name)
    return made


def _place(run_in: object, task: Task[Any, Any]) -> RunIn:
    """Where its jobs run, if they can there. Raises InvalidOption, InvalidTask."""
    if run_in not in get_args(RunIn):
        raise InvalidOption(f"run_in must be one of {', '.join(get_args(RunIn))}, not {run_in!r}")
    if run_in == "loop" and not task.is_async:
        raise InvalidOption("run_in='loop' is for an async def: a def would hold up all the other jobs")
    if run_in == "thread" and task.is_async:
        raise InvalidOption("run_in='thread' is for a def: an async def runs on the loop, or in a process")
    inside = task.function.__qualname__
    if run_in == "process" and ("<locals>" in inside or "<lambda>" in inside):
        raise InvalidTask(
            f"{inside} is to run in a process, which imports it by its name: define it at the top of a module"
        )
    return run_in  # type: ignore[return-value]


def _schedules(cron: Any, every: Any, timezone: Any, schedules: Any) -> tuple[Schedule, ...]:
    """What a task says of its times, in one form."""
    if (cron, every, timezone) != (None, None, None):
        if schedules:
            raise InvalidOption("give either cron=, every= and timezone=, or schedules=[Schedule(...), ...]")
        return (Schedule(cron=cron, every=every, timezone=timezone),)
    if not isinstance(schedules, tuple | list) or not all(isinstance(one, Schedule) for one in schedules):
        raise InvalidOption("schedules must be a list of Schedule(cron=... or every=...)")
    if len(schedules) > 1 and not all(one.name for one in schedules):
        raise InvalidOption("a task with several schedules has a name for each: Schedule(name=..., cron=...)")
    return tuple(schedules)


def _around(given: Any) -> tuple[Middleware, ...]:
    if not isinstance(given, list | tuple):
        raise InvalidOption(f"middleware must be a list of generator functions, not {type(given).__name__}")
    for one in given:
        if why := unfit(one):
            raise InvalidOption(why)
    return tuple(given)


def default_name(function: Callable[..., Any]) -> str:
    """`module.function`; for a script run as __main__ the module name it would have if imported."""
    module = function.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        if spec is not None and spec.name:
            module = spec.name
        elif getattr(main, "__file__", None):
            module = Path(str(main.__file__)).stem
    return f"{module.removesuffix('.__main__')}.{function.__name__}"


def _inside(function: Callable[..., Any]) -> str:
    """The qualified name from the innermost function outwards: 'Class.method' for a method defined in a function."""
    return function.__qualname__.rpartition("<locals>.")[2]


def _refuse_unknown(what: str, given: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise InvalidOption(f"{what}() takes no option {unknown[0]!r}; it takes {', '.join(sorted(known))}")
