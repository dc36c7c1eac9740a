"""Reload: other settings come into force while everything runs, all of them or none.

    read     the file and the environment are read and checked; with any error nothing changes
    prepare  what could fail is made beside what is in use: new listening sockets, a pool for another database
    commit   the settings, the pool and the sockets are exchanged in one step; services that depend on them restart
    check    one of those is not ready in time: the same exchange backwards
    finish   what is no longer used is closed, and failed services are tried again

Most services read the settings anew whenever they act, and need no restart.
"""

import time
from collections.abc import Callable, Sequence

import msgspec
import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.http.server import Front
from bloomd.node import Node, ReloadReport
from bloomd.notify import Notifier
from bloomd.postgres import Pool
from bloomd.runtime.connector import Connector
from bloomd.settings import Loaded, Settings, SettingsError, changed, sections
from bloomd.supervisor import ServiceStatus, State

log = structlog.stdlib.get_logger(__name__)

# Long enough to connect and to be refused by every timeout there is; an operator waits for the answer.
READY_SECONDS = 15.0

# Keys that count from the next start of the daemon on.
NEED_RESTART = (
    "control.socket", "control.group", "log.format", "http.drain_seconds", "http.socket_mode", "http.socket_group",
)  # fmt: skip


class Reloader:
    """Does one reload at a time."""

    def __init__(
        self,
        node: Node,
        read: Callable[[], Loaded],
        notifier: Notifier,
        *,
        connector: Connector,
        fronts: Sequence[Front],
    ) -> None:
        self._node = node
        self._read = read
        self._notifier = notifier
        self._connector = connector
        self._fronts = fronts
        self._lock = trio.Lock()
        self._scope = trio.CancelScope()

    async def reload(self, cause: str) -> ReloadReport:
        """Bring the configuration as it is now into force, or say why not and change nothing.

        A cancellation waits until it is done, which takes a minute at the worst: half a reload would be worse.
        """
        async with self._lock:
            report = _failed("bloomd is stopping")
            with trio.CancelScope(shield=True) as self._scope, self._notifier.reloading():
                report = msgspec.structs.replace(await self._reload(cause), at=time.time())
        self._node.last_reload = report
        if report.ok:
            self._node.logs.set_level(self._node.settings.log.level)
            self._node.pending_restart.update(report.needs_restart)
            log.info("reloaded", result=report.result, cause=cause, changes=len(report.changes))
        else:
            log.error("reload failed, the old settings stay", cause=cause, errors=report.errors)
        return report

    def give_up(self) -> None:
        """The daemon stops: a reload under way does not matter any more."""
        self._scope.cancel()

    async def _reload(self, cause: str) -> ReloadReport:
        node, old = self._node, self._node.loaded
        try:
            new = (await trio.to_thread.run_sync(self._read)).with_stored(node.stored)
        except SettingsError as error:
            return _failed(*(str(problem) for problem in error.problems))
        if new.settings == old.settings:
            node.use(new)
            return ReloadReport(ok=True, result="unchanged", retried=node.root.retry_failed(cause))

        changes = changed(old.settings, new.settings)
        restarts = self._restarts(sections(changes))
        if (old.settings.membridge.serve is None) != (new.settings.membridge.serve is None):
            restarts.append("membridge-server")  # it comes or goes
        if new.settings.minio.endpoint is None and old.settings.minio.endpoint is not None:
            restarts.append("objects")  # it goes
        if new.settings.backup.schedule is None and old.settings.backup.schedule is not None:
            restarts.append("backup")  # it goes, and with it one that is being made
        try:
            for front in self._fronts:
                front.binds.open(front.wanted(new.settings))
            pool = await self._other_pool(old.settings, new.settings)
        except (Misconfigured, Unavailable) as error:
            self._close_unwanted(old.settings)
            return _failed(one_line(error))

        before, late = await self._switch(new, pool, restarts, cause)
        if late:
            pool, _ = await self._switch(old, before, restarts, f"{cause}, undone")
        else:
            pool = before
        self._close_unwanted(old.settings if late else new.settings)
        if pool:
            await pool.close()
        if late:
            return _failed(f"not ready within {READY_SECONDS:.0f} s: {', '.join(late)}; the old settings are back")
        return ReloadReport(
            ok=True,
            result="reloaded",
            changes=changes,
            restarted=restarts,
            needs_restart=[change.key for change in changes if change.key in NEED_RESTART],
            retried=node.root.retry_failed(cause),
        )

    def _close_unwanted(self, settings: Settings) -> None:
        """Stop listening on what these settings do not name."""
        for front in self._fronts:
            wanted = front.wanted(settings).bind
            front.binds.close([bind for bind in front.binds.sockets if bind not in wanted])
            front.server.rebind()

    async def _other_pool(self, old: Settings, new: Settings) -> Pool | None:
        """A pool for other database settings, when one is in use that it must replace without a gap."""
        if new.database == old.database or self._node.database.away is not None:
            return None
        with trio.move_on_after(READY_SECONDS):
            return await self._connector.prepare(new.database)
        raise Unavailable(f"the database of the new settings has not answered within {READY_SECONDS:.0f} s")

    async def _switch(
        self, loaded: Loaded, pool: Pool | None, restarts: list[str], cause: str
    ) -> tuple[Pool | None, list[str]]:
        """Bring these settings into force; the pool that was in use, and the services that are not ready in time."""
        before = self._connector.take(pool) if pool else None
        if pool:
            self._node.feed.begin_anew()
        self._node.use(loaded)
        for front in self._fronts:
            front.server.rebind()
        with trio.move_on_after(READY_SECONDS):
            await self._node.root.restart(restarts, cause)
        status = {each.name: each for each in self._node.root.status()}
        late = [name for name in restarts if name in status and _is_late(status[name])]
        return before, late

    def _restarts(self, changed: frozenset[str]) -> list[str]:
        """The services that do not look at the settings by themselves when they act."""
        restarts: list[str] = []
        if changed & {"probes", "database", "minio", "membridge"}:
            restarts.append("probes")
        if "database" in changed:  # who leads in one database leads nobody in another
            restarts += [] if self._node.database.away is None else ["database"]
            restarts += ["notifications", "leader-election"]
        return restarts


def _is_late(service: ServiceStatus) -> bool:
    return service.state is not State.RUNNING and not service.by_hand


def _failed(*errors: str) -> ReloadReport:
    return ReloadReport(ok=False, result="failed", errors=list(errors))
