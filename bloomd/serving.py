"""How `bloomd run` and `bloomd dev` bring a daemon into being: its sockets, its logs, and what a person is told."""

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from bloomd.companion import local_url
from bloomd.control import listener
from bloomd.daemon import Daemon, front_of_membridge
from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.http.access import is_off
from bloomd.http.server import Binds
from bloomd.logs import Logs, is_json
from bloomd.membridge import USUAL_PORT
from bloomd.membridge.server.served import url_of
from bloomd.node import Node
from bloomd.notify import Notifier
from bloomd.postgres.embedded import Embedded
from bloomd.settings import Loaded, Tcp, load, parse_bind
from bloomd.supervisor import EssentialServiceFailed
from bloomd.unixsocket import BACKLOG


def serve(
    read: Callable[[], Loaded],
    *,
    embedded: Embedded | None = None,
    auto_migrate: bool = False,
    config_option: str = "",
    membridge_binds: Binds | None = None,
    worker_directory: Path | None = None,
    announce: Callable[[Node], None] | None = None,
) -> None:
    """Run a daemon until it is told to stop; `announce` is called once it serves.

    Raises:
        SettingsError, Misconfigured: it cannot begin with these settings.
        EssentialServiceFailed: it could not go on, or an address to listen on is taken or not there yet.
    """
    notifier = Notifier()
    loaded = read()
    settings = loaded.settings
    logs = Logs(json=is_json(settings.log.format, os.environ.get("NODE_ENV") == "production"), level=settings.log.level)
    binds, membridge_binds = Binds(), membridge_binds or Binds("membridge.serve")
    control_socket = listener.bind(settings.control.socket, settings.control.group)
    try:
        try:
            binds.open(settings.http)
            membridge_binds.open(front_of_membridge(settings))
        except Unavailable as error:
            raise EssentialServiceFailed(one_line(error)) from error
        daemon = Daemon(
            read,
            loaded,
            logs,
            notifier,
            control_socket=control_socket,
            binds=binds,
            membridge_binds=membridge_binds,
            embedded=embedded,
            auto_migrate=auto_migrate,
            config_option=config_option,
            worker_directory=worker_directory,
        )
        trio.run(daemon.run, partial(announce, daemon.node) if announce else None)
    finally:
        binds.close_all()
        membridge_binds.close_all()
        listener.unbind(control_socket)


def dev(options: argparse.Namespace) -> None:
    """Run everything on this machine, as the options of `bloomd dev` say."""
    directory: Path = options.dir.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(
            f"--dir: {directory} cannot be a directory: {error.strerror}; choose another one"
        ) from error
    embedded = None if os.environ.get("DATABASE_URL") else Embedded(directory / "postgres")
    preset: dict[str, object] = {"control.socket": str(directory / "bloomd.sock")}
    if embedded:
        preset["database.url"] = embedded.conninfo
    explicit: dict[str, object] = {}
    if options.port is not None or options.bind is not None:
        address = options.bind or "127.0.0.1"
        port = options.port if options.port is not None else os.environ.get("PORT") or 5000
        explicit["http.bind"] = [f"[{address}]:{port}" if ":" in address else f"{address}:{port}"]
    if options.allow_unauthenticated:
        explicit["http.allow_unauthenticated"] = True
    if options.allow_host:
        explicit["http.allowed_hosts"] = options.allow_host
    read = partial(load, None, environ=os.environ, preset=preset, options=explicit)
    membridge: dict[str, socket.socket] = {}
    if options.membridge_port is not None:
        explicit["membridge.serve"] = f"127.0.0.1:{options.membridge_port}"
    elif not options.no_membridge:
        membridge = _listen_for_membridge(read().settings.http.bind)
        [explicit["membridge.serve"]] = membridge
    serve(
        read,
        embedded=embedded,
        auto_migrate=True,
        membridge_binds=Binds("membridge.serve", membridge),
        worker_directory=directory / "worker" if options.worker else None,
        announce=partial(_announce, embedded, chosen=options.membridge_port is not None, worker=options.worker),
    )


def _listen_for_membridge(taken: Sequence[str]) -> dict[str, socket.socket]:
    """A socket on the usual port, or on a free one when that is taken or about to be; with its address."""
    addresses = [parse_bind(bind) for bind in taken]
    usual = Tcp("127.0.0.1", USUAL_PORT)
    ports = [0] if any(isinstance(each, Tcp) and each.overlaps(usual) for each in addresses) else [USUAL_PORT, 0]
    for port in ports:
        with suppress(OSError):
            listening = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
            return {f"127.0.0.1:{listening.getsockname()[1]}": listening}
    raise Misconfigured("membridge.serve: 127.0.0.1 has no free port; free one, or say --no-membridge")


def _announce(embedded: Embedded | None, node: Node, *, chosen: bool, worker: bool) -> None:
    settings = node.settings
    if node.database.away:
        print(f"\n  bloomd serves, but not its database: {node.database.away}\n", flush=True)
        return
    url = local_url(settings.http.bind)
    control_socket = settings.control.socket
    ctl = f"{Path(sys.argv[0]).parent / 'bloomd-ctl'} -s {control_socket}"
    print(
        "\n".join(
            [
                "",
                "  bloomd is ready",
                "",
                f"  page       {url}/",
                f"  API        {url}/api/runtime/health",
                f"  Membridge  {_where_membridge_is(node, chosen=chosen)}",
                f"  socket     {control_socket}",
                f"  data       {embedded.cluster.directory if embedded else 'the database of DATABASE_URL'}",
                "  stop       Ctrl-C; the data stays",
                "",
                "  try next, in another terminal:",
                "",
                f"    {ctl} status",
                f"    {_next_step(node, ctl, url, worker=worker)}",
                "",
            ]
        ),
        flush=True,
    )


def _next_step(node: Node, ctl: str, url: str, *, worker: bool) -> str:
    """A command that works as it stands: with no key in it, and for one who may have none."""
    if worker:
        return f"{ctl} task add --wait 'Say hello'"
    if is_off(node.settings.http, node.keys):
        return f"curl {url}/api/runtime/stats"
    if node.keys.only_workers(node.settings.http.api_key):
        return f"{ctl} key add me"
    return f"{ctl} workers"


def _where_membridge_is(node: Node, *, chosen: bool) -> str:
    """Where the control plane is, and what a person would wonder about: `chosen` says that the port is no accident."""
    if not node.served.binds:
        return node.membridge.settings.server_url or "none: --no-membridge"
    url = url_of(node.served.binds[0])
    if node.membridge.settings.server_url != url:
        return f"{url}, and this bloomd was told to ask {node.membridge.settings.server_url} instead"
    if not chosen and not url.endswith(f":{USUAL_PORT}"):
        return f"{url}, because port {USUAL_PORT} is taken; --membridge-port chooses another one"
    return url
