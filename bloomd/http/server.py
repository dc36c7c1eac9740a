"""The HTTP service: one server for each bind, so that an address can come or go without the others noticing.

The listening sockets belong to the root of the daemon (`Binds`): they outlive a restart of this service, and while it
is down the kernel queues connections instead of refusing them. A server closes what it is given, so it gets a
duplicate.
"""

import errno
import grp
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog
import trio

from bloomd import unixsocket
from bloomd.errors import Misconfigured, Unavailable
from bloomd.http.asgi import App
from bloomd.http.connections import Dated, serve
from bloomd.settings import Settings, Tcp, Unix, parse_bind
from bloomd.settings.model import Http
from bloomd.unixsocket import BACKLOG

log = structlog.stdlib.get_logger(__name__)

# An idle connection is closed after this; a proxy in front keeps its own for less (nginx/bloomd-upstream.conf).
KEEP_ALIVE_SECONDS = 20.0


Listening = socket.socket | unixsocket.Listener


class Binds:
    """The listening sockets of one server, by their names in the settings.

    Args:
        setting: where the names come from, for errors.
        listening: what is listened on already.
    """

    def __init__(self, setting: str = "http.bind", listening: Mapping[str, socket.socket] | None = None) -> None:
        self._setting = setting
        self._listening: dict[str, Listening] = {**(listening or {})}

    def __repr__(self) -> str:
        return f"<Binds {' '.join(self._listening)}>"

    @property
    def sockets(self) -> dict[str, socket.socket]:
        """What is listened on now."""
        return {
            bind: each.socket if isinstance(each, unixsocket.Listener) else each
            for bind, each in self._listening.items()
        }

    def open(self, settings: Http) -> list[str]:
        """Listen on what the settings name and is not listened on yet; all of it or nothing. Gives the new ones.

        Raises:
            Misconfigured: one of them cannot be had; the text says which, why, and what to do.
            Unavailable: neither can it now, because somebody has that address, or this machine has not got it yet.
        """
        opened: list[str] = []
        try:
            for bind in settings.bind:
                if bind not in self._listening:
                    self._listening[bind] = _listen(bind, settings, self._setting)
                    opened.append(bind)
        except (Misconfigured, Unavailable):
            self.close(opened)
            raise
        return opened

    def close(self, binds: Iterable[str]) -> None:
        """Stop listening on these."""
        for bind in list(binds):
            listening = self._listening.pop(bind)
            if isinstance(listening, unixsocket.Listener):
                unixsocket.unbind(listening)
            else:
                listening.close()

    def close_all(self) -> None:
        """Stop listening: whoever comes from now on is refused, instead of queued."""
        self.close(self._listening)


class HttpServer:
    """The service: serves the application on every open bind."""

    def __init__(self, app: App, binds: Binds, *, drain_seconds: float) -> None:
        self._app = app
        self._binds = binds
        self.drain_seconds = drain_seconds
        self._changed = trio.Event()
        self._stop = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until asked to stop, then finish what runs; or until cancelled, which drops it."""
        self._stop = trio.Event()
        serving: dict[str, tuple[socket.socket, trio.Event]] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on_stop, serving)
            await self._serve_all(nursery, serving)
            task_status.started()
            while not self._stop.is_set():
                await self._changed.wait()
                await self._serve_all(nursery, serving)

    async def _serve_all(self, nursery: trio.Nursery, serving: dict[str, tuple[socket.socket, trio.Event]]) -> None:
        """Begin with the binds that are new, then end those that are gone."""
        self._changed = trio.Event()
        for bind, listening in list(self._binds.sockets.items()):
            if bind not in serving:
                stop = trio.Event()
                await nursery.start(self._serve, listening, stop)
                serving[bind] = listening, stop
        for bind in [
            bind for bind, (listening, _) in serving.items() if self._binds.sockets.get(bind) is not listening
        ]:
            serving.pop(bind)[1].set()

    def rebind(self) -> None:
        """The binds have changed: serve the new ones, drain those that are gone."""
        self._changed.set()

    def ask_to_stop(self) -> None:
        """Refuse new connections and finish the requests under way."""
        self._stop.set()
        self._changed.set()

    async def _pass_on_stop(self, serving: dict[str, tuple[socket.socket, trio.Event]]) -> None:
        await self._stop.wait()
        for _, stop in serving.values():
            stop.set()

    async def _serve(
        self,
        listening: socket.socket,
        stop: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        config = Dated()
        config.graceful_timeout = self.drain_seconds
        config.keep_alive_timeout = KEEP_ALIVE_SECONDS
        config.keep_alive_max_requests = 1_000_000  # a worker's connection is not cut for being busy
        config.max_app_queue_size = 1000  # a handler that is slow to read some megabytes does not stop their coming
        config.accesslog = None
        config.errorlog = None
        await serve(self._app, listening.dup(), config, stop, task_status=task_status)


@dataclass(frozen=True, slots=True)
class Front:
    """A server, its sockets, and what the settings say of them."""

    server: HttpServer
    binds: Binds
    wanted: Callable[[Settings], Http]


def _listen(bind: str, settings: Http, setting: str) -> Listening:
    match parse_bind(bind):
        case Unix(path):
            listener = unixsocket.bind(path, setting=setting, mode=int(settings.socket_mode, 8))
            if settings.socket_group:
                _give_to_group(listener, settings.socket_group)
            return listener
        case Tcp(host, port):
            try:
                return _listen_tcp(host, port)
            except OSError as error:
                kind = Unavailable if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL) else Misconfigured
                raise kind(
                    f"{setting}: cannot listen on {bind}: {error.strerror or error}; free it, or choose another address"
                ) from error


def _listen_tcp(host: str | None, port: int) -> socket.socket:
    if host is None and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    family = socket.AF_INET6 if host and ":" in host else socket.AF_INET
    return socket.create_server((host or "", port), family=family, backlog=BACKLOG)


def _give_to_group(listener: unixsocket.Listener, group: str) -> None:
    try:
        os.chown(listener.path, -1, grp.getgrnam(group).gr_gid)
    except (KeyError, PermissionError) as error:
        unixsocket.unbind(listener)
        raise Misconfigured(
            f"http.socket_group: the socket cannot be given to the group {group!r}; "
            "create the group and make bloomd's user a member"
        ) from error
