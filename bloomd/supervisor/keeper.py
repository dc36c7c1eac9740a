"""The life of one service, from the point of view of the task that runs it.

Everybody else (the supervisor, a person, a reload) only writes down what is wanted, sets the state that follows at
once, and announces it. The keeper's task looks at all of that anew after every announcement, so no wake-up can be lost
or be mistaken for another. A stop is written down in the cancel scope of the service (`cancel()`, or a deadline when it
was asked to finish), so it takes its course even when whoever wanted it has gone away meanwhile.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from bloomd.errors import one_line
from bloomd.supervisor.service import Change, Service, ServiceStatus, State
from bloomd.supervisor.trouble import CRASH_BUDGET, CRASH_WINDOW, Kind, Tally, diagnose

if TYPE_CHECKING:
    from bloomd.supervisor.supervisor import Supervisor

log = structlog.stdlib.get_logger(__name__)

# Enough to see how the trouble of the last hour went, small enough to keep for ever.
CHANGES_KEPT = 50


class Keeper:
    """Starts one service, sees how it ended, and decides what comes next."""

    def __init__(self, service: Service, supervisor: "Supervisor") -> None:
        self.service = service
        self.state = State.STOPPED
        self.by_hand = False
        self._supervisor = supervisor
        self._kept = False
        self._wanted = False
        self._given_up = False
        self._retry_at: float | None = None
        self._scope: trio.CancelScope | None = None
        self._running_since: float | None = None
        self._tally = Tally(service.retry)
        self._troubled = False
        self._restarts = 0
        self._last_error: str | None = None
        self._start_cause = ""
        self._stop_cause = self._cause = "not started yet"
        self._since = supervisor.wall_clock()
        self._changes: deque[Change] = deque(maxlen=CHANGES_KEPT)

    @property
    def settled(self) -> bool:
        """Whether nothing is under way: the service runs, or its state says why not."""
        return self.state not in (State.STARTING, State.STOPPING)

    @property
    def absent(self) -> bool:
        return self._scope is None and not self.service.configured()

    def begin(self) -> None:
        """From now on the service is wanted, unless a person has stopped it; `keep` is about to run."""
        self._kept = True
        self.resume("start")

    async def keep(self) -> None:
        try:
            while True:
                if self._may_run():
                    await self._live()
                else:
                    with trio.move_on_at(math.inf if self._retry_at is None else self._retry_at):
                        await self._supervisor.change()
        finally:
            self._kept, self._wanted, self._retry_at = False, False, None
            if self.state not in (State.STOPPED, State.FAILED):
                self._set(State.STOPPED, "cancelled")

    def resume(self, cause: str) -> None:
        """Want the service again, with a fresh budget; a person's stop outweighs this, and a running one is left alone.

        Outside the time between `begin` and `retire` there is nobody to run it: it starts with its supervisor.
        """
        if self.by_hand or not self._kept:
            return
        self._wanted = True
        self._start_cause = cause
        self._given_up, self._retry_at = False, None
        self._tally.forget()
        if self._scope is None:
            self._may_run()

    async def halt(self, cause: str, *, by_hand: bool = False) -> None:
        """Stop the service and return when it has stopped. Everything is decided before the first wait."""
        if self._wanted or by_hand:
            self._stop_cause = cause
        if by_hand:
            self.by_hand, self._given_up = True, False
        self._wanted, self._retry_at = False, None
        scope = self._scope
        if scope is None:
            self._may_run()
            return
        if self.state is not State.STOPPING:
            was_running = self.state is State.RUNNING
            self._set(State.STOPPING, cause)
            self._end(scope, was_running=was_running)
        while self._scope is scope:
            await self._supervisor.change()

    async def retire(self, cause: str) -> None:
        """Stop the service at the end of its supervisor: nothing starts it again."""
        self._kept = False
        await self.halt(cause)

    def hurry(self) -> None:
        """Do not wait any longer for a service that was asked to finish."""
        if self.service.group:
            self.service.group.hurry()
        elif self._scope and self.state is State.STOPPING:
            self._scope.cancel()

    def status(self) -> Iterator[ServiceStatus]:
        if self.absent:
            return
        retry_at = self._retry_at
        yield ServiceStatus(
            name=self.service.name,
            state=self.state,
            since=self._since,
            cause=self._cause,
            restarts=self._restarts,
            retry_in=None if retry_at is None else max(0.0, retry_at - trio.current_time()),
            last_error=self._last_error,
            essential=self.service.essential,
            by_hand=self.by_hand,
            changes=tuple(self._changes),
        )
        if self.service.group:
            for status in self.service.group.status():
                yield replace(status, name=f"{self.service.name}/{status.name}")

    def started(self, value: object = None) -> None:
        """What a service calls through its `task_status`."""
        if self.state is State.STARTING:
            self._running_since = trio.current_time()
            self._set(State.RUNNING, self._cause)

    def _may_run(self) -> bool:
        """Set the state that follows from what is wanted and what is there; true when the service may run now."""
        if not self.service.configured():
            self._given_up, self._retry_at = False, None
            self._set(State.STOPPED, "not configured")
        elif self._given_up:
            pass
        elif not self._wanted:
            self._set(State.STOPPED, self._stop_cause)
        elif self._retry_at is not None and trio.current_time() < self._retry_at:
            pass
        elif missing := [need for need in self.service.needs if not self._supervisor.running(need)]:
            self._retry_at = None
            self._set(State.WAITING, f"needs {', '.join(missing)}")
        else:
            self._retry_at = None
            self._set(State.STARTING, self._start_cause)
            return True
        return False

    async def _live(self) -> None:
        if self._troubled:
            self._troubled = False
            self._restarts += 1
        self._running_since = None
        error: Exception | None = None
        scope = trio.CancelScope()
        try:
            with scope:
                self._scope = scope
                await self.service.run(task_status=self)
        except Exception as exc:  # whatever becomes of a service, its siblings never notice
            error = exc
        finally:
            self._scope = None
        if self.state is State.STOPPING:
            if error is not None:
                log.warning("service stopped with an error", service=self.service.name, error=one_line(error))
            elif scope.cancelled_caught and scope.deadline < math.inf:
                log.warning("service was cancelled before it had finished", service=self.service.name)
            self._set(State.STOPPED, self._stop_cause)
        else:
            self._after_trouble(error)

    def _end(self, scope: trio.CancelScope, *, was_running: bool) -> None:
        if self.service.group:
            self.service.group.stop()  # each of its services is bounded, and so is the whole
        elif was_running and self.service.ask_to_stop and not self._supervisor.hurried:
            scope.deadline = trio.current_time() + self.service.stop_seconds
            try:
                self.service.ask_to_stop()
            except Exception as exc:
                log.error("service cannot be asked to stop", service=self.service.name, exc_info=exc)
                scope.cancel()
        else:
            scope.cancel()

    def _after_trouble(self, error: Exception | None) -> None:
        trouble = diagnose(error)
        now = trio.current_time()
        news = self._running_since is not None or trouble.text != self._last_error
        self._troubled = True
        self._last_error = trouble.text
        self._start_cause = f"again after: {trouble.text}"
        match trouble.kind:
            case Kind.AWAY:
                ran = 0.0 if self._running_since is None else now - self._running_since
                self._retry_at = now + self._tally.absence(ran)
                self._set(State.WAITING, trouble.text)
                if news:  # an outage of hours is one line, not one for each try
                    log.warning("service waits", service=self.service.name, error=trouble.text)
            case Kind.HOPELESS:
                self._fail(trouble.text)
            case Kind.BUG:
                log.error("service crashed", service=self.service.name, error=trouble.text, exc_info=error)
                delay = self._tally.crash(now)
                if delay is None:
                    self._fail(f"{trouble.text} (crashed {CRASH_BUDGET + 1} times within {CRASH_WINDOW:.0f} s)")
                else:
                    self._retry_at = now + delay
                    self._set(State.BACKOFF, trouble.text)

    def _fail(self, error: str) -> None:
        log.error("service has failed", service=self.service.name, error=error)
        self._given_up = True
        self._last_error = error
        self._set(State.FAILED, error)
        if self.service.essential:
            self._supervisor.give_up(self.service.name, error)

    def _set(self, state: State, cause: str) -> None:
        if (state, cause) != (self.state, self._cause):
            self.state, self._cause, self._since = state, cause, self._supervisor.wall_clock()
            change = Change(self.service.name, state, self._since, cause)
            self._changes.append(change)
            self._supervisor.publish(change)
