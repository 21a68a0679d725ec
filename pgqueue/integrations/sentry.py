"""Sentry: an event for each job that dies, or each attempt that fails, with its stack, by task. Extra `sentry`.

    sentry_sdk.init(...)
    sentry.instrument(app)  # from pgqueue.integrations import sentry

A failure is sent when it is stored as one, from the event that tells of it, with what the job put into Sentry's scope
while it ran. Never its arguments: the local variables of the frames are left out, and a database error's details.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

from pgqueue.app import PgQueue
from pgqueue.context import AppState, Context
from pgqueue.errors import BadRow, ConfigurationError, Steer
from pgqueue.events import Event
from pgqueue.job import DeadReason, Job

try:
    import sentry_sdk
    from sentry_sdk.scope import use_isolation_scope
    from sentry_sdk.utils import event_from_exception
except ImportError:
    raise ImportError("pgqueue.integrations.sentry needs the extra: pip install 'pgqueue-py[sentry]'") from None

_SCOPE = "_pgqueue_sentry_scope"  # on an error, until it is told
_FLUSH = 0.7  # seconds that a process which ends waits for what is not sent yet; that of a job has a second in all
_TOLD = frozenset({"job_dead_lettered", "job_crashed"})  # lines of our log about what we send ourselves
# `File "shop/tasks.py", line 12, in charge`, and the line of code below it
_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)\n(?:    (.*)\n)?', re.MULTILINE)
_DRIVERS = ("psycopg", "sqlalchemy", "asyncpg", "django.db")  # whose messages go on with rows and parameters


def instrument(app: PgQueue, when: Literal["dead", "failed"] = "dead") -> None:
    """Sends what fails for good, or, with "failed", each attempt that fails, to the Sentry that is set up there.

    Raises ConfigurationError for another `when`, and the second time.
    """
    if when not in ("dead", "failed"):
        raise ConfigurationError(f"when must be 'dead' or 'failed', not {when!r}")
    if any(getattr(one, "__module__", None) == __name__ for one in app.around):
        raise ConfigurationError("this app is instrumented already: call sentry.instrument(app) once")

    def scoped(ctx: Context) -> Iterator[None]:
        with sentry_sdk.isolation_scope() as scope:
            scope.clear_breadcrumbs()  # of whatever ran here before
            _name(scope, ctx.job)
            try:
                yield
            except BaseException as error:
                # Past a __setattr__ or __slots__ of its own; it is told of in another thread, some time later.
                error.__dict__[_SCOPE] = scope
                raise

    def dead(event: Event) -> None:
        # In "failed" its last attempt has been sent; but not one that steered to its death, and no attempt tells of
        # the crash of a whole worker.
        if when == "dead" or isinstance(event.exception, Steer) or event.reason is DeadReason.CRASHED:
            _send(event)

    def failed(event: Event) -> None:
        if not isinstance(event.exception, Steer) and event.reason is not DeadReason.CRASHED:
            _send(event)

    def flushed(state: AppState) -> Iterator[None]:
        """A worker's process ends by os._exit, and leaves nothing to atexit."""
        yield
        # In a thread that nobody waits for: a transport may take the time it wants.
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(_FLUSH)

    app.middleware(scoped)
    app.around.insert(0, app.around.pop())  # around all others, whenever they were registered
    app.on("dead_lettered")(dead)
    if when == "failed":
        app.on("failed")(failed)
    app.lifespan(flushed)
    # Added twice, for two apps, it does the same.
    sentry_sdk.get_global_scope().add_event_processor(_logged)


def _name(scope: Any, job: Job) -> None:
    scope.set_transaction_name(job.task, source="task")
    for name, value in (("queue", job.queue), ("task", job.task), ("attempt", job.attempt), ("job_id", job.id)):
        scope.set_tag(name, str(value))
    scope.add_event_processor(_without_secrets)


def _send(event: Event) -> None:
    """One event of Sentry's, in the scope that the job had."""
    if not sentry_sdk.get_client().is_active():
        return
    error, job = event.exception, event.job
    own = None if error is None else error.__dict__.pop(_SCOPE, None)
    with sentry_sdk.isolation_scope() if own is None else use_isolation_scope(own) as scope:
        if own is None:
            scope.clear_breadcrumbs()
        _name(scope, job)
        if event.reason is not None:
            scope.set_tag("reason", event.reason.value)
        sentry_sdk.capture_event(*_event(event))


def _event(event: Event) -> tuple[Any, dict[str, Any]]:
    """What is sent of it, and the hint that goes with it. Grouped by its stack within its task; without a stack by the
    task and the reason."""
    error, task = event.exception, event.job.task
    why = "failed" if event.reason is None else event.reason.value
    if error is not None and not isinstance(error, Steer):
        made, hint = event_from_exception(error, sentry_sdk.get_client().options, {"type": "pgqueue", "handled": False})
        # A TaskTimeout or a BadRow stands for an attempt, and was raised nowhere in it.
        key = why if error.__traceback__ is None or isinstance(error, BadRow) else "{{ default }}"
        return {**made, "fingerprint": [key, task]}, hint
    if event.traceback is not None:  # of another process, as text
        kind, _, message = (event.error or "").partition(": ")
        module, _, name = kind.rpartition(".")
        value = {"type": name, "module": module or None, "value": message, "stacktrace": {"frames": _frames(event)}}
        return {"level": "error", "exception": {"values": [value]}, "fingerprint": ["{{ default }}", task]}, {}
    return {"level": "error", "message": event.error or why, "fingerprint": [why, task]}, {}


def _frames(event: Event) -> list[dict[str, Any]]:
    """Those of the last link of a traceback in text, the error itself."""
    last = (event.traceback or "").split("\n\n")[-1]
    return [
        {"filename": file, "abs_path": file, "lineno": int(line), "function": name, "context_line": code or None}
        for file, line, name, code in _FRAME.findall(last)
    ]


def _without_secrets(event: Any, hint: Any) -> Any:
    """Takes out what may hold a job's arguments, a row or a password."""
    for one in event.get("exception", {}).get("values") or ():
        one_of_ours = str(one.get("module") or "")
        if one_of_ours == "psycopg" and one.get("type") == "ProgrammingError":
            one["value"] = "(its message may hold a connection string)"
        elif one_of_ours.startswith(_DRIVERS):
            one["value"] = str(one.get("value") or "").split("\n")[0]
    for holder in (event.get("exception"), event.get("threads")):
        for one in (holder or {}).get("values") or ():
            for frame in (one.get("stacktrace") or {}).get("frames") or ():
                frame.pop("vars", None)
    event.get("extra", {}).pop("sys.argv", None)  # --database-url
    return event


def _logged(event: Any, hint: Any) -> Any:
    """Of the lines of our log those that say what we send, without a stack and all alike, are dropped."""
    record = hint.get("log_record")
    if record is None or record.name != "pgqueue":
        return event
    return None if getattr(record, "event", None) in _TOLD else _without_secrets(event, hint)


def _flush() -> None:
    with suppress(Exception):
        sentry_sdk.flush(timeout=_FLUSH)
