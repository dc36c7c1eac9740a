"""hypercorn, one server for each bind: so that an address can come or go without the others noticing.

The listening sockets belong to the root of the daemon (`Binds`): they outlive a restart of this service, and while it
is down the kernel queues connections instead of refusing them. hypercorn closes what it is given, so it gets a
duplicate.
"""

import grp
import os
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]  (its WSGI half is untyped)

from bloomd.errors import Misconfigured
from bloomd.http.asgi import App
from bloomd.settings.model import Http

log = structlog.stdlib.get_logger(__name__)

# Connections that wait while the service is being restarted. Linux caps it at net.core.somaxconn.
BACKLOG = 1024

# An idle connection is closed after this; a proxy in front keeps its own for less (nginx/bloomd.conf).
KEEP_ALIVE_SECONDS = 20.0


class Binds:
    """The listening sockets of the HTTP API, by their names in the settings."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}

    def __repr__(self) -> str:
        return f"<Binds {' '.join(self.sockets)}>"

    def open(self, settings: Http) -> dict[str, socket.socket]:
        """Listen on what the settings name and is not listened on yet; all of it or nothing. Gives the new ones.

        Raises:
            Misconfigured: one of them cannot be had; the text says which, why, and what to do.
        """
        opened: dict[str, socket.socket] = {}
        try:
            for bind in settings.bind:
                if bind not in self.sockets:
                    opened[bind] = _listen(bind, settings)
        except Misconfigured:
            for listening in opened.values():
                listening.close()
            raise
        self.sockets |= opened
        return opened

    def close(self, binds: Iterable[str]) -> None:
        """Stop listening on these."""
        for bind in list(binds):
            listening = self.sockets.pop(bind)
            path = listening.getsockname() if listening.family is socket.AF_UNIX else None
            listening.close()
            if path:
                with suppress(FileNotFoundError):
                    os.unlink(path)


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
        task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        config = Config()
        config.bind = [f"fd://{listening.dup().detach()}"]
        config.backlog = BACKLOG
        config.graceful_timeout = self.drain_seconds
        config.keep_alive_timeout = KEEP_ALIVE_SECONDS
        config.keep_alive_max_requests = 1_000_000  # a worker's connection is not cut for being busy
        config.max_app_queue_size = 1000  # with 10, a body of some megabytes that nobody reads hangs its connection
        config.include_server_header = False
        config.accesslog = None
        config.errorlog = None
        await serve(cast("Any", self._app), config, shutdown_trigger=stop.wait, task_status=task_status, mode="asgi")


def _listen(bind: str, settings: Http) -> socket.socket:
    try:
        if bind.startswith("unix:"):
            return _listen_unix(bind.removeprefix("unix:"), settings)
        host, _, port = bind.rpartition(":")
        return socket.create_server(
            (host.strip("[]"), int(port)),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        raise Misconfigured(
            f"http.bind: cannot listen on {bind}: {os.strerror(error.errno) if error.errno else error}; "
            "free it, or choose another address"
        ) from error


def _listen_unix(path: str, settings: Http) -> socket.socket:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise Misconfigured(f"http.bind: {path} exists and is not a socket; move it away")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)  # left behind by a daemon that was killed
            else:
                raise Misconfigured(f"http.bind: another program serves on {path}; stop it first")
    listening = socket.socket(socket.AF_UNIX)
    mode = int(settings.socket_mode, 8)
    umask = os.umask(0o777 & ~mode)
    try:
        listening.bind(path)
    finally:
        os.umask(umask)
    if settings.socket_group:
        try:
            os.chown(path, -1, grp.getgrnam(settings.socket_group).gr_gid)
        except (KeyError, PermissionError) as error:
            listening.close()
            os.unlink(path)
            raise Misconfigured(
                f"http.socket_group: the socket cannot be given to the group {settings.socket_group!r}; "
                "create the group and make bloomd's user a member"
            ) from error
    listening.listen(BACKLOG)
    return listening
