"""Jumps of the machine's clock: what explains times that make no sense, hours after somebody has set it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

LOOK_SECONDS = 5.0
# NTP corrects a clock by running it slower or faster, 0.05 % at the most. What is this far off at once was set, or the
# machine was asleep: the monotonic clock stands still then.
JUMP_SECONDS = 1.0
JUMPS_KEPT = 10


@dataclass(frozen=True, slots=True)
class Jump:
    at: float
    """Epoch seconds, by the clock as it is since then."""
    seconds: float
    """Forward, or back when negative."""


class WallClock:
    """Compares the clock of the wall with the one that nobody sets, again and again."""

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.jumps: deque[Jump] = deque(maxlen=JUMPS_KEPT)
        """The latest, oldest first."""
        self._wall = wall
        self._monotonic = monotonic

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        before = self._wall() - self._monotonic()
        task_status.started()
        while True:
            await trio.sleep(LOOK_SECONDS)
            apart = self._wall() - self._monotonic()
            if abs(apart - before) >= JUMP_SECONDS:
                self.jumps.append(Jump(self._wall(), apart - before))
            before = apart
