"""One probe: a check that is made again and again, and what is known from how it went.

            rise successes in a row                     fall failures in a row
   unknown ─────────────────────────▶ up   ◀──────▶   down ◀────────────────── unknown
      ▲                                rise / fall                                │
      └────────── configured ─────────── disabled ◀────── not configured ─────────┘  (from any state)

A check has a deadline, and only one is under way at a time. One that has not ended at its deadline is cancelled and has
failed; what it leaves behind (a thread that hangs) is no affair of the probe's any more.
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.settings.model import Probes

log = structlog.stdlib.get_logger(__name__)

State = Literal["up", "down", "disabled", "unknown"]
Check = Callable[[], Awaitable[None] | None]
"""Begins one check; None when the dependency is not configured."""

# A quarter of an hour at the default interval: enough for a p99 to mean something.
LATENCIES_KEPT = 100

# Half an hour of them, for a curve on a page: every check, whether or not it succeeded.
ROUNDS_KEPT = 200

# At the start of everything a dependency is often a moment late: nobody should have to wait an interval to know it.
UNKNOWN_INTERVAL = 1.0


class ProbeStatus(msgspec.Struct, frozen=True):
    """What is known of a dependency."""

    name: str
    state: State = "unknown"
    last_ok: float | None = None
    """Epoch seconds."""
    p50_ms: float | None = None
    """Of the last 100 checks that succeeded."""
    p99_ms: float | None = None
    failures: int = 0
    """In a row."""
    error: str | None = None
    """Of the latest check, when it failed."""


class Round(msgspec.Struct, frozen=True):
    """One check that has ended."""

    at: float
    """Its end, in epoch seconds."""
    ms: float | None
    """How long it took; None when it failed."""


class Probe:
    """Checks one dependency.

    A check ends when the dependency is well, and raises `Unavailable` or `Misconfigured` with one sentence when it is
    not.
    """

    def __init__(
        self,
        name: str,
        check: Check,
        settings: Callable[[], Probes],
        *,
        observe: Callable[[ProbeStatus], None] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.status = ProbeStatus(name)
        self.history: deque[Round] = deque(maxlen=ROUNDS_KEPT)
        """The latest checks, oldest first."""
        self._check = check
        self._settings = settings
        self._observe = observe
        self._wall_clock = wall_clock
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._successes = 0
        self._lock = trio.Lock()
        self._rounds = 0

    def __repr__(self) -> str:
        return f"<Probe {self.name} {self.status.state}>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check at once and then every interval; every second as long as nothing is known."""
        task_status.started()
        while True:
            began, interval = trio.current_time(), self._settings().interval
            status = await self.now()
            await trio.sleep_until(began + (min(interval, UNKNOWN_INTERVAL) if status.state == "unknown" else interval))

    async def now(self) -> ProbeStatus:
        """Check now, whether or not the probe runs; a check that is under way is waited for instead."""
        rounds = self._rounds
        async with self._lock:
            if self._rounds == rounds:
                await self._round()
                self._rounds += 1
        return self.status

    async def _round(self) -> None:
        checking = self._check()
        if checking is None:
            self._latencies.clear()
            self.history.clear()
            self._successes = 0
            self._become(ProbeStatus(self.name, state="disabled"))
            return
        settings = self._settings()
        started = trio.current_time()
        error: str | None = f"no answer within {settings.timeout:g} s"
        with trio.move_on_after(settings.timeout):
            try:
                await checking
                error = None
            except (Unavailable, Misconfigured) as trouble:
                error = one_line(trouble)
        ms, at = (trio.current_time() - started) * 1000, self._wall_clock()
        self.history.append(Round(at, None if error else round(ms, 3)))
        if error is None:
            self._succeeded(ms, at, settings)
        else:
            self._failed(error, settings)

    def _succeeded(self, ms: float, at: float, settings: Probes) -> None:
        self._successes += 1
        self._latencies.append(ms)
        self._become(
            ProbeStatus(
                self.name,
                state="up" if self._successes >= settings.rise else self._known_state,
                last_ok=at,
                p50_ms=percentile(self._latencies, 50),
                p99_ms=percentile(self._latencies, 99),
            )
        )

    def _failed(self, error: str, settings: Probes) -> None:
        self._successes = 0
        failures = self.status.failures + 1
        state = "down" if failures >= settings.fall else self._known_state
        self._become(msgspec.structs.replace(self.status, state=state, failures=failures, error=error))

    @property
    def _known_state(self) -> State:
        return "unknown" if self.status.state == "disabled" else self.status.state

    def _become(self, status: ProbeStatus) -> None:
        before, self.status = self.status, status
        if before.state == status.state:
            return
        if status.state == "down":
            log.warning("dependency is down", probe=self.name, error=status.error)
        else:
            log.info("dependency", probe=self.name, state=status.state)
        if self._observe:
            self._observe(status)


def percentile(values: "deque[float]", percent: int) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    ordered = sorted(values)
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 3)
