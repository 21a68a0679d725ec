"""When a schedule fires: an expression in a time zone, or an interval; a moment in, the next tick out. Pure.

croniter reads the fields. What it accepts and nobody means is refused here first: more or fewer than five fields, `R`,
`@reboot`, `*/100`, `5-1`, a step without a range. When a tick is, is decided here too, as Vixie cron does:

    no * in minute and hour     once for each wall time: a doubled hour at its first occurrence, a skipped one at the
                                first instant after the gap, and two that end up there are one tick
    a * in minute or hour       every real occurrence: a doubled hour twice, a skipped one not at all
    day of month, day of week   either of them, unless one begins with a *: then both

A tick is an instant in UTC. An interval's ticks are its multiples since 1970-01-01 UTC, whoever computes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pgqueue.errors import InvalidOption, seconds

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)
_AHEAD = 50 * 366  # days: a 29 February that has to be a Monday comes within 40 years
LEAST_EVERY = 1.0  # seconds; what must happen more often is a loop, not a schedule

# (name, least, most, names) of each field.
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: place for place, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: place for place, name in enumerate(_DAYS)}),
)
_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_ITEM = re.compile(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d+))?", re.ASCII)
_LONGEST = 200  # characters


@dataclass(frozen=True, slots=True)
class Every:
    """Each multiple of so many microseconds since 1970."""

    micros: int

    def after(self, moment: datetime) -> datetime:
        """The first tick that is strictly later."""
        return self._at(self._count(moment) + 1)

    def latest(self, first: datetime, until: datetime, most: int) -> tuple[list[datetime], int]:
        """(the last `most` ticks from `first`, which is one or counts as one, to `until`, how many there were)."""
        low, high = self._count(first), self._count(until)
        ticks = [self._at(count) for count in range(max(low + 1, high - most + 1), high + 1)]
        return ([first, *ticks] if len(ticks) < most else ticks), high - low + 1

    def _count(self, moment: datetime) -> int:
        return (moment - _EPOCH) // timedelta(microseconds=1) // self.micros

    def _at(self, count: int) -> datetime:
        return _EPOCH + timedelta(microseconds=count * self.micros)

    @property
    def days(self) -> str | None:
        """Cron.days, of which an interval has nothing to say."""
        return None


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone; made by `cron()`, which has checked it."""

    text: str
    zone: tzinfo
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    dates: frozenset[int]  # days of the month; 0: the last one
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    nth: frozenset[tuple[int, int]]  # (weekday, which one of the month)
    both: bool  # the day of the month and the day of the week must fit; else one of them is enough
    wild: bool  # a * in minute or hour

    def after(self, moment: datetime) -> datetime:
        """The first tick that is strictly later. InvalidOption when there is none within fifty years."""
        for day in self._days_from(moment.astimezone(self.zone).date() - _DAY):
            found = [tick for tick in self._on(day) if tick > moment]
            if found:
                # Where clocks go back over midnight, the next day begins before this one has ended.
                return min(found + [tick for tick in self._on_if_it_fits(day + _DAY) if tick > moment])
        raise InvalidOption(f"cron {self.text!r} never fires")

    def latest(self, first: datetime, until: datetime, most: int) -> tuple[list[datetime], int]:
        """(the last `most` ticks from `first`, which is one or counts as one, to `until`, how many there were)."""
        begin = first.astimezone(self.zone).date() - _DAY
        end = until.astimezone(self.zone).date() + _DAY
        ticks: set[datetime] = set()
        others = 0
        while end >= begin:
            inside = begin + 2 * _DAY < end
            if inside and len(ticks) > most and self._fits(end) and self._offset_all_day(end) is not None:
                others += len(self.hours) * len(self.minutes)
            else:
                ticks |= {tick for tick in self._on_if_it_fits(end) if first < tick <= until}
            end -= _DAY
        found = [first, *sorted(ticks)]
        return found[-most:], len(found) + others

    @property
    def days(self) -> str | None:
        """How the day of the month and the day of the week go together, in words, where both are given."""
        month, week = self.text.split()[2], self.text.split()[4]
        if month == "*" or week == "*":
            return None
        word = "and" if self.both else "or"
        why = "one of them begins with *" if self.both else "either is enough: cron's rule"
        return f"day of month {month} {word} day of week {week} ({why})"

    def _days_from(self, day: date) -> Iterator[date]:
        try:
            for _ in range(_AHEAD):
                if day.month not in self.months:
                    day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
                    continue
                if self._fits(day):
                    yield day
                day += _DAY
        except OverflowError:  # the year 10000
            return

    def _fits(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        last = (day + _DAY).day == 1
        weekday = day.isoweekday() % 7
        by_date = day.day in self.dates or (last and 0 in self.dates)
        by_weekday = weekday in self.weekdays or (weekday, (day.day + 6) // 7) in self.nth
        return (by_date and by_weekday) if self.both else (by_date or by_weekday)

    def _on_if_it_fits(self, day: date) -> list[datetime]:
        return self._on(day) if self._fits(day) else []

    def _on(self, day: date) -> list[datetime]:
        """The ticks of a local date, in UTC."""
        walls = [datetime.combine(day, time(hour, minute)) for hour in self.hours for minute in self.minutes]
        offset = self._offset_all_day(day)
        if offset is not None:
            return [(wall - offset).replace(tzinfo=UTC) for wall in walls]
        found = set[datetime]()
        for wall in walls:
            found |= self._occurrences(wall) if self.wild else {self._once(wall)}
        return sorted(found)

    def _offset_all_day(self, day: date) -> timedelta | None:
        """The offset from UTC of all of a local date, with an hour on each side; None where the clocks are changed."""
        begin = datetime.combine(day, time()) - timedelta(hours=1)
        begun, ended = (wall.replace(tzinfo=self.zone).utcoffset() for wall in (begin, begin + timedelta(hours=26)))
        return begun if begun == ended else None

    def _occurrences(self, wall: datetime) -> set[datetime]:
        both = {wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
        return {tick for tick in both if tick.astimezone(self.zone).replace(tzinfo=None, fold=0) == wall}

    def _once(self, wall: datetime) -> datetime:
        real = self._occurrences(wall)
        if real:
            return min(real)
        # Skipped: with the offset of after the gap it would lie before the change, with that of before it, after.
        early, late = sorted(wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        before = early.astimezone(self.zone).utcoffset()
        while late - early > timedelta(seconds=1):
            middle = early + (late - early) / 2
            if middle.astimezone(self.zone).utcoffset() == before:
                early = middle
            else:
                late = middle
        return late.replace(microsecond=0)


Timing = Cron | Every


def timing(cron: object = None, every: object = None, timezone: object = None) -> Timing:
    """What a schedule says of its time, read and checked: InvalidOption names the field, and what to write instead."""
    if (cron is None) == (every is None):
        raise InvalidOption('a schedule has either cron="0 2 * * *" or every=60 (seconds, or a timedelta)')
    if cron is None:
        if timezone is not None and timezone != "UTC":
            raise InvalidOption("every takes no timezone: its ticks are multiples of the interval since 1970, in UTC")
        return Every(round(seconds("every", every, least=LEAST_EVERY) * 1_000_000))
    if not isinstance(cron, str):
        raise InvalidOption(f"cron must be text such as '0 2 * * *', not {type(cron).__name__}")
    return _cron(cron, zone_name(timezone))


def zone_name(value: object) -> str:
    """The name of a time zone; None is UTC. InvalidOption when it is none that is known here."""
    if value is None:
        return "UTC"
    if isinstance(value, ZoneInfo) and value.key:
        return value.key
    if not isinstance(value, str):
        raise InvalidOption(f"timezone must be a name such as Europe/Paris, not {type(value).__name__}")
    _zone(value)
    return value


@lru_cache(maxsize=1_000)
def _zone(name: str) -> tzinfo:
    if name == "UTC":  # also where there is no time zone data at all
        return UTC
    # What this machine calls localtime another one does not; right/ counts leap seconds, which nobody else does.
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", name) and not re.match(
        r"(posix|right)/|(localtime|posixrules|Factory)$", name
    ):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    try:
        ZoneInfo("Europe/Paris")
    except (ZoneInfoNotFoundError, OSError):
        raise InvalidOption(
            f"timezone {name[:60]!a} cannot be looked up: this machine has no time zone data, and `pip install tzdata` "
            "brings it"
        ) from None
    raise InvalidOption(f"timezone {name[:60]!a} is not known here: write a name such as Europe/Paris, or UTC")


@lru_cache(maxsize=1_000)
def _cron(text: str, timezone: str) -> Cron:
    fields = _fields(text)
    normal = " ".join(fields)
    for (name, least, most, names), given in zip(_FIELDS, fields, strict=True):
        for item in given.split(","):
            _check_item(text, name, item, least, most, names)
    from croniter import CroniterError, croniter  # 40 ms that an application without schedules does not pay

    try:
        expanded, nth = croniter.expand(normal)
    except CroniterError:  # the few that pass above: 1#2 beside a plain day of the week
        raise InvalidOption(f"cron {text!a}: the day of week mixes `#` with plain days, which has no meaning") from None
    minutes, hours, dates, months, weekdays = (
        set(range(least, most + 1)) if "*" in values else {0 if value == "l" else int(value) for value in values}
        for (_, least, most, _), values in zip(_FIELDS, expanded, strict=True)
    )
    made = Cron(
        text=normal,
        zone=_zone(timezone),
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        dates=frozenset(dates),
        months=frozenset(months),
        weekdays=frozenset() if nth else frozenset(day % 7 for day in weekdays),
        nth=frozenset((day, which) for day, all_of in nth.items() for which in all_of),
        both=fields[2].startswith("*") or fields[4].startswith("*"),
        wild="*" in fields[0] or "*" in fields[1],
    )
    made.after(made.after(datetime.now(UTC)))  # 0 0 31 2 * is well formed, and comes never
    return made


def _fields(text: str) -> list[str]:
    lower = text.strip(" \t").lower()
    if lower.startswith("@"):
        instead = f": write '{_MACROS[lower]}'" if lower in _MACROS else ", for intervals there is every="
        raise InvalidOption(f"cron {text[:60]!a} is no cron expression of five fields{instead}")
    if not text.isascii() or len(text) > _LONGEST or re.search(r"[^\x20-\x7e\t]", text):
        raise InvalidOption(f"cron {text[:60]!a} must be five fields of plain ASCII, up to {_LONGEST} characters")
    fields = lower.split()
    if len(fields) != 5:
        raise InvalidOption(
            f"cron {text[:60]!a} has {len(fields)} fields; it must have five: minute, hour, day of month, month, "
            "day of week"
        )
    return fields


def _check_item(text: str, name: str, item: str, least: int, most: int, names: dict[str, int]) -> None:
    where = f"cron {text!a}: {name} {item!a}"
    if name == "day of month" and item == "l":
        return
    if name == "day of week" and (nth := re.fullmatch(r"([0-7]|[a-z]{3})#[1-5]", item, re.ASCII)):
        _value(where, nth[1], least, most, names)
        return
    found = _ITEM.fullmatch(item)
    if found is None:
        raise InvalidOption(f"{where} is none of 5, 1-5, *, */5, 1-30/5 (and L, the last day of a month; fri#2)")
    star, low, high, step = found.groups()
    first = least if star else _value(where, low, least, most, names)
    last = (6 if most == 7 else most) if star else first if high is None else _value(where, high, least, most, names)
    if high is not None and last == first:  # croniter takes 1-1/1 for every minute
        raise InvalidOption(f"{where} names one value twice: write {first}")
    if last < first:
        raise InvalidOption(f"{where} runs backwards: write it as two ranges, such as 22-23,0-5")
    if step is None:
        return
    if not star and high is None:
        raise InvalidOption(
            f"{where} has a step without a range, which is read in two ways: write {low}, or {least}-{most}/{step}"
        )
    if not 1 <= int(step) <= max(1, last - first):
        raise InvalidOption(f"{where} has a step that never comes to a second value: write {first}")


def _value(where: str, text: str, least: int, most: int, names: dict[str, int]) -> int:
    if text in names:
        return names[text]
    if not re.fullmatch(r"\d{1,2}", text, re.ASCII):
        hint = "; R and H are no cron" if text in ("r", "h") else ""
        raise InvalidOption(f"{where}: {text!a} is no {'number or name' if names else 'number'}{hint}")
    if not least <= int(text) <= most:
        raise InvalidOption(f"{where}: {text} must be between {least} and {most}")
    return int(text)
