"""When the program cannot work at present, whatever the task: its usage limit is reached, or nobody is signed in.

The Claude CLI says this in the words that a person at its terminal would read, and they have changed over time::

    Claude AI usage limit reached|1750003200
    Claude usage limit reached. Your limit will reset at 1pm (Europe/Warsaw).
    5-hour limit reached ∙ resets 3pm
    You've hit your session limit · resets 2:30pm (Pacific/Auckland)
    Weekly limit reached ∙ resets Oct 6, 6pm
    Invalid API key · Please run /login

Pure, but for the clock and the time zone of the machine, which the words refer to.
"""

import re
from datetime import datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import msgspec

# What is longer is not such an answer: somebody has written about limits.
LONGEST = 2000

# A limit that resets later than this was misread.
FARTHEST = timedelta(days=8)

# Claude's own sentences, from their first word on. What a tool says of a limit or of a sign-in of its own, and what
# Claude says of the limit of a context, is about the task.
_PLAN = (
    r"(?:(?:org(?:anization)?|team|plan|account|session|usage|message|weekly|monthly|daily|\d-hour|opus|sonnet|haiku"
    r"|claude|ai|spend|spending|extra)(?:['’]s)?\s+)"
)
_LIMIT = re.compile(
    rf"{_PLAN}*(?:usage|session|weekly|monthly|daily|\d-hour|opus|sonnet|haiku|spend|spending)\s+(?:limit|cap)\s+"
    r"(?:has been |was )?(?:reached|exceeded)\b"
    rf"|you(?:['’]ve| have) (?:hit|reached) your {_PLAN}*(?:limit|cap)\b"
    rf"|you(?:['’]re| are) out of {_PLAN}*(?:usage|credits)\b"
    r"|(?:api error:? *)?\(?429\b.{0,80}\brate_limit_error\b"
    r"|api error: (?:rate limit reached|request rejected \(429\))",
    re.IGNORECASE | re.DOTALL,
)
_SIGNED_OUT = re.compile(
    r"invalid api key *·|not logged in *·|oauth token (?:has expired|is invalid|revoked)\b|credit balance is too low"
    r"|please run /login\b|failed to authenticate\. api error: 401\b"
    r"|(?:api error:? *)?\(?401\b.{0,80}\bauthentication_error\b",
    re.IGNORECASE | re.DOTALL,
)
_EPOCH = re.compile(r"\|\s*(\d{10})(\d{3})?\b")
_RESET = re.compile(
    r"\bresets?\s+(?:at\s+|on\s+)?"
    r"(?:(?P<month>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s+(?P<day>\d{1,2})(?:,|\s+at|,\s*at)?\s+)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>am|pm)?\b"
    r"(?:\s*\((?P<zone>[A-Za-z0-9_+/-]+)\))?",
    re.IGNORECASE,
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


class Limit(msgspec.Struct, frozen=True):
    """The program works again at a time, or when somebody has seen to it."""

    why: str
    """What it said."""
    until: float | None = None
    """Epoch seconds; None when it did not say."""


def limit_in(text: str, now: float) -> Limit | None:
    """The limit that this answer is about, or None."""
    text = text.strip()
    if len(text) > LONGEST or not (_LIMIT.match(text) or _SIGNED_OUT.match(text)):
        return None
    first = text.splitlines()[0].partition("|")[0].strip()
    return Limit(first[:200], reset_in(text, now))


def reset_in(text: str, now: float) -> float | None:
    """When the limit resets that this text speaks of: epoch seconds after `now`, or None."""
    if epoch := _EPOCH.search(text):
        until = float(epoch[1])
    elif match := _RESET.search(text):
        until = _next(match, now)
    else:
        return None
    return until if until is not None and now < until <= now + FARTHEST.total_seconds() else None


def _next(said: re.Match[str], now: float) -> float | None:
    """The next moment with this time on the clock, and on this day where one is named."""
    hour, minute, half = int(said["hour"]), int(said["minute"] or 0), (said["half"] or "").lower()
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "pm" else 0)
    elif said["minute"] is None:
        return None  # a number, but not of a clock
    here = datetime.fromtimestamp(now, _zone(said["zone"]))
    try:
        moment = here.replace(hour=hour, minute=minute, second=0, microsecond=0)
        if said["month"]:
            moment = moment.replace(month=_MONTHS.index(said["month"].lower()) + 1, day=int(said["day"]))
            if moment < here - timedelta(days=180):
                moment = moment.replace(year=moment.year + 1)
        elif moment <= here:
            moment += timedelta(days=1)
    except ValueError:
        return None
    return moment.timestamp()


def _zone(name: str | None) -> tzinfo | None:
    """The time zone of this name. None is the machine's own, and that is what the CLI names if it names one."""
    try:
        return ZoneInfo(name) if name else None
    except (ValueError, OSError, KeyError):  # the last is how it says that it knows none of this name
        return None
