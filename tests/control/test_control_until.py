"""What `--until` understands: pure functions of a text, a moment and the time zone."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from bloomd.control.until import WrongTime, parse


@pytest.fixture(autouse=True)
def kyiv(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two hours ahead of UTC in winter, three in summer; written out, so that no time zone data is needed."""
    monkeypatch.setenv("TZ", "EET-2EEST,M3.5.0/3,M10.5.0/4")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def parsed(text: str, now: str) -> str:
    return datetime.fromtimestamp(parse(text, utc(now)) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(
    ("text", "now", "at"),
    [
        ("18:00", "2026-11-25 12:00:00", "2026-11-25 16:00:00"),
        ("8:05", "2026-11-25 12:00:00", "2026-11-26 06:05:00"),
        ("14:00", "2026-11-25 11:59:59", "2026-11-25 12:00:00"),
        ("14:00", "2026-11-25 12:00:00", "2026-11-26 12:00:00"),  # it is 14:00 now: tomorrow's is meant
        ("00:00", "2026-11-25 12:00:00", "2026-11-25 22:00:00"),
        ("00:00", "2026-11-25 22:30:00", "2026-11-26 22:00:00"),  # already the 26th there
        ("23:59", "2026-11-25 21:59:30", "2026-11-26 21:59:00"),
        ("00:30", "2026-11-25 22:10:00", "2026-11-25 22:30:00"),
        ("01:00", "2026-12-31 21:50:00", "2026-12-31 23:00:00"),  # New Year's Eve, ten to midnight
        ("01:00", "2026-02-28 21:50:00", "2026-02-28 23:00:00"),
        ("01:00", "2028-02-28 23:30:00", "2028-02-29 23:00:00"),  # the 29th
        ("18:00", "2026-03-28 17:00:00", "2026-03-29 15:00:00"),  # summer time begins in the night between
        ("18:00", "2026-10-24 16:00:00", "2026-10-25 16:00:00"),  # and ends
        (" 18:00 ", "2026-11-25 12:00:00", "2026-11-25 16:00:00"),
    ],
)
def test_a_time_of_day_is_the_next_such_time(text: str, now: str, at: str) -> None:
    assert parsed(text, now) == at


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-12-01T09:30", "2026-12-01 07:30:00"),
        ("2026-12-01 09:30", "2026-12-01 07:30:00"),
        ("2026-12-01T09:30:15", "2026-12-01 07:30:15"),
        ("2027-07-01T09:30", "2027-07-01 06:30:00"),
        ("2026-12-01", "2026-11-30 22:00:00"),
        ("2026-12-01T09:30Z", "2026-12-01 09:30:00"),
        ("2026-12-01T09:30+05:30", "2026-12-01 04:00:00"),
        ("2026-12-01T09:30-08:00", "2026-12-01 17:30:00"),
    ],
)
def test_a_date_and_time_without_an_offset_is_local(text: str, at: str) -> None:
    assert parsed(text, "2026-11-25 12:00:00") == at


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("+90m", "2026-11-25 13:30:00"),
        ("+1m", "2026-11-25 12:01:00"),
        ("+2h", "2026-11-25 14:00:00"),
        ("+1d", "2026-11-26 12:00:00"),
        ("+400d", "2027-12-30 12:00:00"),
    ],
)
def test_a_span_counts_from_now(text: str, at: str) -> None:
    assert parsed(text, "2026-11-25 12:00:00") == at


def test_it_is_milliseconds_and_loses_no_fraction_of_a_second() -> None:
    assert parse("+1m", 1_700_000_000.25) == 1_700_000_060_250


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no time: say it as 18:00"),
        ("soon", "'soon' is no time: say it as 18:00"),
        ("18", "'18' is no time"),
        ("18.00", "is no time"),
        ("6pm", "is no time"),
        ("24:00", "no clock shows 24:00: the day goes from 00:00 to 23:59"),
        ("12:60", "no clock shows 12:60"),
        ("90m", "'90m' is no time"),
        ("+90", "is no time"),
        ("+90s", "is no time"),
        ("+1.5h", "is no time"),
        ("+-1h", "is no time"),
        ("-2h", "is no time"),
        ("+٣h", "is no time"),
        ("+0m", "+0m is over"),
        ("2026-11-25T13:59", "2026-11-25T13:59 is over"),
        ("2026-11-25", "2026-11-25 is over"),
        ("2026-13-01T10:00", "is no time"),
        ("2026-02-30", "is no time"),
        ("+999999999d", "after the year 9999"),
    ],
)
def test_what_is_wrong_is_said_with_how_it_is_written(text: str, words: str) -> None:
    with pytest.raises(WrongTime) as wrong:
        parse(text, utc("2026-11-25 12:00:00"))
    assert words in str(wrong.value)
