"""One node of bloomd as its front doors see it: what HTTP, the control socket and the status look at and steer.

`daemon.py` builds it; everything in here is reached from the one trio loop.
"""

import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import trio

from bloomd.errors import Unavailable
from bloomd.logs import Logs
from bloomd.membridge.dispatch import Dispatcher
from bloomd.membridge.link import Link
from bloomd.membridge.server.served import Served
from bloomd.membridge.sync import Sync
from bloomd.objects.contents import Contents
from bloomd.probes import Probe
from bloomd.runtime import stored
from bloomd.runtime.database import Database
from bloomd.runtime.events import Feed
from bloomd.runtime.heartbeats import Beat
from bloomd.runtime.keyring import KeyRing
from bloomd.runtime.leader import Leadership
from bloomd.runtime.model import Lease, Retry
from bloomd.runtime.stats import Counter, Stats
from bloomd.runtime.waiting_room import WaitingRoom
from bloomd.runtime.wakeups import Wakeups
from bloomd.settings import Loaded, Settings, secrets
from bloomd.supervisor import LoopLag, Supervisor, WallClock


class ReloadReport(msgspec.Struct, frozen=True):
    """What a reload did, as `bloomd-ctl reload` shows it."""

    ok: bool
    result: str
    """`unchanged`, `reloaded` or `failed`."""
    changes: list[Any] = []
    restarted: list[str] = []
    needs_restart: list[str] = []
    """Changed keys that count only after the daemon is started anew."""
    retried: list[str] = []
    """Failed services that were tried again."""
    errors: list[str] = []
    at: float = 0.0

    @property
    def summary(self) -> str:
        """The outcome in one line."""
        if self.errors:
            return "; ".join(self.errors)
        count = len(self.changes)
        return f"{self.result}, {count} {'change' if count == 1 else 'changes'}" if count else self.result


class Node:
    """The parts of a running daemon that others look at."""

    def __init__(self, loaded: Loaded, logs: Logs, *, config_option: str = "") -> None:
        self.loaded = loaded
        self.logs = logs
        self.stored: dict[str, str] = {}
        """The settings that were made through the API, as they were read last."""
        self.name = socket.gethostname()
        self.database = Database()
        self.wakeups = Wakeups(self.database)
        self.database.on_change = self.wakeups.change
        self.database.on_offer = self.wakeups.offer
        self.feed = Feed(self.database, self.wakeups)
        self.waiting_room = WaitingRoom(
            self.database, self.wakeups, refresh_seconds=lambda: self.settings.workers.offline_after / 3
        )
        self.leadership = Leadership(self.database, self.name)
        self.stats = Counter(self.database, self._too_large)
        self.keys = KeyRing(self.database)
        self.contents = Contents(lambda: self.settings.minio)
        self.lag = LoopLag()
        self.wall_clock = WallClock()
        self.notifications = 0
        """How many PostgreSQL has sent since the start."""
        self.served = Served(lambda: self.loaded)
        logs.redact([self.served.generated])
        self.membridge = Link(self.served.for_client)
        self.last_reload: ReloadReport | None = None
        self.pending_restart: set[str] = set()
        """Keys that were changed by a reload and count only after the daemon is started anew."""
        self.config_option = config_option
        """How the commands name this node's configuration, in what they are told to do: ` -c FILE`, or nothing."""
        self.stopping = trio.Event()
        self.root: Supervisor
        self.probes: Sequence[Probe] = ()
        self.sync: Sync
        self.dispatcher: Dispatcher
        self.note: Callable[[str, str, str, str], None]
        """Keep for the audit trail what was done to the daemon: what, to which part, by whom, how it went. Never waits,
        and needs no database at the moment."""
        self.reload: Callable[[str], Awaitable[ReloadReport]]
        """Read the configuration again, on behalf of somebody; `bloomd.reload` has the rules."""
        self._started = time.monotonic()

    @property
    def settings(self) -> Settings:
        """What is in force now."""
        return self.loaded.settings

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def retry(self) -> Retry:
        """The rules for another attempt, as they are set now."""
        tasks = self.settings.tasks
        return Retry(tasks.retry_delay, tasks.retry_delay_max, tasks.retry_errors)

    def _too_large(self) -> int | None:
        minio = self.settings.minio
        return None if minio.endpoint is None else minio.inline_below

    def tell_progress(self, lease: Lease, beat: Beat) -> None:
        """Let those who follow the events know how far a worker has come; no entry of the audit trail says so."""
        if beat.progress is not None:
            told = {
                "action": "task.progress",
                "entity_type": "task",
                "entity_id": lease.task_id,
                "timestamp": lease.last_heartbeat,
                "progress": beat.progress,
            }
            self.feed.live("task", told)

    async def recent_stats(self, seconds: float) -> Stats | None:
        """The counts, or None when the database does not give them in time."""
        with trio.move_on_after(seconds), suppress(Unavailable):
            return await self.stats.read()
        return None

    def use(self, loaded: Loaded) -> None:
        """Bring these settings into force for all that look at the node."""
        before, membridge = self.settings, self.membridge.settings
        self.loaded = loaded
        self.logs.redact([*secrets(self.settings), self.loaded.own_admin_key or ""])
        if self.settings.log.level != before.log.level:
            self.logs.set_level(self.settings.log.level)
        if self.membridge.settings != membridge:
            self.membridge.renew()
            self.sync.wake()
            if self.membridge.configured:
                self.root.wake_service("membridge-sync", "settings changed")
        if self.settings.minio != before.minio:
            self.root.wake_service("objects", "settings changed")
        if self.settings.backup.schedule is not None and before.backup.schedule is None:
            self.root.wake_service("backup", "settings changed")
        if self.settings.tasks.auto_dispatch and not before.tasks.auto_dispatch:
            self.root.wake_service("auto-dispatch", "settings changed")

    async def take_stored(self) -> None:
        """Bring the API keys and the settings that were made through the API into force.

        Raises:
            Unavailable: the database is away; what was in force stays.
        """
        await self.keys.renew()
        self.stored = await stored.read(self.database)
        self.use(self.loaded.with_stored(self.stored))
