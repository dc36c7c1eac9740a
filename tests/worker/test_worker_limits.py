"""Limits: what counts as one, and until when, in all the words that it has been said in."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomd.worker.limits import FARTHEST, Limit, limit_in, reset_in

# A Wednesday; 09:00 in New York, 22:00 in Tokyo.
NOW = datetime(2025, 10, 1, 13, 0, tzinfo=UTC).timestamp()


def at(zone: str, *when: int) -> float:
    return datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("Claude AI usage limit reached|1759330800", 1759330800.0),
        ("Claude AI usage limit reached|1759330800000", 1759330800.0),
        ("Claude usage limit reached. Your limit will reset at 5pm (Etc/GMT+5).", at("Etc/GMT+5", 2025, 10, 1, 17)),
        ("5-hour limit reached ∙ resets 2am (UTC)", at("UTC", 2025, 10, 2, 2)),
        ("Opus limit reached ∙ resets 2am (UTC)", at("UTC", 2025, 10, 2, 2)),
        ("You've hit your limit · resets 9:30am (UTC)", at("UTC", 2025, 10, 2, 9, 30)),
        ("You've hit your session limit · resets 12:50am (Asia/Tokyo)", at("Asia/Tokyo", 2025, 10, 2, 0, 50)),
        ("You’ve hit your limit for messages. Limits will reset at 2:15 PM (UTC).", at("UTC", 2025, 10, 1, 14, 15)),
        ("Weekly limit reached ∙ resets Oct 6, 6pm (UTC)", at("UTC", 2025, 10, 6, 18)),
        ("Weekly limit reached ∙ resets Oct 6 at 6:05pm (UTC)", at("UTC", 2025, 10, 6, 18, 5)),
        ("You've hit your weekly limit · resets 14:00 (UTC)", at("UTC", 2025, 10, 1, 14)),
    ],
)  # fmt: skip
def test_the_words_of_a_limit_name_the_moment_at_which_it_resets(text, until):
    limit = limit_in(text, NOW)
    assert limit is not None
    assert limit.until == until
    assert limit.why
    assert "|" not in limit.why


@pytest.mark.parametrize(
    "text",
    [
        "Claude AI usage limit reached",
        "Claude usage limit has been reached",
        "You've hit your org's monthly usage limit",
        "You have reached your weekly limit",
        "You're out of extra usage",
        "Claude AI usage limit reached|1759320000",  # before now
        "Claude AI usage limit reached|1999999999",  # in years
        "5-hour limit reached ∙ resets 13pm",
        "5-hour limit reached ∙ resets 99:99",
        "Weekly limit reached ∙ resets Feb 31, 6pm",
        "Weekly limit reached ∙ resets Dec 24, 6pm",
        '429 {"type":"error","error":{"type":"rate_limit_error","message":"Please try again later."}}',
        'API Error (429 {"type":"error","error":{"type":"rate_limit_error","message":"Please try again later."}})',
        "API Error: Rate limit reached",
        'Please run /login · API Error: 401 {"type":"error","error":{"type":"authentication_error"}}',
        'API Error: 401 {"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}',
        "Invalid API key · Please run /login",
        "Invalid API key · Fix external API key",
        "Not logged in · Please run /login",
        "OAuth token has expired · Please run /login",
        "Credit balance is too low",
    ],
)
def test_a_limit_may_leave_open_until_when(text):
    limit = limit_in(text, NOW)
    assert limit is not None
    assert limit.until is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "boom",
        "the speed limit is 50",
        "API Error: 500 overloaded",
        "Context limit reached · /compact or /clear to continue",
        "Context limit reached ∙ resets 2am (UTC)",
        "You've hit your context limit",
        "You've hit your GitHub API limit",
        "RuntimeError: recursion limit reached",
        "max tokens limit reached",
        "gh: API rate limit exceeded for user ID 1",
        "API rate limit exceeded",
        "rate limit exceeded",
        "Error: daily limit reached at api.example.org",
        "gh: not logged in",
        "not logged in",
        "You are not logged into any GitHub hosts. To log in, run: gh auth login",
        "npm ERR! invalid api key",
        "invalid api key given to the map service",
        "The tests failed: Claude usage limit reached|1759330800",
        "I could not finish: the API says that you've hit your weekly limit",
        "OAuth tokens are documented in README",
        "usage limit reached " + "x" * 5000,
    ],
)
def test_another_error_is_no_limit(text):
    assert limit_in(text, NOW) is None


def test_a_day_in_january_is_one_of_the_next_year():
    december = datetime(2025, 12, 30, 12, tzinfo=UTC).timestamp()
    assert reset_in("resets Jan 2, 6am (UTC)", december) == at("UTC", 2026, 1, 2, 6)


def test_the_reason_is_the_first_line():
    assert limit_in("Usage limit reached|1759330800\n/upgrade to get more", NOW) == Limit(
        "Usage limit reached", 1759330800.0
    )


@given(st.text(max_size=60))
def test_whatever_follows_a_limit_its_reset_is_in_the_future_and_near(after):
    limit = limit_in(f"5-hour limit reached ∙ resets {after}", NOW)
    assert limit is not None
    if limit.until is not None:
        assert NOW < limit.until <= NOW + FARTHEST.total_seconds()


@given(st.integers(0, 23), st.integers(0, 59), st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York"]))
def test_a_time_of_the_day_is_the_next_one_there(hour, minute, zone):
    half = f"{(hour % 12) or 12}:{minute:02}{'pm' if hour >= 12 else 'am'}"
    until = reset_in(f"resets {half} ({zone})", NOW)
    assert until is not None
    moment = datetime.fromtimestamp(until, ZoneInfo(zone))
    assert (moment.hour, moment.minute) == (hour, minute)
    assert NOW < until <= NOW + 86_400
