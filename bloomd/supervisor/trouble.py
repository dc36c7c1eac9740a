"""What kind of trouble a service is in, and how often that is put up with: decisions only, no clock and no task."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import cast

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.supervisor.backoff import Backoff

# A bug is often a passing one (a race, a bad message): the first restart comes at once for a person's eyes. One that
# comes back is not worth more than a try every few seconds, and soon not worth trying at all.
CRASH_BACKOFF = Backoff(first=0.1, cap=5.0, jitter=0.0)
CRASH_BUDGET = 5
CRASH_WINDOW = 60.0

# A dependency that stayed up this long after the last trouble has earned a fresh, short, first retry.
STEADY_SECONDS = 10.0


class EssentialServiceFailed(Exception):
    """A service that its supervisor is nothing without has failed for good."""


class Kind(Enum):
    AWAY = "a dependency is away"
    HOPELESS = "trying again cannot help"
    BUG = "anything else"


@dataclass(frozen=True, slots=True)
class Trouble:
    kind: Kind
    text: str
    """One line for the status and the log."""


def diagnose(error: Exception | None) -> Trouble:
    """What ended a service, `None` being a return that nobody had asked for.

    In an exception group the worst decides: a bug is not excused by a dependency that is away as well.
    """
    if error is None:
        return Trouble(Kind.BUG, "returned without being asked to")
    leaves = list(_leaves(error))
    for leaf in leaves:
        if not isinstance(leaf, Unavailable | Misconfigured | EssentialServiceFailed):
            text = one_line(leaf)
            name = type(leaf).__name__
            return Trouble(Kind.BUG, text if text == name else f"{name}: {text}")
    for leaf in leaves:
        if not isinstance(leaf, Unavailable):
            return Trouble(Kind.HOPELESS, one_line(leaf))
    return Trouble(Kind.AWAY, one_line(leaves[0]))


class Tally:
    """How often a service was in trouble lately, and so when it may try again."""

    def __init__(self, retry: Backoff) -> None:
        self._retry = retry
        self._absences = 0
        self._crashes: deque[float] = deque()

    def forget(self) -> None:
        self._absences = 0
        self._crashes.clear()

    def absence(self, ran: float) -> float:
        """Note that a dependency went away after `ran` seconds of service; the delay before the next try."""
        self._absences = 1 if ran >= STEADY_SECONDS else self._absences + 1
        return self._retry.delay(self._absences)

    def crash(self, now: float) -> float | None:
        """Note a crash; the delay before the restart, or `None` when the budget is spent."""
        self._crashes.append(now)
        while self._crashes[0] <= now - CRASH_WINDOW:
            self._crashes.popleft()
        if len(self._crashes) > CRASH_BUDGET:
            return None
        return CRASH_BACKOFF.delay(len(self._crashes))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for child in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(child)
    else:
        yield error
