"""The decisions: what kind of trouble, and how often it is put up with."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomd.errors import Misconfigured, Unavailable
from bloomd.supervisor import Backoff, EssentialServiceFailed
from bloomd.supervisor.trouble import CRASH_BUDGET, CRASH_WINDOW, STEADY_SECONDS, Kind, Tally, Trouble, diagnose

AWAY, HOPELESS, BUG = Unavailable("no answer"), Misconfigured("wrong password"), ValueError("oops\nmore")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AWAY, Trouble(Kind.AWAY, "no answer")),
        (HOPELESS, Trouble(Kind.HOPELESS, "wrong password")),
        (EssentialServiceFailed("essential x"), Trouble(Kind.HOPELESS, "essential x")),
        (BUG, Trouble(Kind.BUG, "ValueError: oops")),
        (ValueError(), Trouble(Kind.BUG, "ValueError")),
        (None, Trouble(Kind.BUG, "returned without being asked to")),
        (ExceptionGroup("", [AWAY, Unavailable("second")]), Trouble(Kind.AWAY, "no answer")),
        (ExceptionGroup("", [AWAY, ExceptionGroup("", [BUG])]), Trouble(Kind.BUG, "ValueError: oops")),
        (ExceptionGroup("", [HOPELESS, BUG]), Trouble(Kind.BUG, "ValueError: oops")),
        (ExceptionGroup("", [AWAY, HOPELESS]), Trouble(Kind.HOPELESS, "wrong password")),
    ],
)
def test_the_worst_of_what_was_raised_decides(error: Exception | None, expected: Trouble) -> None:
    assert diagnose(error) == expected


def test_the_sixth_crash_within_a_minute_spends_the_budget() -> None:
    tally = Tally(Backoff(1, 1))
    assert [tally.crash(float(now)) for now in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.6, None]


def test_the_window_of_crashes_slides() -> None:
    tally = Tally(Backoff(1, 1))
    for _ in range(CRASH_BUDGET):
        tally.crash(0.0)
    assert tally.crash(CRASH_WINDOW - 0.1) is None
    assert tally.crash(CRASH_WINDOW) == 0.2  # the five of the beginning no longer count


def test_forgetting_gives_a_fresh_budget_and_a_short_delay() -> None:
    tally = Tally(Backoff(1, 100, jitter=0))
    for _ in range(CRASH_BUDGET):
        tally.crash(0.0)
        tally.absence(0.0)
    tally.forget()
    assert tally.crash(0.0) == 0.1
    assert tally.absence(0.0) == 1


def test_absence_is_retried_ever_more_slowly_until_the_service_was_steady() -> None:
    tally = Tally(Backoff(1, 5, jitter=0))
    assert [tally.absence(0.0) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert tally.absence(STEADY_SECONDS - 0.1) == 5
    assert tally.absence(STEADY_SECONDS) == 1


@given(
    failures=st.integers(1, 10_000),
    first=st.floats(0.001, 10),
    cap=st.floats(10, 1000),
    jitter=st.floats(0, 1),
    seed=st.integers(),
)
def test_a_delay_is_never_over_the_cap_and_jitter_only_shortens_it(
    failures: int, first: float, cap: float, jitter: float, seed: int
) -> None:
    backoff = Backoff(first, cap, jitter)
    full = backoff.delay(failures, random=lambda: 0.0)
    assert full == min(cap, first * 2 ** min(failures - 1, 100))
    delay = backoff.delay(failures, random=random.Random(seed).random)
    assert full * (1 - jitter) <= delay <= full
