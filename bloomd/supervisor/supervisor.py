"""The supervisor: the order of its services and everything that is asked of them. `__init__.py` explains the rules."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import structlog
import trio

from bloomd.supervisor.keeper import Keeper
from bloomd.supervisor.service import Change, Service, ServiceStatus, State
from bloomd.supervisor.trouble import EssentialServiceFailed

log = structlog.stdlib.get_logger(__name__)

# A service may take its time to start, but the ones after it do not wait for ever: one that hangs stays `starting` and
# its turn passes on. Longer than any connect timeout of ours, so that a dependency which is away has said so by then.
START_PATIENCE = 15.0


class UnknownService(LookupError):
    """No service has this name."""


class Supervisor:
    """Starts services in order, keeps each of them alive by its own rules, and stops them in reverse order.

    `run` is itself the `run` of a service, so supervisors nest. Everything else may be called from any task of the same
    trio loop. Whatever waits here may be cancelled: what was asked for still happens.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        observe: Callable[[Change], None] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.wall_clock = wall_clock
        self.hurried = False
        self._observers: list[Callable[[Change], None]] = [observe] if observe else []
        self._changed = trio.Event()
        self._stop = trio.Event()
        self._essential_failure: EssentialServiceFailed | None = None
        self._keepers: dict[str, Keeper] = {}
        for service in services:
            self._add(service)

    def _add(self, service: Service) -> None:
        if service.name in self._keepers or not service.name or "/" in service.name:
            raise ValueError(f"service {service.name!r}: a name is unique and has no slash")
        unknown = [need for need in service.needs if need not in self._keepers]
        if unknown:
            raise ValueError(f"service {service.name!r} needs {', '.join(unknown)}, which must come before it")
        self._keepers[service.name] = Keeper(service, self)
        if service.group:
            path = service.name
            service.group.observe(lambda change: self.publish(replace(change, service=f"{path}/{change.service}")))

    def __repr__(self) -> str:
        return f"<Supervisor {' '.join(f'{s.name}={s.state}' for s in self.status())}>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the services until `stop()` is called (before or meanwhile) or an essential one fails.

        Started once every service has either started or said why it cannot yet. Cancelling it cancels all services at
        once; `stop()` is the orderly way.

        Raises:
            EssentialServiceFailed: after the other services were stopped in order.
        """
        try:
            async with trio.open_nursery() as nursery:
                for keeper in self._keepers.values():
                    if self._stop.is_set():
                        break
                    keeper.begin()
                    nursery.start_soon(keeper.keep, name=keeper.service.name)
                    await self._settle(keeper)
                task_status.started()
                await self._stop.wait()
                last_stopped_first = sorted(self._keepers.values(), key=lambda keeper: keeper.service.stops_first)
                for keeper in reversed(last_stopped_first):
                    await keeper.retire("shutdown")
                nursery.cancel_scope.cancel()
            if self._essential_failure:
                raise self._essential_failure
        finally:
            self._stop, self.hurried, self._essential_failure = trio.Event(), False, None

    def stop(self) -> None:
        """Begin the orderly stop; `run` returns when it is done."""
        self._stop.set()
        self._announce()

    def hurry(self) -> None:
        """Stop waiting for services that were asked to finish: cancel them now, and the others in their turn."""
        self.hurried = True
        for keeper in self._keepers.values():
            keeper.hurry()

    def status(self) -> list[ServiceStatus]:
        """The state of every configured service in starting order, those of a group below their group."""
        return [status for keeper in self._keepers.values() for status in keeper.status()]

    def state(self, path: str) -> State:
        """The state of one service.

        Raises:
            UnknownService: no service has this path, or it is not configured. So for all that take a path,
                except for `restart`, which is how a service that has just become (un)configured comes and goes.
        """
        return self._find_present(path).state

    def running(self, name: str) -> bool:
        return self._keepers[name].state is State.RUNNING

    async def stop_service(self, path: str) -> None:
        """Stop a service by hand; it stays stopped until it is started by hand."""
        await self._find_present(path).halt("stopped by hand", by_hand=True)

    def start_service(self, path: str, cause: str = "started by hand") -> None:
        """Start a stopped or failed service, or try a waiting one at once. A running one is left alone."""
        keeper = self._find_present(path)
        keeper.by_hand = False
        keeper.resume(cause)

    def wake_service(self, path: str, cause: str) -> None:
        """Try a service at once that waits, or that has just become configured. One stopped by hand stays so."""
        self._find(path).resume(cause)

    async def restart_service(self, path: str, cause: str = "restarted by hand") -> None:
        """Restart a service by hand, or start it when it is stopped."""
        self._find_present(path).by_hand = False
        await self.restart([path], cause)

    async def restart(self, paths: Iterable[str], cause: str) -> None:
        """Stop these services in reverse order and start them in order, as at shutdown and start.

        Returns when each runs, says why it does not, or has been `starting` for too long. `configured` is asked anew;
        a service that was stopped by hand stays so.
        """
        asked = [self._find(path) for path in paths]
        halted = [keeper for keeper in self._walk() if keeper in asked]
        try:
            for keeper in reversed(halted):
                await keeper.halt(cause)
            while halted:
                keeper = halted.pop(0)
                keeper.resume(cause)
                await self._settle(keeper)
        finally:
            for keeper in halted:  # whoever asked has gone away: nothing stays stopped for that
                keeper.resume(cause)

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

    async def change(self) -> None:
        """Return after the next change of state of any service."""
        await self._changed.wait()

    def observe(self, observer: Callable[[Change], None]) -> None:
        """Call this for every change of state, from now on, in the order in which they happen."""
        self._observers.append(observer)

    def publish(self, change: Change) -> None:
        """For the keepers: a service has changed its state."""
        for observer in self._observers:
            try:
                observer(change)
            except Exception as exc:  # to be told about a service is no reason to end it
                log.error("observer failed", service=change.service, exc_info=exc)
        self._announce()

    def give_up(self, service: str, error: str) -> None:
        """For the keepers: an essential service has failed for good."""
        if self._essential_failure is None:
            self._essential_failure = EssentialServiceFailed(f"essential service {service} has failed: {error}")
        self.stop()

    async def _settle(self, keeper: Keeper) -> None:
        with trio.move_on_after(START_PATIENCE):
            while not keeper.settled and not self._stop.is_set():
                await self.change()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _walk(self) -> Iterator[Keeper]:
        for keeper in self._keepers.values():
            yield keeper
            if keeper.service.group:
                yield from keeper.service.group._walk()

    def _find(self, path: str) -> Keeper:
        name, _, rest = path.partition("/")
        keeper = self._keepers.get(name)
        if keeper is None:
            raise self._unknown(path)
        if not rest:
            return keeper
        if keeper.service.group is None:
            raise UnknownService(f"no service is called {path!r}: {name} has no services below it")
        return keeper.service.group._find(rest)

    def _find_present(self, path: str) -> Keeper:
        keeper = self._find(path)
        if keeper.absent:
            raise self._unknown(path)
        return keeper

    def _unknown(self, path: str) -> UnknownService:
        known = ", ".join(status.name for status in self.status())
        return UnknownService(f"no service is called {path!r}; there are: {known}")
