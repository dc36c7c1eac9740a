"""The times that a person types after `--until`, read on the clock and the calendar of the place."""

from __future__ import annotations

import re
import time

_UNITS = {"m": 60, "h": 3600, "d": 86400}

# The end of the year 9999: the API takes no later time.
_LAST = 253_402_300_799

_HOW = 'say it as 18:00, as "2026-12-01 09:30", or as +90m, +2h, +1d'


class WrongTime(ValueError):
    """It is no time to come; the text says what is wrong and how it is written."""


def parse(text: str, now: float) -> int:
    """The moment that is meant, as epoch milliseconds.

    `18:00` is the next time that the clock shows it; a date or a date and time (ISO 8601) without an offset is local;
    `+90m` (or h, d) counts from `now`, in seconds since the epoch.

    Raises:
        WrongTime: it is not written in any of these ways, does not exist, or is over.
    """
    text = text.strip()
    if match := re.fullmatch(r"\+(\d{1,9})([mhd])", text, re.ASCII):
        at = now + int(match[1]) * _UNITS[match[2]]
    elif match := re.fullmatch(r"(\d{1,2}):(\d\d)", text, re.ASCII):
        at = _next_time_of_day(text, int(match[1]), int(match[2]), now)
    else:
        at = _date_and_time(text)
    if at <= now:
        raise WrongTime(f"{text} is over: {_HOW}")
    if at > _LAST:
        raise WrongTime(f"{text} is after the year 9999")
    return round(at * 1000)


def _next_time_of_day(text: str, hour: int, minute: int, now: float) -> float:
    if hour > 23 or minute > 59:
        raise WrongTime(f"no clock shows {text}: the day goes from 00:00 to 23:59")
    year, month, day, *_ = time.localtime(now)
    days = (time.mktime((year, month, day + later, hour, minute, 0, 0, 0, -1)) for later in (0, 1))
    return next(at for at in days if at > now)


def _date_and_time(text: str) -> float:
    from datetime import datetime  # only here: it costs every start of `bloomd-ctl` a millisecond

    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise WrongTime(f"{text!r} is no time: {_HOW}") from None
