"""What `pgqueue top` shows, and what a key does to it: pure functions of a picture, of what was before, and of a view.

press(view, key, picture) -> the next view, and what is to be done for it
draw(picture, rates, view, size, ...) -> lines
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from pgqueue.cli.common import cell, end_of, lasting
from pgqueue.stats import Picture

BUCKET = 3  # seconds that one bar of a sparkline stands for
SPAN = 180  # seconds that are remembered
LATE = 5  # seconds after which a settle that was under way has been committed; asked for again until then
RATE = 10  # seconds over which a rate is taken
BARS = "▁▂▃▄▅▆▇█"
LETTERS = "_.:-=+*#"  # where the terminal has no blocks

K = TypeVar("K", bound=tuple[Any, ...])
Pane = Literal["queues", "workers", "jobs"]
PANES: tuple[Pane, ...] = ("queues", "workers", "jobs")

HELP = (
    "tab, 1 2 3        another pane            up, down, page, home, end   another row",
    "s, S              sort by the next column, the other way round",
    "/                 show only rows that contain a text; escape shows all again",
    "p, space          hold the picture, and go on",
    "enter             why a job runs or does not, what a worker or queue holds",
    "c                 cancel a running job (asked once more)",
    "q, Ctrl-C         leave; whatever it shows, it changes nothing by itself",
)


class Rates:
    """What ended when, put together from pictures that overlap: a second that is told of again is told better."""

    def __init__(self) -> None:
        self.completed: dict[tuple[str, str | None, int], int] = {}
        self.failed: dict[tuple[str, int], int] = {}
        self.until = 0.0

    def add(self, picture: Picture) -> None:
        first = int(picture.since) + 1  # the second before was counted in part
        oldest = int(picture.at) - SPAN
        _mend(self.completed, picture.completed, first, oldest)
        _mend(self.failed, picture.failed, first, oldest)
        self.until = picture.at

    def next_span(self, now: float) -> float:
        """How many seconds the next picture should look back."""
        return min(60.0, max(0.0, now - self.until) + LATE) if self.until else 60.0

    def rate(self, queue: str | None = None, worker: str | None = None, *, failed: bool = False) -> float:
        """A second, over the last ten whole ones."""
        end = int(self.until)
        counts = self._counts(queue, worker, failed)
        return sum(count for second, count in counts if end - RATE <= second < end) / RATE

    def bars(self, width: int, queue: str | None = None, worker: str | None = None) -> list[int]:
        """Jobs completed in each of the last spans of three seconds, the newest last, the one under way left out."""
        last = int(self.until) // BUCKET
        found = [0] * width
        for second, count in self._counts(queue, worker, False):
            place = second // BUCKET - last + width
            if 0 <= place < width:
                found[place] += count
        return found

    def _counts(self, queue: str | None, worker: str | None, failed: bool) -> list[tuple[int, int]]:
        if failed:
            return [(second, count) for (of, second), count in self.failed.items() if queue in (None, of)]
        return [
            (second, count)
            for (of, by, second), count in self.completed.items()
            if queue in (None, of) and worker in (None, by)
        ]


def _mend(seen: dict[K, int], told: dict[K, int], first: int, oldest: int) -> None:
    for key in [key for key in seen if key[-1] >= first or key[-1] < oldest]:
        del seen[key]
    seen.update({key: count for key, count in told.items() if key[-1] >= first})


def sparkline(values: Sequence[int], bars: str = BARS) -> str:
    """`▁▂█`; a blank is a nought, the tallest bar the largest of them."""
    most = max(values, default=0)
    return "".join(" " if not value else bars[(value * len(bars) - 1) // most] for value in values)


@dataclass(frozen=True)
class View:
    """What somebody looks at. chosen: the row of each pane, by its key, so that it stays the same when rows move."""

    pane: Pane = "queues"
    chosen: dict[Pane, Any] = field(default_factory=dict)
    sort: dict[Pane, int] = field(default_factory=lambda: {"queues": 0, "workers": 0, "jobs": 5})
    backwards: frozenset[Pane] = frozenset({"jobs"})
    filter: str = ""
    typing: bool = False
    held: bool = False
    opened: tuple[str, ...] = ()
    help: bool = False
    asking: Wish | None = None
    said: str = ""


class Wish(NamedTuple):
    """What the program is to do: quit; look now; why, cancel of a job."""

    verb: Literal["quit", "look", "why", "cancel"]
    job: int = 0


class Column(NamedTuple):
    """A column of a pane. value: what is sorted by; shown: as it is read; least: columns of a terminal below which the
    pane does without it."""

    name: str
    value: Callable[[Any, Rates], Any]
    shown: Callable[[Any, Rates], str] | None = None
    right: bool = True
    least: int = 0

    def text(self, row: Any, rates: Rates) -> str:
        return cell(self.shown(row, rates) if self.shown else self.value(row, rates))


def _status(worker: Any) -> str:
    return "silent" if not worker.alive else "stopping" if worker.stopping else "alive"


COLUMNS: dict[Pane, tuple[Column, ...]] = {
    "queues": (
        Column("queue", lambda one, rates: one.queue, right=False),
        Column("queued", lambda one, rates: one.queued),
        Column("running", lambda one, rates: one.running),
        Column("sched.", lambda one, rates: one.scheduled, least=70),
        Column("blocked", lambda one, rates: one.blocked, least=90),
        Column("dead", lambda one, rates: one.dead, least=60),
        Column("oldest", lambda one, rates: one.oldest_age or 0.0, lambda one, rates: lasting(one.oldest_age)),
        Column("done/s", lambda one, rates: rates.rate(one.queue), lambda one, rates: _rate(rates.rate(one.queue))),
        Column(
            "failed/s",
            lambda one, rates: rates.rate(one.queue, failed=True),
            lambda one, rates: _rate(rates.rate(one.queue, failed=True)),
            least=80,
        ),
        Column("", lambda one, rates: one.paused, lambda one, rates: "paused" if one.paused else "", right=False),
    ),
    "workers": (
        Column("worker", lambda one, rates: one.id, lambda one, rates: one.id[:8], right=False),
        Column("host", lambda one, rates: one.host, right=False, least=80),
        Column("pid", lambda one, rates: one.pid, least=70),
        Column("status", lambda one, rates: _status(one), right=False),
        Column("slots", lambda one, rates: one.concurrency, least=60),
        Column("running", lambda one, rates: one.running),
        Column("oldest", lambda one, rates: one.oldest_run or 0.0, lambda one, rates: lasting(one.oldest_run)),
        Column(
            "done/s",
            lambda one, rates: rates.rate(worker=one.id),
            lambda one, rates: _rate(rates.rate(worker=one.id)),
        ),
        Column(
            "beat",
            lambda one, rates: one.heartbeat_age,
            lambda one, rates: lasting(max(0.0, one.heartbeat_age)),
            least=90,
        ),
    ),
    "jobs": (
        Column("job", lambda one, rates: one.id),
        Column("task", lambda one, rates: one.task, lambda one, rates: end_of(one.task, 40), right=False),
        Column("queue", lambda one, rates: one.queue, right=False, least=70),
        Column("attempt", lambda one, rates: one.attempt, lambda one, rates: f"{one.attempt}/{one.max_attempts}"),
        Column(
            "worker",
            lambda one, rates: one.worker_id or "",
            lambda one, rates: (one.worker_id or "")[:8],
            right=False,
            least=90,
        ),
        Column("for", lambda one, rates: one.seconds or 0.0, lambda one, rates: lasting(one.seconds)),
    ),
}


def _rate(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 100 else f"{value:.0f}"


def _key(pane: Pane, row: Any) -> Any:
    return row.queue if pane == "queues" else row.id


def rows_of(picture: Picture, rates: Rates, view: View, pane: Pane) -> list[Any]:
    """The rows of a pane, filtered and sorted as the view says."""
    found = list(getattr(picture, pane))
    if view.filter:
        wanted = view.filter.casefold()
        found = [
            one
            for one in found
            if any(wanted in column.text(one, rates).casefold() for column in COLUMNS[pane])
            or wanted in str(getattr(one, "task", "")).casefold()
        ]
    found.sort(key=lambda one: str(_key(pane, one)) if pane == "queues" else _key(pane, one))
    column = COLUMNS[pane][view.sort[pane]]
    found.sort(key=lambda one: column.value(one, rates), reverse=pane in view.backwards)
    return found


def _place(rows: list[Any], view: View, pane: Pane) -> int:
    """The chosen row; when it is gone, the first."""
    wanted = view.chosen.get(pane)
    return next((place for place, one in enumerate(rows) if _key(pane, one) == wanted), 0)


# -- keys --------------------------------------------------------------------------------------------------------------

_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -10, "page down": 10, "home": -(10**9), "end": 10**9}


def press(view: View, key: str, picture: Picture, rates: Rates) -> tuple[View, Wish | None]:
    """The view after a key, and what is to be done for it."""
    view = replace(view, said="")
    if view.typing:
        return _typed(view, key), None
    if view.asking is not None:
        return (replace(view, asking=None), view.asking if key in ("y", "Y") else None)
    if key in ("q", "Q"):
        return view, Wish("quit")
    if view.help or view.opened:
        return replace(view, help=False, opened=()), None
    pane = view.pane
    rows = rows_of(picture, rates, view, pane)
    place = _place(rows, view, pane)
    if key in ("tab", "right", "back tab", "left"):
        step = 1 if key in ("tab", "right") else -1
        return replace(view, pane=PANES[(PANES.index(pane) + step) % len(PANES)]), None
    if key in ("1", "2", "3"):
        return replace(view, pane=PANES[int(key) - 1]), None
    if key in _STEPS and rows:
        chosen = rows[min(max(place + _STEPS[key], 0), len(rows) - 1)]
        return replace(view, chosen={**view.chosen, pane: _key(pane, chosen)}), None
    if key == "s":
        named = [number for number, column in enumerate(COLUMNS[pane]) if column.name]
        following = named[(named.index(view.sort[pane]) + 1) % len(named)]
        return replace(view, sort={**view.sort, pane: following}), None
    if key == "S":
        return replace(view, backwards=view.backwards ^ {pane}), None
    if key == "/":
        return replace(view, typing=True), None
    if key == "escape":
        return replace(view, filter=""), None
    if key in ("p", " "):
        return replace(view, held=not view.held), Wish("look") if view.held else None
    if key in ("?", "h"):
        return replace(view, help=True), None
    if key in ("enter", "c"):
        return _act(view, key, rows[place] if rows else None)
    return view, None


def _typed(view: View, key: str) -> View:
    if key == "enter":
        return replace(view, typing=False)
    if key == "escape":
        return replace(view, typing=False, filter="")
    if key == "backspace":
        return replace(view, filter=view.filter[:-1])
    return replace(view, filter=view.filter + key) if len(key) == 1 else view


def _act(view: View, key: str, row: Any) -> tuple[View, Wish | None]:
    if row is None:
        return replace(view, said="there is no row here"), None
    if view.pane != "jobs":
        if key != "enter":
            return replace(view, said="choose a running job first: 3"), None
        # What it holds: the jobs, by its name.
        name = row.queue if view.pane == "queues" else row.id[:8]
        return replace(view, pane="jobs", filter=name), None
    if key == "enter":
        return view, Wish("why", row.id)
    return replace(view, asking=Wish("cancel", row.id)), None


# -- lines -------------------------------------------------------------------------------------------------------------


def draw(
    picture: Picture,
    rates: Rates,
    view: View,
    size: tuple[int, int],
    *,
    title: str = "",
    trouble: str = "",
    bars: str = BARS,
) -> list[Text]:
    """As many lines as the terminal has, none wider than it. trouble: what is wrong with the database."""
    columns, height = size
    clock = datetime.fromtimestamp(picture.at, UTC).strftime("%H:%M:%SZ")
    top = Text.assemble(("pgqueue top", "bold"), f"  {cell(title)}  {clock}")
    if view.held:
        top.append("  held: p goes on", style="bold yellow")
    lines = [top, Text(cell(trouble), style="bold red") if trouble else _totals(picture, rates, columns, bars)]
    room = height - 3
    if view.help or view.opened:
        text = HELP if view.help else view.opened
        folded = [piece for line in text for piece in _fold(cell(line), columns)]
        lines += [Text(), *map(Text, folded[: max(0, room - 2)]), Text(), Text("any key goes back", style="dim")]
    else:
        for pane, share in zip(PANES, _shares(picture, rates, view, room), strict=True):
            lines += _pane(picture, rates, view, pane, share, columns, bars)
    lines = lines[: max(1, height - 1)]
    lines += [Text()] * (height - 1 - len(lines))
    if height > 1:
        lines.append(_foot(view))
    for line in lines:
        line.truncate(columns, overflow="ellipsis")
    return lines[:height]


def _totals(picture: Picture, rates: Rates, columns: int, bars: str) -> Text:
    count = {
        name: sum(getattr(one, name) for one in picture.queues) for name in ("queued", "running", "scheduled", "dead")
    }
    said = "  ".join(f"{name} {number:,}" for name, number in count.items())
    said += f"  done {_rate(rates.rate())}/s  failed {_rate(rates.rate(failed=True))}/s  "
    room = min(SPAN // BUCKET, columns - cell_len(said))
    return Text.assemble(said, (sparkline(rates.bars(room), bars), "green")) if room > 0 else Text(said)


def _shares(picture: Picture, rates: Rates, view: View, room: int) -> list[int]:
    """Lines for each pane: two above its rows, all rows if there is room; else the chosen pane gets most of what is
    left over when the others have a few."""
    wanted = [len(rows_of(picture, rates, view, pane)) + 3 for pane in PANES]
    if sum(wanted) <= room:
        return [*wanted[:2], room - sum(wanted[:2])]
    few = max(0, min(6, room // 4))
    shares = [min(want, few) for want in wanted]
    mine = PANES.index(view.pane)
    shares[mine] = min(wanted[mine], room - sum(shares) + shares[mine])
    for place in range(len(PANES)):
        shares[place] += min(wanted[place] - shares[place], room - sum(shares))
    return shares


def _pane(picture: Picture, rates: Rates, view: View, pane: Pane, height: int, columns: int, bars: str) -> list[Text]:
    if height < 2:
        return [Text()] * height
    rows = rows_of(picture, rates, view, pane)
    place = _place(rows, view, pane)
    room = height - 2  # a title, and a blank line below
    start = min(max(0, place - room + 2), max(0, len(rows) - room + 1)) if len(rows) > room - 1 else 0
    shown = rows[start : start + max(0, room - 1)]
    kept = [
        (number, column) for number, column in enumerate(COLUMNS[pane]) if (column.least <= columns and column.name)
        or (column.name == "" and column.least == 0)
    ]  # fmt: skip
    texts = [[column.text(one, rates) for _, column in kept] for one in shown]
    widths = [
        max([cell_len(column.name) + (number == view.sort[pane]), *(cell_len(row[place]) for row in texts)])
        for place, (number, column) in enumerate(kept)
    ]
    widths[1 if pane == "jobs" else 0] = min(widths[1 if pane == "jobs" else 0], max(8, columns // 3))
    spark = min(SPAN // BUCKET, columns - sum(widths) - 2 * len(widths) - 2) if pane != "jobs" else 0
    style = "bold reverse" if pane == view.pane else "bold"
    name = {"queues": "1 queues", "workers": "2 workers", "jobs": "3 running jobs"}[pane]
    head = Text(f" {name} {len(rows)} ", style=style)
    if view.filter:
        head.append(f" with “{cell(view.filter)}”" if bars is BARS else f' with "{cell(view.filter)}"', style="yellow")
    heading = Text("  ", style="dim")
    mark = ("↓" if pane in view.backwards else "↑") if bars is BARS else ("v" if pane in view.backwards else "^")
    for (number, column), width in zip(kept, widths, strict=True):
        said = column.name + (mark if number == view.sort[pane] else "")
        heading.append(_fit(said, width, column.right) + "  ")
    if spark > 8:
        heading.append(f"the last {spark * BUCKET} s")
    lines = [head, heading]
    for number, (one, row) in enumerate(zip(shown, texts, strict=True), start):
        mine = pane == view.pane and number == place
        line = Text("> " if mine else "  ", style="reverse" if mine else "")
        for text, width, (_, column) in zip(row, widths, kept, strict=True):
            line.append(_fit(text, width, column.right) + "  ", style="red" if text in ("silent", "paused") else "")
        if spark > 8:
            of = {"queue": one.queue} if pane == "queues" else {"worker": one.id}
            line.append(sparkline(rates.bars(spark, **of), bars), style="green")
        lines.append(line)
    return [*lines, *[Text()] * height][:height]


def _foot(view: View) -> Text:
    if view.typing:
        return Text(f"/{cell(view.filter)}_   enter keeps it, escape drops it", style="bold")
    if view.asking is not None:
        return Text(f"{view.asking.verb} job {view.asking.job}? y: yes, any other key: no", style="bold red")
    if view.said:
        return Text(cell(view.said), style="bold")
    return Text("tab pane  s sort  / filter  p hold  enter open  c cancel  ? help  q quit", style="dim")


def _fit(text: str, width: int, right: bool) -> str:
    """The text in so many columns, cut at its end where it is longer; a wide character counts for two."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    blanks = " " * (width - cell_len(text))
    return blanks + text if right else text + blanks


def _fold(text: str, columns: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(longer) <= columns or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if text.strip() and cell_len(text) > columns else [text]
