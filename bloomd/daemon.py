"""The task tree of the daemon: which service exists, what it needs, in what order. Read this file first.

One trio process. `Daemon.services` is the table; the supervisor (`bloomd.supervisor`) starts it from the top, keeps
each service alive by its own rules, and stops it from the bottom, the HTTP API before all others.
"""

import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
import trio

from bloomd.control.listener import Listener
from bloomd.control.methods import methods
from bloomd.control.server import Call, ControlServer
from bloomd.errors import Unavailable
from bloomd.http.app import create_app
from bloomd.http.server import Binds, HttpServer
from bloomd.logs import Logs
from bloomd.membridge.agents import Agent
from bloomd.membridge.polls import Polls
from bloomd.membridge.sync import Sync
from bloomd.node import Node
from bloomd.postgres.embedded import Embedded
from bloomd.postgres.listen import listen
from bloomd.probes import Probe, membridge, minio, postgresql
from bloomd.reload import Reloader
from bloomd.runtime import audit, liveness, stored
from bloomd.runtime.connector import Connector
from bloomd.runtime.model import Retry
from bloomd.runtime.sweeper import Rules, Sweeper
from bloomd.settings import Loaded, secrets
from bloomd.supervisor import Backoff, Change, Service, State, Supervisor

log = structlog.stdlib.get_logger(__name__)

# PostgreSQL's return is noticed within a second: all work waits for it, and one attempt a second harms nobody.
DATABASE_RETRY = Backoff(first=0.1, cap=1.0)

# Should a notification be lost, a setting made on another node counts after this long.
STORED_POLL_SECONDS = 30.0

# Entries that the control socket makes while the database is away; more of them are only in the log.
AUDIT_BACKLOG = 1000


class Daemon:
    """One node, put together. `run` is its whole life."""

    def __init__(
        self,
        read: Callable[[], Loaded],
        loaded: Loaded,
        logs: Logs,
        *,
        control_socket: Listener,
        binds: Binds,
        embedded: Embedded | None = None,
        auto_migrate: bool = False,
    ) -> None:
        self.node = Node(loaded)
        self._logs = logs
        self._control_socket = control_socket
        self._binds = binds
        self._embedded = embedded
        self._stored_changed = trio.Event()
        self._audit_send, self._audit_receive = trio.open_memory_channel[_Mutation](AUDIT_BACKLOG)

        node = self.node
        self.connector = Connector(node.database, lambda: node.settings.database, auto_migrate=auto_migrate)
        self.control = ControlServer(methods(node, logs), group=node.settings.control.group, audit=self._audit)
        self.http = HttpServer(create_app(node), binds, drain_seconds=node.settings.http.drain_seconds)
        self.sweeper = Sweeper(node.database, self._sweeper_rules)
        self.polls = Polls(
            list_targets=partial(liveness.with_url, node.database),
            record_many=partial(liveness.record_polls, node.database),
            settings=lambda: node.settings.workers,
        )
        node.sync = Sync(
            client=node.membridge.client,
            interval=lambda: node.settings.membridge.sync_interval,
            mirror=self._mirror,
        )
        node.probes = [
            Probe("postgresql", lambda: postgresql.check(node.settings.database), lambda: node.settings.probes),
            Probe("minio", lambda: minio.check(node.settings.minio), lambda: node.settings.probes),
            Probe("membridge", lambda: membridge.check(node.settings.membridge), lambda: node.settings.probes),
        ]
        node.root = Supervisor(self.services(), observe=_log_change)
        reloader = Reloader(node, read, connector=self.connector, binds=binds, http=self.http, logs=logs)
        node.reload = reloader.reload

    def services(self) -> list[Service]:
        """The table."""
        node, settings = self.node, self.node.settings
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
            Service("probes", probes.run, group=probes),
            *([Service("embedded-postgresql", self._embedded.run, retry=DATABASE_RETRY)] if self._embedded else []),
            Service(
                "database",
                self.connector.run,
                needs=("embedded-postgresql",) if self._embedded else (),
                retry=DATABASE_RETRY,
            ),
            Service("notifications", self._notifications, needs=("database",), retry=DATABASE_RETRY),
            Service("audit", self._write_audit, needs=("database",), retry=DATABASE_RETRY),
            Service("sweeper", self.sweeper.run, needs=("database",), retry=DATABASE_RETRY),
            Service("worker-polls", self.polls.run, needs=("database",), retry=DATABASE_RETRY),
            Service(
                "membridge-sync",
                node.sync.run,
                needs=("database",),
                configured=lambda: node.membridge.configured,
                retry=Backoff(first=1.0, cap=settings.membridge.sync_interval),
            ),
        ]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT, which begin the orderly stop; a second one hurries it. SIGHUP reloads.

        Raises:
            EssentialServiceFailed: the HTTP API or the control socket has failed for good.
        """
        self._logs.redact(secrets(self.node.settings))
        for notice in self.node.loaded.warnings:
            log.warning(notice)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.node.lag.run)
                nursery.start_soon(self._obey, signals)
                await nursery.start(self._tree, nursery.cancel_scope)
                task_status.started()

    async def _tree(
        self, whole: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await self.node.root.run(task_status=task_status)
        whole.cancel()

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                await self.node.reload("SIGHUP")
            elif self.node.stopping.is_set():
                log.warning("second signal: not waiting for requests under way")
                self.node.root.hurry()
            else:
                log.info("stopping", signal=signal.Signals(number).name)
                self.node.stopping.set()
                self._binds.close_all()
                self.node.root.stop()

    async def _notifications(self, *, task_status: trio.TaskStatus[None]) -> None:
        """One connection that listens for all: what other nodes change is taken over at once."""

        def notified(channel: str, payload: str) -> None:
            self._stored_changed.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(listen, self.node.settings.database.url, [stored.CHANNEL], notified)
            self._stored_changed.set()  # what changed before we listened
            task_status.started()
            while True:
                with trio.move_on_after(STORED_POLL_SECONDS):
                    await self._stored_changed.wait()
                self._stored_changed = trio.Event()
                await self.node.take_stored()

    def _audit(self, call: Call, method: str, params: Mapping[str, Any], outcome: str) -> None:
        """Note what was done over the socket. The database may be away, and nobody waits for it here."""
        log.info("control", method=method, user=call.user, outcome=outcome, **params)
        try:
            self._audit_send.send_nowait(_Mutation(method, str(params.get("name", "bloomd")), call.user, outcome))
        except trio.WouldBlock:
            log.warning("audit backlog full, the entry is only in this log", method=method, user=call.user)

    async def _write_audit(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        async with self._audit_receive.clone() as mutations:
            async for mutation in mutations:
                try:
                    await audit.add(
                        self.node.database,
                        f"control.{mutation.method}",
                        entity_type="daemon",
                        entity_id=mutation.subject,
                        actor=mutation.user,
                        detail=mutation.outcome,
                    )
                except Unavailable:
                    self._audit_send.send_nowait(mutation)  # there is room: we have just taken it out
                    raise

    def _sweeper_rules(self) -> Rules:
        settings = self.node.settings
        return Rules(
            interval=settings.tasks.sweep_interval,
            offline_after=settings.workers.offline_after,
            retry=Retry(settings.tasks.retry_delay, settings.tasks.retry_delay_max, settings.tasks.retry_errors),
            mirrored=self.node.membridge.configured,
        )

    async def _mirror(self, agents: Sequence[Agent]) -> liveness.Mirrored:
        return await liveness.mirror(self.node.database, agents, offline_after=self.node.settings.workers.offline_after)


@dataclass(frozen=True, slots=True)
class _Mutation:
    """One thing that was done over the control socket, on its way to the audit log."""

    method: str
    subject: str
    user: str
    outcome: str


def _log_change(change: Change) -> None:
    """A line for each change of state that an operator would want to read about afterwards."""
    if change.state in (State.WAITING, State.BACKOFF, State.FAILED):
        log.warning("service", service=change.service, state=change.state.value, cause=change.cause)
    elif change.state in (State.RUNNING, State.STOPPED):
        log.info("service", service=change.service, state=change.state.value, cause=change.cause or None)
