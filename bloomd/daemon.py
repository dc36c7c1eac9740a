"""The task tree of the daemon: which service exists, what it needs, in what order. Read this file first.

One trio process. `Daemon.services` is the table; the supervisor (`bloomd.supervisor`) starts it from the top, keeps
each service alive by its own rules, and stops it from the bottom, the HTTP API before all others.
"""

import gc
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
import trio

from bloomd.backup.schedule import Schedule
from bloomd.companion import Companion, local_url
from bloomd.control.audit import ControlAudit
from bloomd.control.listener import Listener
from bloomd.control.methods import methods
from bloomd.control.server import ControlServer
from bloomd.http.app import create_app
from bloomd.http.server import Binds, Front, HttpServer
from bloomd.logs import Logs
from bloomd.membridge.agents import Agent
from bloomd.membridge.autodispatch import AutoDispatch
from bloomd.membridge.dispatch import Dispatcher
from bloomd.membridge.dispatch import Rules as PushRules
from bloomd.membridge.polls import Polls
from bloomd.membridge.server.app import create_app as create_membridge
from bloomd.membridge.server.plane import Plane
from bloomd.membridge.server.served import binds as binds_of_membridge
from bloomd.membridge.sync import Sync
from bloomd.node import Node
from bloomd.notify import Notifier
from bloomd.objects.mover import Mover
from bloomd.postgres.embedded import Embedded
from bloomd.postgres.listen import listen
from bloomd.probes import Probe, ProbeStatus, membridge, minio, postgresql
from bloomd.reload import Reloader
from bloomd.runtime import liveness, stored, wakeups
from bloomd.runtime.connector import Connector
from bloomd.runtime.retention import Keep, Retention
from bloomd.runtime.samples import Sampler
from bloomd.runtime.sweeper import Rules, Sweeper
from bloomd.settings import Loaded, Settings, secrets
from bloomd.settings.model import Http
from bloomd.status import ONLY_WORKERS
from bloomd.supervisor import Backoff, Change, EssentialServiceFailed, Service, State, Supervisor
from bloomd.verdict import reasons, verdict

log = structlog.stdlib.get_logger(__name__)

# PostgreSQL's return is noticed within a second: all work waits for it, and one attempt a second harms nobody.
DATABASE_RETRY = Backoff(first=0.1, cap=1.0)

# Should a notification be lost, a setting made on another node counts after this long.
STORED_POLL_SECONDS = 30.0

# For one small write at the end; when PostgreSQL has not done it by then, it will not.
KEYS_STOP_SECONDS = 2.0


def front_of_membridge(settings: Settings) -> Http:
    """Where the control plane that bloomd serves itself listens, in the terms of the HTTP API."""
    return Http(bind=binds_of_membridge(settings.membridge))


class Daemon:
    """One node, put together. `run` is its whole life."""

    def __init__(
        self,
        read: Callable[[], Loaded],
        loaded: Loaded,
        logs: Logs,
        notifier: Notifier,
        *,
        control_socket: Listener,
        binds: Binds,
        membridge_binds: Binds,
        embedded: Embedded | None = None,
        auto_migrate: bool = False,
        config_option: str = "",
        worker_directory: Path | None = None,
    ) -> None:
        """`worker_directory`: where a worker of this machine's own works, if there is to be one."""
        self.node = Node(loaded, logs, config_option=config_option)
        self._notifier = notifier
        self._control_socket = control_socket
        self._binds = binds
        self._embedded = embedded
        self._stored_changed = trio.Event()

        node = self.node
        self._companion = worker_directory and Companion(node, worker_directory, self._own_url)
        self.connector = Connector(
            node.database,
            lambda: node.settings.database,
            auto_migrate=auto_migrate,
            config_option=config_option,
            stopping=node.stopping.is_set,
        )
        node.keys.on_change = self._on_keys
        self.audit = ControlAudit(node.database)
        self.control = ControlServer(methods(node, logs), group=node.settings.control.group, audit=self.audit.called)
        node.note = self.audit.note
        self.http = HttpServer(create_app(node), binds, drain_seconds=node.settings.http.drain_seconds)
        self.membridge = HttpServer(
            create_membridge(Plane(node.database, lambda: node.settings), lambda: node.served.key),
            membridge_binds,
            drain_seconds=node.settings.http.drain_seconds,
        )
        self.sweeper = Sweeper(node.database, self._sweeper_rules)
        self.retention = Retention(
            node.database, lambda: Keep(tasks=node.settings.tasks.keep_days, audit=node.settings.audit.keep_days)
        )
        self.sampler = Sampler(node.database)
        self.mover = Mover(node.database, node.contents)
        self.backup = Schedule(node.database, lambda: node.loaded, node=node.name)
        self.polls = Polls(
            list_targets=partial(liveness.with_url, node.database),
            record_many=partial(liveness.record_polls, node.database),
            settings=lambda: node.settings.workers,
        )
        node.dispatcher = Dispatcher(node.database, node.wakeups, self._push_rules)
        self.auto_dispatch = AutoDispatch(
            node.database, node.wakeups, node.dispatcher, enabled=lambda: node.settings.tasks.auto_dispatch
        )
        node.sync = Sync(
            client=node.membridge.client,
            interval=lambda: node.settings.membridge.sync_interval,
            mirror=self._mirror,
        )
        node.probes = [
            Probe(name, check, lambda: node.settings.probes, observe=self._on_probe)
            for name, check in {
                "postgresql": lambda: postgresql.check(node.settings.database),
                "minio": lambda: minio.check(node.settings.minio),
                "membridge": lambda: membridge.check(node.membridge.settings),
            }.items()
        ]
        node.root = Supervisor(self.services(), observe=self._on_change)
        fronts = [
            Front(self.http, binds, lambda settings: settings.http),
            Front(self.membridge, membridge_binds, front_of_membridge),
        ]
        self._reloader = Reloader(node, read, notifier, connector=self.connector, fronts=fronts)
        node.reload = self._reloader.reload

    def services(self) -> list[Service]:
        """The table. What is `only` the leader's stands by on the other nodes, and counts as running there."""
        node, settings, only = self.node, self.node.settings, self.node.leadership.only
        probes = Supervisor([Service(probe.name, probe.run) for probe in node.probes])
        return [
            Service("control", partial(self.control.serve, self._control_socket.socket), essential=True),
            Service(
                "http",
                self.http.run,
                essential=True,
                stops_first=True,
                ask_to_stop=self.http.ask_to_stop,
                stop_seconds=settings.http.drain_seconds,
            ),
            *([Service("embedded-postgresql", self._embedded.run, retry=DATABASE_RETRY)] if self._embedded else []),
            Service("probes", probes.run, group=probes),
            Service(
                "database",
                self.connector.run,
                needs=("embedded-postgresql",) if self._embedded else (),
                retry=DATABASE_RETRY,
            ),
            # It needs no database to say that there is none; it stops before the database does.
            Service(
                "membridge-server",
                self.membridge.run,
                configured=lambda: bool(node.served.binds),
                ask_to_stop=self.membridge.ask_to_stop,
                stop_seconds=settings.http.drain_seconds,
            ),
            Service(
                "keys",
                node.keys.run,
                needs=("database",),
                retry=DATABASE_RETRY,
                ask_to_stop=node.keys.ask_to_stop,
                stop_seconds=KEYS_STOP_SECONDS,
            ),
            Service("dispatch", node.dispatcher.run, needs=("database",), retry=DATABASE_RETRY),
            Service("stats", node.stats.run, needs=("database",), retry=DATABASE_RETRY),
            Service("notifications", self._notifications, needs=("database",), retry=DATABASE_RETRY),
            Service("wake-ups", node.wakeups.run, needs=("database",), retry=DATABASE_RETRY),
            Service("events", node.feed.run, needs=("database",), retry=DATABASE_RETRY),
            Service("claims", node.waiting_room.run, needs=("database",), retry=DATABASE_RETRY),
            Service("audit", self.audit.run, needs=("database",), retry=DATABASE_RETRY),
            Service("leader-election", node.leadership.run, needs=("database",), retry=DATABASE_RETRY),
            Service("sweeper", only(self.sweeper.run), needs=("database",), retry=DATABASE_RETRY),
            Service("retention", only(self.retention.run), needs=("database",), retry=DATABASE_RETRY),
            Service(
                "objects",
                only(self.mover.run),
                needs=("database",),
                configured=lambda: node.settings.minio.endpoint is not None,
            ),
            Service(
                "backup",
                only(self.backup.run),
                needs=("database",),
                configured=lambda: node.settings.backup.schedule is not None,
                retry=DATABASE_RETRY,
            ),
            Service("samples", only(self.sampler.run), needs=("database",), retry=DATABASE_RETRY),
            Service("worker-polls", only(self.polls.run), needs=("database",), retry=DATABASE_RETRY),
            Service(
                "auto-dispatch",
                only(self.auto_dispatch.run, meanwhile=self.auto_dispatch.stand_by),
                needs=("database", "dispatch"),
                configured=lambda: node.settings.tasks.auto_dispatch,
                retry=DATABASE_RETRY,
            ),
            Service(
                "membridge-sync",
                only(node.sync.run, meanwhile=node.sync.stand_by),
                needs=("database",),
                configured=lambda: node.membridge.configured,
                retry=Backoff(first=1.0, cap=settings.membridge.sync_interval),
            ),
            *(
                [Service("worker", self._companion.run, needs=("http", "keys"), stops_first=True)]
                if self._companion
                else []
            ),
        ]

    def _own_url(self) -> str:
        return local_url(self.node.settings.http.bind)

    async def run(self, started: Callable[[], None] | None = None) -> None:
        """Serve until SIGTERM or SIGINT, which begin the orderly stop; a second one hurries it. SIGHUP reloads.

        Args:
            started: called once every service runs or has said why it cannot yet; the init system is told then.

        Raises:
            EssentialServiceFailed: the HTTP API or the control socket has failed for good.
        """
        failure: EssentialServiceFailed | None = None
        self.node.logs.redact(secrets(self.node.settings))
        for notice in self.node.loaded.warnings:
            log.warning(notice)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self.node.lag.run)
                self._nursery.start_soon(self.node.wall_clock.run)
                self._nursery.start_soon(self._obey, signals)
                self._nursery.start_soon(self._notifier.keep_telling, self._state_for_all)
                try:
                    async with trio.open_nursery() as tree:
                        await tree.start(self.node.root.run)
                        # What the start has made lives as long as the daemon: a full collection, which would look at
                        # all of it again, took 60 ms, and the loop stood still for as long.
                        gc.collect()
                        gc.freeze()
                        await self.node.root.wait_until(self._serves_or_stops)
                        if not self.node.stopping.is_set():
                            self._notifier.ready(self._state_for_all())
                            if started:
                                started()
                except* EssentialServiceFailed as group:
                    failure = _leaf(group)
                self._nursery.cancel_scope.cancel()
        if failure:
            raise failure

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._nursery.start_soon(self._reload_by_signal)
            elif self.node.stopping.is_set():
                log.warning("second signal: not waiting for requests under way")
                self.node.root.hurry()
            else:
                log.info("stopping", signal=signal.Signals(number).name)
                self._notifier.stopping()
                self.node.stopping.set()
                self.node.waiting_room.close()
                self.node.dispatcher.close()
                self._reloader.give_up()
                self._binds.close_all()
                self.node.root.stop()

    def _serves_or_stops(self, root: Supervisor) -> bool:
        essential = [each.state for each in root.status() if each.essential]
        return self.node.stopping.is_set() or all(state is State.RUNNING for state in essential)

    def _state_for_all(self) -> str:
        """The state in the words of `systemctl status`, which every user of the machine can read: no reasons."""
        word = verdict(reasons(self.node))
        return word if word == "ok" else f"{word}: bloomd-ctl status says why"

    async def _reload_by_signal(self) -> None:
        report = await self.node.reload("SIGHUP")
        self.audit.note("reload", "", "SIGHUP", report.summary)

    async def _notifications(self, *, task_status: trio.TaskStatus[None]) -> None:
        """One connection that listens for all: what other nodes change is taken over at once."""
        node = self.node

        def notified(channel: str, payload: str) -> None:
            node.notifications += 1
            if channel == stored.CHANNEL:
                self._stored_changed.set()
            else:
                node.wakeups.notified(channel, payload)

        async with trio.open_nursery() as nursery:
            await nursery.start(listen, node.settings.database.url, [stored.CHANNEL, *wakeups.CHANNELS], notified)
            self._stored_changed.set()  # what changed before we listened
            node.wakeups.wake_all()
            task_status.started()
            while True:
                with trio.move_on_after(STORED_POLL_SECONDS):
                    await self._stored_changed.wait()
                self._stored_changed = trio.Event()
                await node.take_stored()

    def _sweeper_rules(self) -> Rules:
        settings = self.node.settings
        return Rules(
            interval=settings.tasks.sweep_interval,
            offline_after=settings.workers.offline_after,
            retry=self.node.retry,
            mirrored=self.node.membridge.configured,
        )

    def _push_rules(self) -> PushRules:
        settings = self.node.settings
        return PushRules(
            key=settings.membridge.agent_key,
            networks=settings.workers.allowed_networks,
            public_url=settings.http.public_url,
            binds=settings.http.bind,
            retry=self.node.retry,
        )

    async def _mirror(self, agents: Sequence[Agent], epoch: int) -> liveness.Mirrored:
        offline_after = self.node.settings.workers.offline_after
        return await liveness.mirror(self.node.database, agents, epoch, offline_after=offline_after)

    def _on_probe(self, status: ProbeStatus) -> None:
        told = {"name": status.name, "state": status.state, "error": status.error, "node": self.node.name}
        self.node.feed.live("probe", told)

    def _on_keys(self) -> None:
        if self.node.keys.only_workers(self.node.settings.http.api_key):
            log.warning(ONLY_WORKERS)

    def _on_change(self, change: Change) -> None:
        """Tell it, and log what an operator would want to read afterwards. Trouble is logged by the supervisor, with
        its error."""
        told = {"name": change.service, "state": change.state.value, "cause": change.cause, "node": self.node.name}
        self.node.feed.live("service", told)
        if change.state in (State.RUNNING, State.STOPPED):
            log.info("service", service=change.service, state=change.state.value, cause=change.cause)
        if change.service == "database" and change.state in (State.RUNNING, State.WAITING):
            self._nursery.start_soon(self.node.probes[0].now)  # its probe shall not say otherwise for an interval


def _leaf(group: BaseExceptionGroup[EssentialServiceFailed]) -> EssentialServiceFailed:
    [first, *_] = group.exceptions
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first
