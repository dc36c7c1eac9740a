"""The supervisor and the keeper of one service. The package's own page (`__init__.py`) explains the rules."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import cast

import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.supervisor.backoff import Backoff
from bloomd.supervisor.service import Change, Service, ServiceStatus, State

log = structlog.stdlib.get_logger(__name__)

# A bug is often a passing one (a race, a bad message): the first restart comes at once for a person's eyes. One that
# comes back is not worth more than a try every few seconds, and soon not worth trying at all.
CRASH_BACKOFF = Backoff(first=0.1, cap=5.0, jitter=0.0)
CRASH_BUDGET = 5
CRASH_WINDOW = 60.0

# A dependency that stayed up this long after the last trouble has earned a fresh, short, first retry.
STEADY_SECONDS = 10.0

# Enough to see how the trouble of the last hour went, small enough to keep for ever.
CHANGES_KEPT = 50


class EssentialServiceFailed(Exception):
    """A service that the daemon is nothing without has failed for good."""


class UnknownService(LookupError):
    """No service has this name."""


class Supervisor:
    """Starts services in order, keeps each of them alive by its own rules, and stops them in reverse order.

    `run` is itself the `run` of a service, so supervisors nest. Everything else may be called from any task of the same
    trio loop while `run` is under way.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        observe: Callable[[Change], None] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._observers: list[Callable[[Change], None]] = [observe] if observe else []
        self._wall_clock = wall_clock
        self._keepers: dict[str, _Keeper] = {}
        for service in services:
            unknown = [need for need in service.needs if need not in self._keepers]
            if unknown or service.name in self._keepers:
                raise ValueError(f"service {service.name!r}: {unknown or 'its name'} must be unique and come before it")
            self._keepers[service.name] = _Keeper(service, self)
            if service.group:
                service.group.observe(lambda change, path=service.name: self._publish(_under(path, change)))
        self._changed = trio.Event()
        self._stop = trio.Event()
        self._essential_failure: EssentialServiceFailed | None = None
        self.hurried = False

    def __repr__(self) -> str:
        return f"<Supervisor {' '.join(f'{s.name}={s.state}' for s in self.status())}>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the services until `stop()` is called or an essential one fails.

        Started once every service has either started or said why it cannot yet. Cancelling it cancels all services at
        once; `stop()` is the orderly way.

        Raises:
            EssentialServiceFailed: after the other services were stopped in order.
        """
        self._stop = trio.Event()
        self._essential_failure = None
        async with trio.open_nursery() as nursery:
            for keeper in self._keepers.values():
                if self._stop.is_set():
                    break
                nursery.start_soon(keeper.keep, name=keeper.service.name)
                await keeper.settled.wait()
            task_status.started()
            await self._stop.wait()
            for keeper in reversed(self._keepers.values()):
                await keeper.halt("shutdown")
            nursery.cancel_scope.cancel()
        if self._essential_failure:
            raise self._essential_failure

    def stop(self) -> None:
        """Begin the orderly stop; `run` returns when it is done."""
        self._stop.set()
        for keeper in self._keepers.values():
            keeper.settled.set()

    def hurry(self) -> None:
        """Stop waiting for services that were asked to finish: cancel them now."""
        self.hurried = True
        for keeper in self._keepers.values():
            if keeper.service.group:
                keeper.service.group.hurry()
        self._announce()

    def status(self) -> list[ServiceStatus]:
        """The state of every configured service in starting order, those of a group below their group."""
        return [status for keeper in self._keepers.values() for status in keeper.status()]

    def state(self, path: str) -> State:
        """The state of one service.

        Raises:
            UnknownService: no service has this path.
        """
        return self._find(path).state

    async def stop_service(self, path: str) -> None:
        """Stop a service by hand; it stays stopped until it is started by hand."""
        await self._find(path).halt("stopped by hand", by_hand=True)

    def start_service(self, path: str, cause: str = "started by hand") -> None:
        """Start a stopped or failed service, or try a waiting one at once. A running one is left alone."""
        self._find(path).resume(cause)

    async def restart(self, paths: Iterable[str], cause: str = "restarted by hand") -> None:
        """Stop these services in reverse order and start them in order, as at shutdown and start."""
        asked = [self._find(path) for path in paths]
        keepers = [keeper for keeper in self._walk() if keeper in asked]
        for keeper in reversed(keepers):
            await keeper.halt(cause)
        for keeper in keepers:
            keeper.resume(cause)
            while keeper.state is State.STARTING:
                await self.change()

    def retry_failed(self, cause: str) -> list[str]:
        """Try every failed service again with a fresh budget; their paths."""
        failed = [status.name for status in self.status() if status.state is State.FAILED]
        for path in failed:
            self._find(path).resume(cause)
        return failed

    async def wait_until(self, condition: Callable[["Supervisor"], bool]) -> None:
        """Return once the condition holds; it is looked at now and after every change of state."""
        while not condition(self):
            await self.change()

    def observe(self, observer: Callable[[Change], None]) -> None:
        """Call this for every change of state, from now on, in the order in which they happen."""
        self._observers.append(observer)

    async def change(self) -> None:
        """Return after the next change of state of any service."""
        await self._changed.wait()

    def running(self, name: str) -> bool:
        return self._keepers[name].state is State.RUNNING

    def wall_clock(self) -> float:
        return self._wall_clock()

    def publish(self, change: Change) -> None:
        """For the keepers: record a change of state of one of this supervisor's own services."""
        self._publish(change)

    def give_up(self, service: str, error: str) -> None:
        """For the keepers: an essential service has failed for good."""
        if self._essential_failure is None:
            self._essential_failure = EssentialServiceFailed(f"essential service {service} has failed: {error}")
        self.stop()

    def _publish(self, change: Change) -> None:
        for observer in self._observers:
            observer(change)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _walk(self) -> "Iterator[_Keeper]":
        for keeper in self._keepers.values():
            yield keeper
            if keeper.service.group:
                yield from keeper.service.group._walk()

    def _find(self, path: str) -> "_Keeper":
        name, _, rest = path.partition("/")
        keeper = self._keepers.get(name)
        if keeper is None or not keeper.service.configured():
            known = ", ".join(status.name for status in self.status())
            raise UnknownService(f"no service is called {path!r}; there are: {known}")
        if not rest:
            return keeper
        if keeper.service.group is None:
            raise UnknownService(f"no service is called {path!r}: {name} has no services below it")
        return keeper.service.group._find(rest)


class _Keeper:
    """The life of one service: a single task that starts it, sees how it ended, and decides what comes next.

    Everybody else only writes down what is wanted (`_wanted`, `_retry_at`, a state) and announces it; the task looks at
    all of that anew after every announcement, so no wake-up can be lost or be mistaken for another.
    """

    def __init__(self, service: Service, supervisor: Supervisor) -> None:
        self.service = service
        self.state = State.STOPPED
        self.settled = trio.Event()
        self._supervisor = supervisor
        self._wanted = True
        self._by_hand = False
        self._stop_cause = ""
        self._scope: trio.CancelScope | None = None
        self._since = supervisor.wall_clock()
        self._cause = ""
        self._restarts = 0
        self._retry_at: float | None = None
        self._last_error: str | None = None
        self._crashes: deque[float] = deque()
        self._unavailable = 0
        self._changes: deque[Change] = deque(maxlen=CHANGES_KEPT)

    async def keep(self) -> None:
        self.settled = trio.Event()
        self._wanted = not self._by_hand
        try:
            while True:
                if not self._wanted:
                    self._set(State.STOPPED, self._stop_cause)
                    await self._supervisor.change()
                elif not self.service.configured():
                    self._set(State.STOPPED, "not configured")
                    await self._supervisor.change()
                elif self.state is State.FAILED:
                    await self._supervisor.change()
                elif self._retry_at is not None and trio.current_time() < self._retry_at:
                    with trio.move_on_at(self._retry_at):
                        await self._supervisor.change()
                elif missing := [need for need in self.service.needs if not self._supervisor.running(need)]:
                    self._retry_at = None
                    self._set(State.WAITING, f"needs {', '.join(missing)}")
                    await self._supervisor.change()
                else:
                    await self._live_once()
        finally:
            if self.state is not State.STOPPED:
                self._set(State.STOPPED, "cancelled")

    async def halt(self, cause: str, *, by_hand: bool = False) -> None:
        """Stop the service and return when it has stopped; one that was asked nicely is cancelled when it is late."""
        self._wanted, self._by_hand, self._stop_cause = False, by_hand, cause
        self._retry_at = None
        scope = self._scope
        if scope is None:
            self._set(State.STOPPED, cause)
            return
        if self.state is State.RUNNING and self.service.ask_to_stop:
            self._set(State.STOPPING, cause)
            self.service.ask_to_stop()
            with trio.move_on_after(self.service.stop_seconds):
                while self._scope is scope and not self._supervisor.hurried:
                    await self._supervisor.change()
        self._set(State.STOPPING, cause)
        scope.cancel()
        while self._scope is scope:
            await self._supervisor.change()

    def resume(self, cause: str) -> None:
        self._wanted, self._by_hand = True, False
        if self.state in (State.STARTING, State.RUNNING, State.STOPPING):
            return
        self._crashes.clear()
        self._unavailable = 0
        self._retry_at = None
        self._set(State.STARTING, cause)

    def status(self) -> Iterator[ServiceStatus]:
        if not self.service.configured():
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
            by_hand=self._by_hand,
            changes=tuple(self._changes),
        )
        if self.service.group:
            for status in self.service.group.status():
                yield replace(status, name=f"{self.service.name}/{status.name}")

    def started(self, value: object = None) -> None:
        """What a service calls through its `task_status`."""
        if self.state is State.STARTING:
            self._set(State.RUNNING, self._cause)

    async def _live_once(self) -> None:
        if self._retry_at is not None:
            self._retry_at = None
            self._restarts += 1
        self._set(State.STARTING, self._cause if self.state is State.STARTING else "")
        began = trio.current_time()
        error: Exception | None = None
        try:
            with trio.CancelScope() as self._scope:
                await self.service.run(task_status=self)
        except Exception as exc:  # whatever becomes of a service, its siblings never notice
            error = exc
        self._scope = None
        if self.state is not State.STOPPING:
            self._after_trouble(error, lived=trio.current_time() - began)
        else:
            if error is not None:
                log.warning("service stopped with an error", service=self.service.name, error=one_line(error))
            self._set(State.STOPPED, self._stop_cause)

    def _after_trouble(self, error: Exception | None, lived: float) -> None:
        leaves = list(_leaves(error)) if error else []
        now = trio.current_time()
        if leaves and all(isinstance(leaf, Misconfigured) for leaf in leaves):
            self._fail(one_line(leaves[0]))
        elif leaves and all(isinstance(leaf, Unavailable) for leaf in leaves):
            self._unavailable = 1 if lived > STEADY_SECONDS else self._unavailable + 1
            self._retry_at = now + self.service.retry.delay(self._unavailable)
            self._last_error = one_line(leaves[0])
            self._set(State.WAITING, self._last_error)
        else:
            text = f"{type(leaves[0]).__name__}: {one_line(leaves[0])}" if leaves else "returned without being asked to"
            log.error("service crashed", service=self.service.name, error=text, exc_info=error)
            self._crashes.append(now)
            while self._crashes[0] <= now - CRASH_WINDOW:
                self._crashes.popleft()
            if len(self._crashes) > CRASH_BUDGET:
                self._fail(f"{text} (crashed {len(self._crashes)} times within {CRASH_WINDOW:.0f} s)")
            else:
                self._retry_at = now + CRASH_BACKOFF.delay(len(self._crashes))
                self._last_error = text
                self._set(State.BACKOFF, text)

    def _fail(self, error: str) -> None:
        self._last_error = error
        self._set(State.FAILED, error)
        if self.service.essential:
            self._supervisor.give_up(self.service.name, error)

    def _set(self, state: State, cause: str) -> None:
        if state is not State.STARTING:
            self.settled.set()
        if (state, cause) != (self.state, self._cause):
            self.state, self._cause, self._since = state, cause, self._supervisor.wall_clock()
            change = Change(self.service.name, state, self._since, cause)
            self._changes.append(change)
            self._supervisor.publish(change)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for child in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(child)
    else:
        yield error


def _under(path: str, change: Change) -> Change:
    return replace(change, service=f"{path}/{change.service}")
