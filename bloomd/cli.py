"""`bloomd`: run, dev, check, migrate."""

import argparse
import os
import secrets as random_secrets
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from bloomd import __version__
from bloomd.control import listener
from bloomd.daemon import Daemon, front_of_membridge
from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.http.server import Binds
from bloomd.logs import Logs, is_json
from bloomd.membridge.server.served import url_of
from bloomd.node import Node
from bloomd.postgres import Pool
from bloomd.postgres.embedded import Embedded
from bloomd.postgres.migrate import migrate, status
from bloomd.runtime.schema import MIGRATIONS, explained
from bloomd.settings import Loaded, SettingsError, Tcp, describe, load, parse_bind
from bloomd.supervisor import EssentialServiceFailed
from bloomd.unixsocket import BACKLOG

# From sysexits.h, so that an init system or a script can tell them apart.
OK, PENDING, USAGE, UNAVAILABLE, TEMPORARY_FAILURE, BAD_CONFIGURATION = 0, 1, 64, 69, 75, 78

# Where a Membridge is looked for when nobody says another place.
MEMBRIDGE_PORT = 8000

DEFAULT_FILE = Path("/etc/bloomd/bloomd.yaml")

_EPILOG = {
    "run": "example: bloomd run -c /etc/bloomd/bloomd.yaml",
    "dev": "example: bloomd dev --port 5055 --dir /tmp/bloom",
    "check": "example: bloomd check -c bloomd.yaml --print",
    "migrate": "example: bloomd migrate --status",
}


class _Parser(argparse.ArgumentParser):
    """argparse, but for the exit code of a usage error."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Exits with a code from sysexits.h."""
    options = _parser().parse_args(arguments)
    try:
        sys.exit(options.command(options))
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(BAD_CONFIGURATION)
    except Misconfigured as error:
        print(f"bloomd: {one_line(error)}", file=sys.stderr)
        sys.exit(BAD_CONFIGURATION)
    except Unavailable as error:
        print(f"bloomd: {one_line(error)}", file=sys.stderr)
        sys.exit(UNAVAILABLE)
    except EssentialServiceFailed as error:
        print(f"bloomd: {one_line(error)}", file=sys.stderr)
        sys.exit(TEMPORARY_FAILURE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bloomd", description="BLOOM Runtime: a queue of LLM tasks for worker machines.")
    parser.add_argument("--version", action="version", version=f"bloomd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, help: str, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=_EPILOG[name])
        added.set_defaults(command=function)
        return added

    def takes_file(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "-c", "--config", type=Path, metavar="FILE", help=f"the configuration ({DEFAULT_FILE} when there is one)"
        )

    run = command("run", "run the daemon in the foreground, as an init system wants it", _run)
    takes_file(run)

    dev = command("dev", "run everything on this machine, with a PostgreSQL of its own", _dev)
    dev.add_argument("--dir", type=Path, default=Path(".bloom"), metavar="DIR", help="where the data is kept (.bloom)")
    dev.add_argument("--port", type=int, metavar="PORT", help="port of the HTTP API (PORT, else 5000)")
    dev.add_argument("--bind", metavar="ADDRESS", help="address to listen on (127.0.0.1)")
    dev.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        help="listen beyond loopback without a key: anybody who reaches it may do everything",
    )
    dev.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which browsers may ask for it while no key is set; repeatable, * for any",
    )

    membridge = dev.add_mutually_exclusive_group()
    membridge.add_argument(
        "--membridge-port",
        type=int,
        metavar="PORT",
        help=f"port of the Membridge control plane that is served ({MEMBRIDGE_PORT}, or a free one)",
    )
    membridge.add_argument(
        "--no-membridge", action="store_true", help="serve no Membridge control plane: its routes answer 502"
    )

    check = command("check", "check the configuration, and report all its errors at once", _check)
    takes_file(check)
    check.add_argument("--print", action="store_true", dest="show", help="show every effective setting with its source")

    migrating = command(
        "migrate", "bring the database schema up to this version; adopts the database of the Node.js runtime", _migrate
    )
    takes_file(migrating)
    migrating.add_argument("--status", action="store_true", help="only tell what would be done")
    return parser


def _reader(options: argparse.Namespace) -> Callable[[], Loaded]:
    return partial(load, _file(options), environ=os.environ)


def _file(options: argparse.Namespace) -> Path | None:
    return options.config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)


def _run(options: argparse.Namespace) -> int:
    return _serve(_reader(options), config=_file(options))


def _serve(
    read: Callable[[], Loaded],
    *,
    embedded: Embedded | None = None,
    auto_migrate: bool = False,
    config: Path | None = None,
    membridge_binds: Binds | None = None,
    announce: Callable[[Node], None] | None = None,
) -> int:
    loaded = read()
    settings = loaded.settings
    logs = Logs(json=is_json(settings.log.format, os.environ.get("NODE_ENV") == "production"), level=settings.log.level)
    binds, membridge_binds = Binds(), membridge_binds or Binds("membridge.serve")
    control_socket = listener.bind(settings.control.socket, settings.control.group)
    try:
        binds.open(settings.http)
        membridge_binds.open(front_of_membridge(settings))
        daemon = Daemon(
            read,
            loaded,
            logs,
            control_socket=control_socket,
            binds=binds,
            membridge_binds=membridge_binds,
            embedded=embedded,
            auto_migrate=auto_migrate,
            config_option=f" -c {config}" if config else "",
        )
        trio.run(daemon.run, partial(announce, daemon.node) if announce else None)
    finally:
        binds.close_all()
        membridge_binds.close_all()
        listener.unbind(control_socket)
    return OK


def _dev(options: argparse.Namespace) -> int:
    directory: Path = options.dir.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(
            f"--dir: {directory} cannot be a directory: {error.strerror}; choose another one"
        ) from error
    embedded = None if os.environ.get("DATABASE_URL") else Embedded(directory / "postgres")
    preset: dict[str, object] = {
        "control.socket": str(directory / "bloomd.sock"),
        "http.session_secret": random_secrets.token_urlsafe(32),
    }
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
    return _serve(
        read,
        embedded=embedded,
        auto_migrate=True,
        membridge_binds=Binds("membridge.serve", membridge),
        announce=partial(_announce, embedded, chosen=options.membridge_port is not None),
    )


def _listen_for_membridge(taken: Sequence[str]) -> dict[str, socket.socket]:
    """A socket on the usual port, or on a free one when that is taken or about to be; with its address."""
    addresses = [parse_bind(bind) for bind in taken]
    usual = Tcp("127.0.0.1", MEMBRIDGE_PORT)
    ports = [0] if any(isinstance(each, Tcp) and each.overlaps(usual) for each in addresses) else [MEMBRIDGE_PORT, 0]
    for port in ports:
        with suppress(OSError):
            listening = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
            return {f"127.0.0.1:{listening.getsockname()[1]}": listening}
    raise Misconfigured("membridge.serve: 127.0.0.1 has no free port; free one, or say --no-membridge")


def _announce(embedded: Embedded | None, node: Node, *, chosen: bool) -> None:
    settings = node.settings
    if node.database.away:
        print(f"\n  bloomd serves, but not its database: {node.database.away}\n", flush=True)
        return
    [bind, *_] = settings.http.bind
    host, _, port = bind.rpartition(":")
    url = f"http://{host if host not in ('', '0.0.0.0', '[::]') else 'localhost'}:{port}"
    control_socket = settings.control.socket
    print(
        "\n".join(
            [
                "",
                "  bloomd is ready",
                "",
                f"  API        {url}/api/runtime/health",
                f"  Membridge  {_where_membridge_is(node, chosen=chosen)}",
                f"  socket     {control_socket}",
                f"  data       {embedded.cluster.directory if embedded else 'the database of DATABASE_URL'}",
                "  stop       Ctrl-C; the data stays",
                "",
                "  try next, in another terminal:",
                "",
                f"    {Path(sys.argv[0]).parent / 'bloomd-ctl'} -s {control_socket} status",
                f"    curl {url}/api/runtime/stats",
                "",
            ]
        ),
        flush=True,
    )


def _where_membridge_is(node: Node, *, chosen: bool) -> str:
    """Where the control plane is, and what a person would wonder about: `chosen` says that the port is no accident."""
    if not node.served.binds:
        return node.membridge.settings.server_url or "none: --no-membridge"
    url = url_of(node.served.binds[0])
    if node.membridge.settings.server_url != url:
        return f"{url}; not asked by this bloomd, which is to ask {node.membridge.settings.server_url}"
    if not chosen and not url.endswith(f":{MEMBRIDGE_PORT}"):
        return f"{url}, because port {MEMBRIDGE_PORT} is taken; --membridge-port chooses another one"
    return url


def _check(options: argparse.Namespace) -> int:
    loaded = _reader(options)()
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.show:
        settings = describe(loaded)
        width = max(len(setting.key) for setting in settings)
        for setting in settings:
            where = f" ({setting.where})" if setting.where else ""
            print(f"{setting.key:<{width}}  {setting.value}  # {setting.source}{where}")
    else:
        print("the configuration is good")
    return OK


def _migrate(options: argparse.Namespace) -> int:
    loaded = _reader(options)()
    return trio.run(_bring_up if not options.status else _show_schema, loaded)


async def _bring_up(loaded: Loaded) -> int:
    async with Pool(loaded.settings.database.url, size=1) as pool, pool.connection() as connection:
        with explained():
            done = await migrate(
                connection,
                MIGRATIONS,
                report=lambda line: print(f"  repaired: {line}"),
                applied=lambda migration: print(f"applied {migration.version:04} {migration.name}", flush=True),
            )
    print(f"the schema is at {MIGRATIONS[-1].version}" + ("" if done else ": nothing to do"))
    return OK


async def _show_schema(loaded: Loaded) -> int:
    """Exits with 1 when something is to be applied, so that a script can ask."""
    async with Pool(loaded.settings.database.url, size=1) as pool, pool.connection() as connection:
        with explained():
            schema = await status(connection, MIGRATIONS)
    print(f"the schema is at {schema.current}, this bloomd needs {schema.latest}")
    for migration in schema.pending:
        print(f"to apply: {migration.version:04} {migration.name}")
    if schema.newer:
        raise Misconfigured("the database is newer than this bloomd: install the version that migrated it")
    return PENDING if schema.pending else OK
