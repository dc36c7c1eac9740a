"""How late the event loop is: the one number that tells whether some code keeps all others waiting."""

from collections import deque

import trio

# A stall that begins and ends within one sleep is not seen, and a longer one is seen shortened by what was left of it:
# so this is how much a sample may miss. Five wake-ups a second cost about a thousandth of a core.
PROBE_INTERVAL = 0.2
# A stall is worth seeing for a while after it has passed.
WINDOW_SECONDS = 60.0


class LoopLag:
    """Sleeps for a known time, again and again, and notes how much later than asked it woke up."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=int(WINDOW_SECONDS / PROBE_INTERVAL))

    @property
    def now(self) -> float:
        """The latest sample, in seconds."""
        return self._samples[-1] if self._samples else 0.0

    @property
    def worst(self) -> float:
        """The worst of the last minute, in seconds."""
        return max(self._samples, default=0.0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            due = trio.current_time() + PROBE_INTERVAL
            await trio.sleep_until(due)
            self._samples.append(max(0.0, trio.current_time() - due))
