"""When a schedule fires: what Vixie cron would do, over both changes of the clocks; and what is refused, in a line."""

from __future__ import annotations

import re
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from croniter import croniter
from hypothesis import given
from hypothesis import strategies as st

from pgqueue import InvalidOption, ticks
from pgqueue.ticks import Cron, timing


def local(cron: str, zone: str, after: str, count: int) -> list[str]:
    """The next ticks as a clock on the wall there shows them."""
    made = timing(cron, None, zone)
    assert isinstance(made, Cron)
    moment, found = datetime.fromisoformat(after), []
    for _ in range(count):
        moment = made.after(moment)
        found.append(moment.astimezone(made.zone).strftime("%m-%d %H:%M%z"))
    return found


# Each of them over both changes of 2026, for which the rules are written down.
CHANGES = [
    # a skipped wall time: at the first instant after the gap, once; and the day goes on as ever
    ("30 2 * * *", "America/New_York", "2026-03-07T12:00Z", ["03-08 03:00-0400", "03-09 02:30-0400"]),
    ("30 2 * * *", "Europe/Paris", "2026-03-28T12:00Z", ["03-29 03:00+0200", "03-30 02:30+0200"]),
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00Z", ["10-04 02:30+1100", "10-05 02:15+1100"]),
    # a doubled one: at its first occurrence, once
    ("30 1 * * *", "America/New_York", "2026-10-31T12:00Z", ["11-01 01:30-0400", "11-02 01:30-0500"]),
    ("30 2 * * *", "Europe/Paris", "2026-10-24T12:00Z", ["10-25 02:30+0200", "10-26 02:30+0100"]),
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00Z", ["04-05 01:45+1100", "04-06 01:45+1030"]),
    # several skipped ones are one tick, also with one that stands there anyway
    ("0,20,40 2,3 * * *", "Europe/Paris", "2026-03-28T12:00Z", ["03-29 03:00+0200", "03-29 03:20+0200"]),
    # with a star: every real occurrence, a doubled hour twice, a skipped one not at all
    ("30 * * * *", "America/New_York", "2026-11-01T05:00Z", [
        "11-01 01:30-0400", "11-01 01:30-0500", "11-01 02:30-0500"]),
    ("*/30 2 * * *", "Europe/Paris", "2026-10-24T23:30Z", [
        "10-25 02:00+0200", "10-25 02:30+0200", "10-25 02:00+0100", "10-25 02:30+0100", "10-26 02:00+0100"]),
    ("*/30 2 * * *", "Europe/Paris", "2026-03-28T12:00Z", ["03-30 02:00+0200"]),
    ("*/15 * * * *", "Australia/Lord_Howe", "2026-04-04T14:30Z", [
        "04-05 01:45+1100", "04-05 01:30+1030", "04-05 01:45+1030", "04-05 02:00+1030"]),
    ("*/15 * * * *", "Australia/Lord_Howe", "2026-10-03T15:14Z", [
        "10-04 01:45+1030", "10-04 02:30+1100", "10-04 02:45+1100"]),
    # a whole day that there was not, and a change over midnight
    ("30 2 * * *", "Pacific/Apia", "2011-12-29T13:00Z", ["12-31 00:00+1400", "12-31 02:30+1400"]),
    ("30 23 * * *", "America/St_Johns", "2010-11-06T12:00Z", ["11-06 23:30-0230", "11-07 23:30-0330"]),
    ("*/30 * * * *", "America/St_Johns", "2010-11-07T01:30Z", [
        "11-06 23:30-0230", "11-07 00:00-0230", "11-06 23:30-0330", "11-07 00:00-0330"]),
]  # fmt: skip


@pytest.mark.parametrize(("cron", "zone", "after", "expected"), CHANGES)
def test_over_a_change_of_the_clocks(cron: str, zone: str, after: str, expected: list[str]) -> None:
    assert local(cron, zone, after, len(expected)) == expected


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Paris", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"])
@pytest.mark.parametrize("cron", ["30 2 * * *", "0 0 * * *", "59 23 * * *", "30 1 * * *"])
def test_a_daily_job_runs_once_for_each_local_date_of_a_year(zone: str, cron: str) -> None:
    made = timing(cron, None, zone)
    assert isinstance(made, Cron)
    begin = datetime(2026, 1, 1, tzinfo=made.zone) - timedelta(seconds=1)
    found = [begin]
    while found[-1] < datetime(2026, 12, 31, 23, 59, 30, tzinfo=made.zone):
        found.append(made.after(found[-1]))
    dates = [tick.astimezone(made.zone).date() for tick in found[1:]]
    assert len(dates) - (dates[-1].year == 2027) == len(set(dates) - {datetime(2027, 1, 1).date()}) == 365


def test_the_next_tick_is_strictly_later() -> None:
    assert timing("0 2 * * *").after(datetime(2026, 5, 1, 2, tzinfo=UTC)) == datetime(2026, 5, 2, 2, tzinfo=UTC)
    assert timing(every=60).after(datetime(2026, 5, 1, 2, tzinfo=UTC)) == datetime(2026, 5, 1, 2, 1, tzinfo=UTC)


def test_an_interval_is_counted_from_1970_by_whoever_counts() -> None:
    late = datetime(2026, 5, 1, 12, 34, 56, 789, tzinfo=UTC)
    assert timing(every=timedelta(hours=7)).after(late).timestamp() % (7 * 3600) == 0
    assert timing(every=1.5).after(late) == datetime(2026, 5, 1, 12, 34, 57, tzinfo=UTC)


DAYS = [
    ("0 0 29 2 1", ["02-01", "02-08", "02-15", "02-22"], "day of month 29 or day of week 1"),
    ("0 0 13 * fri", ["01-02", "01-09", "01-13", "01-16"], "day of month 13 or day of week fri"),
    ("0 0 */2 * 1", ["01-05", "01-19", "02-09", "02-23"], "day of month */2 and day of week 1"),
    ("0 0 l * *", ["01-31", "02-28", "03-31", "04-30"], None),
    ("0 0 * * mon#1,fri#3", ["01-05", "01-16", "02-02", "02-20"], None),
    ("0 0 * * 5-7", ["01-02", "01-03", "01-04", "01-09"], None),
    ("0 0 31 * *", ["01-31", "03-31", "05-31", "07-31"], None),
]


@pytest.mark.parametrize(("cron", "expected", "words"), DAYS)
def test_day_of_month_and_day_of_week_go_together_as_in_vixie_cron(
    cron: str, expected: list[str], words: str | None
) -> None:
    assert [
        one[:5] for one in local(cron, "UTC", "2025-12-31T12:00Z" if cron[4] != "2" else "2027-01-01T00:00Z", 4)
    ] == expected
    made = timing(cron)
    assert (made.days or "").partition(" (")[0] == (words or "")


NUMBERS = {0: (0, 59), 1: (0, 23), 2: (1, 28), 3: (1, 12), 4: (0, 6)}


@st.composite
def expressions(draw: st.DrawFn) -> str:
    fields = []
    for place, (least, most) in NUMBERS.items():
        low = draw(st.integers(least, most - 1))
        high = draw(st.integers(low + 1, most))
        step = draw(st.integers(1, high - low))
        fields.append(draw(st.sampled_from(["*", f"*/{step}", str(low), f"{low}-{high}", f"{low}-{high}/{step}"])))
        if place == 4 and fields[2] != "*":
            fields[4] = "*"  # how the two go together croniter sees in its own way
    return " ".join(fields)


@given(expressions(), st.datetimes(datetime(2026, 1, 1), datetime(2030, 1, 1)))
def test_in_utc_the_ticks_are_those_of_croniter(cron: str, moment: datetime) -> None:
    theirs = croniter(cron, moment.replace(tzinfo=UTC), ret_type=datetime)
    made, mine = timing(cron), moment.replace(tzinfo=UTC)
    for _ in range(3):
        mine = made.after(mine)
        assert mine == theirs.get_next()


@given(
    st.sampled_from(["*/20 * * * *", "30 2 * * *", "5 1-3 * * *", "0 9 * * 1"]),
    st.sampled_from(["America/New_York", "Australia/Lord_Howe", "Europe/Paris"]),
    st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 1)),
    st.timedeltas(timedelta(0), timedelta(days=40)),
    st.integers(1, 5),
)
def test_the_latest_ticks_of_a_while_are_those_that_one_meets_on_the_way(
    cron: str, zone: str, moment: datetime, length: timedelta, most: int
) -> None:
    made = timing(cron, None, zone)
    first = made.after(moment.replace(tzinfo=UTC))
    on_the_way = [first]
    while (following := made.after(on_the_way[-1])) <= first + length:
        on_the_way.append(following)
    assert made.latest(first, first + length, most) == (on_the_way[-most:], len(on_the_way))


def test_the_latest_ticks_of_years_are_found_without_meeting_them_all() -> None:
    begin, end = datetime(2016, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    found, count = timing("* * * * *", None, "Europe/Paris").latest(begin, end, 2)
    assert (found, count) == ([end - timedelta(minutes=1), end], (end - begin) // timedelta(minutes=1) + 1)
    assert timing(every=1).latest(begin, end, 1) == ([end], (end - begin) // timedelta(seconds=1) + 1)


REFUSED = [
    ("", "has 0 fields"),
    ("0 2 * *", "has 4 fields"),
    ("0 0 2 * * *", "has 6 fields"),
    ("0 2 * * * 0 2026", "has 7 fields"),
    (" ".join("*" * 40), "has 40 fields"),
    ("@reboot", "no cron expression of five fields"),
    ("@every 5m", "there is every="),
    ("@daily", "write '0 0 * * *'"),
    ("\uff10 2 * * *", "plain ASCII"),
    ("0 2 * *\u00a0*", "plain ASCII"),
    ("0 2 * * *\n", "plain ASCII"),
    ("0 2 * * " + "1," * 100 + "1", "up to 200 characters"),
    ("0 0 31 2 *", "never fires"),
    ("0 0 30,31 2 *", "never fires"),
    ("*/100 * * * *", "never comes to a second value: write 0"),
    ("0 */24 * * *", "never comes to a second value: write 0"),
    ("1-5/9 * * * *", "never comes to a second value: write 1"),
    ("*/0 * * * *", "never comes to a second value"),
    ("5-1 * * * *", "runs backwards"),
    ("0 0 * * fri-mon", "runs backwards"),
    ("1-1/1 * * * *", "names one value twice"),
    ("59/15 * * * *", "a step without a range"),
    ("R * * * *", "R and H are no cron"),
    ("H * * * *", "R and H are no cron"),
    ("r(0-30) * * * *", "is none of"),
    ("60 * * * *", "60 must be between 0 and 59"),
    ("0 24 * * *", "24 must be between 0 and 23"),
    ("0 0 0 * *", "0 must be between 1 and 31"),
    ("0 0 * 13 *", "13 must be between 1 and 12"),
    ("0 0 * * 8", "8 must be between 0 and 7"),
    ("-1 * * * *", "is none of"),
    ("1,,2 * * * *", "is none of"),
    ("0 0 ? * *", "is none of"),
    ("0 0 15w * *", "'15w' is no number"),
    ("0 0 * foo *", "'foo' is no number or name"),
    ("0 0 * * 1#2,3", "mixes `#` with plain days"),
    (5, "must be text"),
]


@pytest.mark.parametrize(("cron", "why"), REFUSED)
def test_an_expression_that_is_not_meant_is_refused_with_what_to_write(cron: Any, why: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(why)) as caught:
        timing(cron)
    assert str(caught.value).startswith("cron ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("every", "why"),
    [(0, "between 1 and"), (0.5, "between 1 and"), (-1, "between 1 and"), (float("nan"), "between"),
     (float("inf"), "between"), (True, "number of seconds"), ("60", "number of seconds")],
)  # fmt: skip
def test_an_interval_that_cannot_be_is_refused(every: Any, why: str) -> None:
    with pytest.raises(InvalidOption, match=f"every must be .*{why}"):
        timing(every=every)


@pytest.mark.parametrize(
    "zone", ["", "Foo/Bar", "Europe", "../../etc/passwd", "localtime", "right/UTC", "Europe/Paris\0", "europe paris"]
)
def test_a_zone_that_is_not_known_is_named(zone: str) -> None:
    with pytest.raises(InvalidOption, match=r"timezone .* is not known here: write a name such as Europe/Paris"):
        timing("0 2 * * *", None, zone)
    with pytest.raises(InvalidOption, match="timezone must be a name"):
        timing("0 2 * * *", None, 2)


def test_without_time_zone_data_there_is_utc_and_the_error_says_what_to_install(monkeypatch: Any) -> None:
    class Nothing(zoneinfo.ZoneInfo):
        def __new__(cls, key: str) -> Any:
            raise zoneinfo.ZoneInfoNotFoundError(key)

    monkeypatch.setattr(ticks, "ZoneInfo", Nothing)
    ticks._zone.cache_clear()
    ticks._cron.cache_clear()
    try:
        assert timing("0 2 * * *").after(datetime(2026, 5, 1, tzinfo=UTC)).hour == 2
        with pytest.raises(InvalidOption, match=r"Europe/Paris.*no time zone data, and `pip install tzdata`"):
            timing("0 2 * * *", None, "Europe/Paris")
    finally:
        ticks._zone.cache_clear()
        ticks._cron.cache_clear()


def test_a_schedule_has_one_kind_of_time() -> None:
    for cron, every, zone, why in (
        (None, None, None, "either cron"),
        ("0 2 * * *", 60, None, "either cron"),
        (None, 60, "Europe/Paris", "every takes no timezone"),
    ):
        with pytest.raises(InvalidOption, match=why):
            timing(cron, every, zone)
