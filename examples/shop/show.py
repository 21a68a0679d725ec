"""How the demo speaks and waits: scenes, facts, and answers of the database that will come in a moment."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from examples.shop import questions
from examples.shop.questions import PromiseBroken

T = TypeVar("T")


class Show:
    """What a scene has at hand: a console to write on, the database to ask, the worker that must stay alive."""

    def __init__(self, console: Console, db: questions.Database, worker: subprocess.Popen[bytes], mail: Path) -> None:
        self.console, self.db, self.worker, self.mail = console, db, worker, mail
        self.number = 0

    def scene(self, title: str, explanation: str) -> None:
        self.number += 1
        self.console.print(f"\n[bold cyan]{self.number}  {title}[/]")
        self.console.print(Padding(explanation, (0, 0, 0, 3), expand=False), style="dim")

    def fact(self, label: str, value: object, holds: bool = True) -> None:
        """One line of what the database says. Raises PromiseBroken unless it `holds`."""
        line = Table.grid(padding=(0, 1))
        line.add_column(width=3, justify="right")
        line.add_column(width=20)
        line.add_column(overflow="fold")
        good, bad = ("✓", "✗") if self.console.encoding.startswith("utf") else ("ok", "NO")
        line.add_row(f"[green]{good}[/]" if holds else f"[bold red]{bad}[/]", label, f"[bold]{escape(str(value))}[/]")
        self.console.print(line)
        if not holds:
            raise PromiseBroken(f"{label}: {value}")

    def eventually(self, what: str, ask: Callable[[], T], good: Callable[[T], bool] = bool, seconds: float = 30) -> T:
        """Asks until the answer is good. Raises PromiseBroken when it takes too long or the worker ends."""
        deadline = time.monotonic() + seconds
        while not good(answer := ask()):
            if self.worker.poll() is not None:
                raise PromiseBroken(f"the worker ended; waited for {what}")
            if time.monotonic() > deadline:
                raise PromiseBroken(f"not within {seconds:g} s: {what} (the database says {answer!r})")
            time.sleep(0.03)
        return answer

    def done(self, job_id: int, seconds: float = 30) -> questions.Row:
        """The job, when it has completed. Raises PromiseBroken when it ends in any other way."""
        live = ("queued", "running", "blocked")
        end = self.eventually(
            f"the end of job {job_id}",
            lambda: questions.state(self.db, job_id),
            lambda state: state not in live,
            seconds,
        )
        if end != "completed":
            raise PromiseBroken(f"job {job_id} is {end}: {questions.last_error(self.db, job_id)}")
        return questions.completed(self.db, job_id)

    def failures(self, job_id: int, seconds: float = 30) -> list[questions.Row]:
        """Prints each failed attempt of a job as it appears in the database, until the job has ended; returns them."""
        shown: list[questions.Row] = []

        def ended() -> bool:
            over = questions.state(self.db, job_id) in ("completed", "dead")  # asked first, so that no error is missed
            for error in questions.failed_attempts(self.db, job_id)[len(shown) :]:
                self.attempt(error.attempt, error.later, f"[red]{escape(error.error.splitlines()[0])}[/]")
                shown.append(error)
            return over

        self.eventually(f"the end of job {job_id}", ended, seconds=seconds)
        return shown

    def attempt(self, number: int, later: float | None, what: str) -> None:
        when = "at once" if later is None else f"{later:.2f} s later"
        self.console.print(f"    attempt {number}  [dim]{when:>12}[/]  {what}", no_wrap=True, overflow="ellipsis")
