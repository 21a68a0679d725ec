"""How far long work is: a bar on standard error, where that is a terminal, gone when the work is done. What is done in
one step shows none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Tell = Callable[[int, int], None]  # how much is done, of how much


def nobody(done: int, total: int) -> None:
    """For work that nobody watches."""


@contextmanager
def progress(what: str) -> Iterator[Tell]:
    """A function to call with (done, total), after each part. Drawn by a thread, ten times a second."""
    if not sys.stderr.isatty():
        yield nobody
        return
    bar: Any = None

    def tell(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            if done >= total:
                return
            bar = _bar(what, total)
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield tell
    finally:
        if bar is not None:
            bar.stop()


def _bar(what: str, total: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True, redirect_stdout=False)
    bar.add_task(what, total=total)
    bar.start()
    return bar
