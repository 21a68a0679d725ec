"""pgqueue top: queues, workers and running jobs, live. topview.py says what is drawn and what a key does; screen.py is
the terminal; here a thread asks the database, so that keys are answered while it does not."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace
from typing import Any

import click
import psycopg
import sqlalchemy as sa

from pgqueue import stats
from pgqueue.app import PgQueue
from pgqueue.cli.common import app_of, database_options, explain
from pgqueue.errors import PgQueueError
from pgqueue.settings import describe
from pgqueue.stats import Picture

MOST = 200  # running jobs that are shown
SHARE = 10  # at most this part of the time is spent in the database: a picture of a million jobs takes 0.1 s and more
PATIENCE = 3.0  # seconds without an answer after which it is said
_ERRORS = (PgQueueError, psycopg.Error, sa.exc.SQLAlchemyError)


@click.command()
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between pictures."
)
@database_options
@click.pass_context
def top(ctx: click.Context, /, interval: float) -> None:
    """Show queues, workers and running jobs all the time, until q or Ctrl-C.

    Tab or 1, 2, 3 chooses a pane, arrows a row; enter opens a job and says why it runs or does not, c cancels it, s
    sorts, / filters, p holds the picture; ? lists all keys. One statement a picture; a busy database is asked less.

    \b
    Examples:
      pgqueue top
      pgqueue top --interval 5
    """
    from pgqueue.cli import screen

    if not (interval == interval and screen.possible()):
        raise click.UsageError(
            "top needs a terminal; `pgqueue stats` prints the same once, with --watch again and again"
        )
    app = app_of(ctx, "picture")
    feed = Feed(app, interval, describe(app.conninfo))
    feed.look()  # an error now is one line on the terminal as it is
    try:
        _show(feed)
    except KeyboardInterrupt:
        pass  # that is how it ends
    finally:
        feed.stop()


def _show(feed: Feed) -> None:
    from pgqueue.cli.screen import Screen
    from pgqueue.cli.topview import BARS, LETTERS, View, Wish, draw, press

    view = View()
    with Screen() as screen:
        feed.start(screen.wake)
        held: tuple[Picture, str] | None = None
        while True:
            picture, title = feed.picture, feed.title()
            if view.held:
                picture, title = held = held or (picture, title)
            else:
                held = None
            bars = BARS if screen.draws_blocks else LETTERS
            screen.paint(draw(picture, feed.rates, view, screen.size(), title=title, trouble=feed.trouble(), bars=bars))
            for key in screen.wait(1.0):
                if key == "redraw":
                    screen.repaint()
                view, wish = press(view, key, picture, feed.rates)
                if wish == Wish("quit"):
                    return
                if wish is not None:
                    feed.ask(wish.verb, wish.job)
            while (answer := feed.answer()) is not None:
                verb, lines = answer
                view = replace(view, opened=lines) if verb == "why" else replace(view, said=" ".join(lines))


class Feed:
    """Pictures, one after the other, and what somebody wished to know or to do in between; in a thread of its own."""

    def __init__(self, app: PgQueue, interval: float, where: str) -> None:
        from pgqueue.cli.topview import Rates

        self.app, self.interval, self.where = app, interval, where
        self.rates = Rates()
        self.picture: Picture
        self._took = 0.0
        self._asked = self._answered = time.monotonic()
        self._trouble = ""
        self._stopping = threading.Event()
        self._wishes: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, tuple[str, ...]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._wake: Any = None

    def look(self) -> None:
        """A picture now."""
        began = time.monotonic()
        span = self.rates.next_span(self.rates.until + (began - self._answered))
        picture = self.app.look(stats.picture(self.app.statements, span, MOST))
        self._answered = time.monotonic()
        self._took = self._answered - began
        self.rates.add(picture)
        self.picture, self._trouble = picture, ""

    def start(self, wake: Any) -> None:
        """wake: called after each answer, from the thread."""
        self._wake = wake
        self._thread = threading.Thread(target=self._run, name="pgqueue top", daemon=True)  # it may hang in a connect
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wishes.put(("look", 0))
        if self._thread is not None:
            self._thread.join(1.0)

    def ask(self, verb: str, job: int) -> None:
        self._wishes.put((verb, job))

    def answer(self) -> tuple[str, tuple[str, ...]] | None:
        try:
            return self._answers.get_nowait()
        except queue.Empty:
            return None

    def pause(self) -> float:
        """Seconds until the next picture."""
        return max(self.interval, (SHARE - 1) * self._took)

    def title(self) -> str:
        every = f"every {self.pause():.3g} s" + (" (it takes long)" if self.pause() > self.interval else "")
        return f"{self.where}  {every}, {self._took * 1e3:.0f} ms each"

    def trouble(self) -> str:
        """What is wrong, for people; nothing when nothing is."""
        if self._trouble:
            return self._trouble
        silent = time.monotonic() - self._answered
        if silent > self.pause() + PATIENCE:
            return f"the database has not answered for {silent:.0f} s; this was before"
        return ""

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                verb, job = self._wishes.get(timeout=self.pause())
            except queue.Empty:
                verb, job = "look", 0
            if self._stopping.is_set():
                return
            try:
                if verb != "look":
                    self._answers.put((verb, self._do(verb, job)))
                self.look()
            except _ERRORS as error:
                message, _ = explain(error, self.app.conninfo)
                if verb != "look" and isinstance(error, PgQueueError):
                    self._answers.put(("said", (message,)))
                else:
                    self._trouble = f"waiting for the database; this was before: {message}"
                    self.app.begin_anew()  # type: ignore[attr-defined]
            self._wake()

    def _do(self, verb: str, job: int) -> tuple[str, ...]:
        if verb == "why":
            first, *others = self.app.jobs.why(job)
            return (first.detail, *(f"{one.cause}: {one.detail}" for one in others))
        done = self.app.jobs.cancel(job)
        return (f"job {job}: {'cancelled, or told to end' if done else 'has ended already'}",)
