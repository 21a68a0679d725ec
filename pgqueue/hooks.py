"""What an application has done to its jobs before they are enqueued: `@app.before_enqueue`, in the caller's process.

    @app.before_enqueue
    def traced(new: NewJob) -> NewJob | None:
        return new.replace(meta={**(new.options.meta or {}), "trace": current_trace()})

In the order of registration, each given what the one before it made. Before any SQL: what a hook raises, the caller
gets, and nothing is written. Only Python's own enqueues have them; `pgqueue.enqueue(...)` in SQL, the command line, a
schedule's tick and a redrive are the database's, which knows no Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pgqueue.enqueue import NewJob
from pgqueue.errors import EnqueueError
from pgqueue.middleware import name_of

Hook = Callable[[NewJob], NewJob | None]


def unfit(function: Any) -> str | None:
    """Why it cannot be a hook; None when it can."""
    if not inspect.isfunction(function):
        return f"an enqueue hook is a def that takes a NewJob, not {type(function).__name__}"
    if inspect.iscoroutinefunction(function):
        return f"enqueue hook {name_of(function)} must be a plain def: a sync enqueue could not await it"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return f"enqueue hook {name_of(function)} must return, not yield: it is called before the enqueue only"
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return f"enqueue hook {name_of(function)} must take one argument: def ...(new: NewJob) -> NewJob | None"
    return None


def apply(hooks: Sequence[Hook], new: NewJob) -> NewJob:
    """The job as the hooks leave it. Raises what they raise, and EnqueueError for what is no answer."""
    for hook in hooks:
        answer = hook(new)
        if answer is None:
            continue
        if not isinstance(answer, NewJob):
            raise EnqueueError(
                f"enqueue hook {name_of(hook)} must return a NewJob or None, not {type(answer).__name__}"
            )
        if replace(answer, options=new.options) != new:
            raise EnqueueError(f"enqueue hook {name_of(hook)} may change the job's options, not its task or arguments")
        new = answer
    return new
