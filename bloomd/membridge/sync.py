"""The service that mirrors Membridge's agents: a round every `membridge.sync_interval`, and one at once when asked.

A round reads `/agents` and hands the list to `mirror`, which writes it in a few statements. A round that fails changes
nothing. It ends `run` with `Unavailable`, so that the supervisor shows the service as `waiting` with the reason, and
tries again with a growing delay (give its `Service` a backoff that is capped at the interval). So the service is
`running` exactly while its latest round succeeded.

That holds for a refused key and a redirect as well, although those are a person's affair: that person may well put it
right on the other side, of which nothing here would hear.

Only the leader mirrors; `stand_by` is what the other nodes do instead.
"""

import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.membridge.agents import Agent
from bloomd.membridge.client import MembridgeClient
from bloomd.runtime.liveness import Mirrored

log = structlog.stdlib.get_logger(__name__)


class SyncOutcome(msgspec.Struct, frozen=True):
    """What one round did."""

    agents: int
    added: int
    changed: int
    offline: int
    seconds: float


class SyncStatus(msgspec.Struct, frozen=True):
    """How the rounds went."""

    last_success: float | None = None
    """Epoch seconds."""
    failures: int = 0
    """In a row."""
    error: str | None = None
    """Of the latest round, when it failed."""
    outcome: SyncOutcome | None = None
    """Of the latest round that succeeded."""

    @property
    def agents(self) -> int | None:
        return self.outcome.agents if self.outcome else None


class Sync:
    """Mirrors the agents of whichever server is configured at the moment."""

    def __init__(
        self,
        client: Callable[[], MembridgeClient],
        interval: Callable[[], float],
        mirror: Callable[[list[Agent], int], Awaitable[Mirrored]],
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._interval = interval
        self._mirror = mirror
        self._wall_clock = wall_clock
        self._woken = trio.Event()
        self._lock = trio.Lock()
        self._rounds = 0
        self.status = SyncStatus()

    def wake(self) -> None:
        """The settings have changed: let the next round begin now."""
        self._woken.set()

    async def run(self, epoch: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As the leader of this epoch, do a round at once, then one every interval, or when woken.

        Raises:
            Unavailable: a round failed.
        """
        due = await self._next(epoch)
        task_status.started()
        while True:
            with trio.move_on_at(due):
                await self._woken.wait()
            due = await self._next(epoch)

    async def stand_by(self) -> None:
        """While another node does the rounds: forget how those of this one went, and wait.

        Raises:
            Unavailable: no server is configured any more.
        """
        self.status = SyncStatus()
        while True:
            self._client()
            self._woken = trio.Event()
            await self._woken.wait()

    async def _next(self, epoch: int) -> float:
        """Do a round by the settings in force; when the one after it is due."""
        while True:
            self._woken = woken = trio.Event()
            due = trio.current_time() + self._interval()
            try:
                await self.now(epoch)
            except (Unavailable, Misconfigured) as error:
                if not woken.is_set():
                    raise Unavailable(one_line(error)) from error
            else:
                return due

    async def now(self, epoch: int) -> SyncOutcome:
        """Do a round now, whether or not the service runs; one that is under way is waited for instead.

        `epoch` is the one in which this node leads.

        Raises:
            Unavailable, Misconfigured: it failed, as the call or the mirror says.
        """
        rounds = self._rounds
        async with self._lock:
            if self._rounds == rounds:
                return await self._round(epoch)
        if self.status.error is not None:
            raise Unavailable(self.status.error)
        if self.status.outcome is None:
            raise AssertionError("a round without an error has an outcome")
        return self.status.outcome

    async def _round(self, epoch: int) -> SyncOutcome:
        started = trio.current_time()
        try:
            agents = await self._client().agents()
            mirrored = await self._mirror(agents, epoch)
        except (Unavailable, Misconfigured) as error:
            self._rounds += 1
            self.status = msgspec.structs.replace(self.status, failures=self.status.failures + 1, error=one_line(error))
            raise
        outcome = SyncOutcome(
            agents=len(agents),
            added=mirrored.added,
            changed=mirrored.changed,
            offline=mirrored.offline,
            seconds=round(trio.current_time() - started, 6),
        )
        if self.status.failures:
            log.info("sync works again", failures=self.status.failures, agents=len(agents))
        if outcome.added or outcome.changed or outcome.offline:
            log.info("agents mirrored", **msgspec.to_builtins(outcome))
        self._rounds += 1
        self.status = SyncStatus(last_success=self._wall_clock(), outcome=outcome)
        return outcome
