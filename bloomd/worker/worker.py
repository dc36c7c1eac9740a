"""The worker's own life: it registers, claims as much as it has room for, pauses, drains, and ends.

::

               ┌────────── room, and no pause ──────────┐
               ▼                                        │
    register ─▶ claiming ── leases ─▶ attempts ─────────┤
        ▲          │                                    │
        └─ unknown ┘         a limit ─▶ a pause until it resets

    drain: nothing is claimed any more ─▶ attempts end by themselves ─▶ the end
                                     └─ `grace_seconds` have passed, or a second signal: they are given back ─▶ the end
"""

import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.settings.model import Worker as Settings
from bloomd.supervisor import Backoff
from bloomd.worker import journal
from bloomd.worker.api import LeaseLost, Refused, Server, Unknown, Work
from bloomd.worker.attempt import NOT_ALLOWED, Attempt, Workplace
from bloomd.worker.contexts import Contexts
from bloomd.worker.journal import Journal
from bloomd.worker.limits import Limit

log = structlog.stdlib.get_logger(__name__)

# How long a claim waits for a task. Proxies are known to end what has been silent for a minute.
WAIT_SECONDS = 30

# A lease lasts so long beyond its last heartbeat: as long as a server may be away without the work being lost, and as
# long as a task waits whose worker was killed. A cancellation is heard within a third of it.
TTL_SECONDS = 60

# When a worker is told to end, an answer to its claim may be on its way. What it brings is given back.
LAST_CLAIM_SECONDS = 0.3

# Between two claims that nothing came of.
EMPTY_SECONDS = 0.5

# For telling the server that this worker ends. Should it not hear, the worker is soon offline all the same.
GOODBYE_SECONDS = 2.0

# Between two tries to reach a server that is away.
RETRY = Backoff(first=0.5, cap=15.0)

# Between two tries when the program cannot work and has not said until when.
PAUSE = Backoff(first=60.0, cap=3600.0)

# After the moment at which a limit resets, so that not all workers of one account come in the same second.
RESET_SECONDS = 5.0
RESET_SPREAD = 15.0

T = TypeVar("T")


class Worker:
    """A machine that works for one server. `run` is its whole life."""

    def __init__(
        self,
        server: Server,
        contexts: Contexts,
        settings: Settings,
        *,
        environ: Mapping[str, str],
        said: Mapping[str, Any] | None = None,
        ttl_seconds: int = TTL_SECONDS,
    ) -> None:
        """
        Args:
            environ: of the program, as it gets it.
            said: what the server is told of this machine.
        """
        self._server = server
        self._settings = settings
        self._said = dict(said or {})
        self._ttl_seconds = ttl_seconds
        self._journal = Journal(contexts.root / "leases")
        self._place = Workplace(
            server, contexts, self._journal, settings.command, environ, on_limit=self._pause, on_success=self._works
        )
        self._attempts: set[Attempt] = set()
        self._changed = trio.Event()
        self._limit: Limit | None = None
        self._paused_until = -math.inf
        self._pauses = 0
        """In a row, without a task that succeeded."""
        self._starting = trio.CancelScope()
        self._claiming = trio.CancelScope()
        self.settled = trio.Event()
        """Set once it is registered, or has said why it cannot be yet."""
        self._contact = "registering"
        self._known = False
        """Whether the server may know this worker."""
        self._draining = False
        self._hurrying = False

    def __repr__(self) -> str:
        return f"<Worker {self.summary}>"

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        state = "draining" if self._draining else "paused" if self.paused else self._contact
        return f"{state}, {len(self._attempts)} of {self._settings.max_concurrency} at work"

    @property
    def paused(self) -> bool:
        """Whether its program cannot work at present."""
        return trio.current_time() < self._paused_until

    @property
    def _room(self) -> int:
        """How many tasks more it can take: after a pause one at a time, until one has succeeded."""
        return (1 if self._pauses else self._settings.max_concurrency) - len(self._attempts)

    def drain(self) -> None:
        """Claim nothing any more, and end when what runs has ended."""
        self._draining = True
        self._starting.cancel()
        self._claiming.deadline = min(self._claiming.deadline, trio.current_time() + LAST_CLAIM_SECONDS)

    def hurry(self) -> None:
        """The same without waiting: what runs is given back."""
        self._hurrying = True
        self.drain()
        self._notify()

    async def run(self) -> None:
        """Work until drained.

        Raises:
            Misconfigured: the server does not let this worker in.
        """
        left = self._journal.left()
        for note in left:
            if journal.end(note):
                log.warning("ended what a killed worker had left running", lease=note.lease_id)
        with self._starting:
            await self._keep_trying(self._register_first)
            self.settled.set()
            for note in left:
                await self._keep_trying(partial(self._give_back, note.lease_id))
                self._journal.strike(note.lease_id)
        if not self._draining:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._place.contexts.keep_pruned)
                await self._work()
                nursery.cancel_scope.cancel()
        if self._known:
            with trio.move_on_after(GOODBYE_SECONDS), suppress(Unavailable, Refused):
                await self._register("offline")

    async def _work(self) -> None:
        async with trio.open_nursery() as nursery:
            with self._claiming:
                await self._claim_for_ever(nursery)
            if self._attempts:
                log.info("waiting for tasks under way", tasks=len(self._attempts), seconds=self._settings.grace_seconds)
            with trio.move_on_after(self._settings.grace_seconds):
                await self._until(lambda: self._hurrying or not self._attempts)
            for attempt in self._attempts:
                attempt.stop("the worker was stopped")

    async def _give_back(self, lease_id: str) -> None:
        try:
            await self._server.release(lease_id, "the worker was killed")
            log.info("task given back", lease=lease_id, reason="the worker was killed")
        except LeaseLost as lost:
            log.info("a lease of the worker before is over", lease=lease_id, reason=one_line(lost))

    async def _register_first(self) -> None:
        try:
            await self._register()
        except Refused as refused:
            fix = "; check `worker.token`" if refused.status in NOT_ALLOWED else ""
            raise Misconfigured(f"{self._server.who} refuses this worker: {one_line(refused)}{fix}") from refused

    async def _register(self, status: str = "online") -> None:
        """Tell the server what this worker is, and whether it can work."""
        self._known = True
        limit = self._limit
        capabilities = {
            "claude_cli": True,
            "max_concurrency": self._settings.max_concurrency,
            "labels": self._settings.labels,
            "sessions": True,
            "paused_because": limit.why if limit else None,
            "paused_until": int(self._resumes_at * 1000) if limit else None,
        }
        await self._server.register(status=status, capabilities=capabilities, **self._said)
        log.info("registered", server=self._server.who, status=status)

    async def _claim_for_ever(self, nursery: trio.Nursery) -> None:
        while not self._draining:
            await self._until(lambda: self._room > 0)
            while self._limit:
                await self._wait_out_limit()
            began = trio.current_time()
            found = await self._keep_trying(self._claim)
            for work in found:
                self._begin(Attempt(self._place, work), nursery)
            if not found:  # a server that has nothing and does not wait is not asked in a circle
                await trio.sleep_until(began + EMPTY_SECONDS)

    async def _claim(self) -> list[Work]:
        try:
            return await self._server.claim(self._room, wait_seconds=WAIT_SECONDS, ttl_seconds=self._ttl_seconds)
        except Unknown:
            log.warning("the server does not know this worker any more")
            await self._register()
            return []

    def _begin(self, attempt: Attempt, nursery: trio.Nursery) -> None:
        if self.paused or self._draining:  # since the claim was made
            attempt.stop("the worker was stopped" if self._draining else "this worker cannot work now")
        self._attempts.add(attempt)
        nursery.start_soon(self._see_through, attempt)

    async def _see_through(self, attempt: Attempt) -> None:
        await attempt.run()
        self._attempts.discard(attempt)
        self._notify()

    def _pause(self, limit: Limit) -> None:
        """Claim nothing until the limit resets."""
        if not self.paused:
            self._pauses += 1
        if limit.until is None:
            seconds = PAUSE.delay(self._pauses)
        else:
            seconds = limit.until - time.time() + RESET_SECONDS + RESET_SPREAD * random.random()
        self._limit = limit
        self._paused_until = max(self._paused_until, trio.current_time() + seconds)
        log.warning("paused", reason=limit.why, until=_iso(self._resumes_at), seconds=int(seconds))

    def _works(self) -> None:
        """A task has succeeded: after the next limit the pauses begin to grow anew."""
        self._pauses = 0

    async def _wait_out_limit(self) -> None:
        with suppress(Unavailable, Refused):  # who looks at the workers may know, but need not
            await self._register("error")
        while self.paused:  # noqa: ASYNC110 (it may be prolonged meanwhile)
            await trio.sleep_until(self._paused_until)
        self._limit = None
        log.info("the pause is over")
        await self._keep_trying(self._register)

    @property
    def _resumes_at(self) -> float:
        """Epoch seconds."""
        return time.time() + max(0.0, self._paused_until - trio.current_time())

    async def _keep_trying(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the server says, as soon as it is there to say it."""
        failures = 0
        while True:
            try:
                answer = await call()
            except (Unavailable, Refused) as error:
                failures += 1
                self._contact = "waiting for the server"
                if failures == 1:
                    log.warning("the server cannot be asked; it is tried again", error=one_line(error))
                    self.settled.set()
            else:
                self._contact = "claiming"
                if failures:
                    log.info("the server is back", failures=failures)
                return answer
            await trio.sleep(RETRY.delay(failures))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _iso(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds")
