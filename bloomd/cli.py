"""`bloomd`: run, dev, check, doctor, migrate, backup, restore, worker.

A worker's machine has this command, too, but not what a daemon imports (`http/install`): so that is imported by the
commands that need it.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bloomd import __version__
from bloomd.backup.options import BACKUP, BACKUP_MORE, RESTORE, RESTORE_MORE, takes_backup, takes_restore
from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.membridge import USUAL_PORT
from bloomd.settings import Loaded, SettingsError, describe, load
from bloomd.settings.check import without_key
from bloomd.supervisor import EssentialServiceFailed

# From sysexits.h, so that an init system or a script can tell them apart.
OK, USAGE, UNAVAILABLE, TEMPORARY_FAILURE, BAD_CONFIGURATION = 0, 64, 69, 75, 78

DEFAULT_FILE = Path("/etc/bloomd/bloomd.yaml")

_EPILOG = {
    "run": "example: bloomd run -c /etc/bloomd/bloomd.yaml",
    "dev": "example: bloomd dev --port 5055 --dir /tmp/bloom",
    "check": "example: bloomd check -c bloomd.yaml --print",
    "doctor": "exit codes: 0 all is well, 1 there are warnings, 2 there are errors; example: bloomd doctor -v",
    "migrate": "example: bloomd migrate --to 0 --status",
    "backup": "example: bloomd backup -o /var/backups/bloomd.tar",
    "restore": "example: bloomd restore /var/backups/bloomd.tar --dry-run",
    "worker": "example: bloomd worker --server https://bloom.example.org --token-file token --max-concurrency 2",
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

    def command(
        name: str, help: str, function: Callable[[argparse.Namespace], int], more: str = ""
    ) -> argparse.ArgumentParser:
        description = f"{help[0].upper()}{help[1:]}. {more}".strip()
        added = commands.add_parser(name, help=help, description=description, epilog=_EPILOG[name])
        added.set_defaults(command=function)
        return added

    def takes_file(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "-c", "--config", type=Path, metavar="FILE", help=f"the configuration ({DEFAULT_FILE} when there is one)"
        )

    def takes_env_file(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "--env-file",
            type=Path,
            metavar="FILE",
            help="the env_file of a configuration that names none; it need not be there",
        )

    run = command(
        "run",
        "run the daemon in the foreground, as an init system wants it",
        _run,
        "A database whose schema is too old or too new is reported, with the command that helps, and not touched.",
    )
    takes_file(run)
    takes_env_file(run)

    dev = command(
        "dev",
        "run everything on this machine, with a PostgreSQL of its own",
        _dev,
        "It is for trying and developing: the schema is brought up by itself, a Membridge control plane is served, and "
        "nobody needs a key unless RUNTIME_API_KEY is set.",
    )
    dev.add_argument(
        "--dir",
        type=Path,
        default=Path(".bloom"),
        metavar="DIR",
        help="where the data and the control socket are (.bloom)",
    )
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
    dev.add_argument(
        "--worker",
        action="store_true",
        help="work on this machine as well, with its Claude CLI: as the worker local, with two places",
    )
    membridge = dev.add_mutually_exclusive_group()
    membridge.add_argument(
        "--membridge-port",
        type=int,
        metavar="PORT",
        help=f"port of the Membridge control plane that is served ({USUAL_PORT}, or a free one)",
    )
    membridge.add_argument(
        "--no-membridge", action="store_true", help="serve no Membridge control plane: its routes answer 502"
    )

    check = command(
        "check",
        "check the configuration, and report all its errors at once",
        _check,
        "Each error has its file, line and column.",
    )
    takes_file(check)
    takes_env_file(check)
    check.add_argument(
        "--print",
        action="store_true",
        dest="show",
        help="show every effective setting with its source; secrets are masked",
    )

    doctor = command("doctor", "look for whatever is wrong with this node, and say what mends it", _doctor)
    takes_file(doctor)
    takes_env_file(doctor)
    doctor.add_argument(
        "-o", "--output", choices=["text", "json"], default="text", help="how to print it (default: text)"
    )
    doctor.add_argument("-v", "--verbose", action="store_true", help="show also what is well or was not looked at")
    doctor.add_argument(
        "--objects",
        action="store_true",
        help="compare the object store with the database instead: orphans (exit code 1), missing objects (2)",
    )
    doctor.add_argument("--fix", action="store_true", help="with --objects: have the leader remove the orphans")

    migrating = command(
        "migrate",
        "bring the database schema up to this version; adopts the database of the Node.js runtime",
        _migrate,
        "It may be repeated, and several machines may do it at once. What had to be repaired is reported. With --to it "
        "also leads back, while no bloomd is running.",
    )
    takes_file(migrating)
    takes_env_file(migrating)
    migrating.add_argument("--status", action="store_true", help="only tell what would be done")
    migrating.add_argument(
        "--to",
        type=int,
        metavar="N",
        help="bring the schema to version N, forward or back; 0 is the schema of the Node.js runtime",
    )
    migrating.add_argument("--yes", action="store_true", help="do not ask before something is lost on the way back")

    backup = command("backup", BACKUP, _backup, BACKUP_MORE)
    takes_file(backup)
    takes_env_file(backup)
    takes_backup(backup)
    restore = command("restore", RESTORE, _restore, RESTORE_MORE)
    takes_env_file(restore)
    takes_restore(restore)

    working = command(
        "worker",
        "do the tasks of a bloomd on this machine, with the Claude CLI",
        _worker,
        "bloomd-worker(8) has the details.",
    )
    takes_file(working)
    working.add_argument("--server", metavar="URL", help="the bloomd that it works for")
    working.add_argument("--name", metavar="NAME", help="its name there (the name of this machine)")
    working.add_argument(
        "--token-file",
        metavar="FILE",
        help="a file that holds its token, or an API key; not needed without authentication",
    )
    working.add_argument("--max-concurrency", type=int, metavar="N", help="tasks that it runs at once, 1 to 32 (1)")
    working.add_argument(
        "--label",
        action="append",
        dest="labels",
        metavar="LABEL",
        help="what this machine has: a task that asks for a label goes only to workers with it; repeatable",
    )
    working.add_argument("--root", metavar="DIR", help="where it works (/var/lib/bloomd-worker)")
    return parser


def _reader(options: argparse.Namespace) -> Callable[[], Loaded]:
    def read() -> Loaded:
        return load(_file(options), environ=os.environ, preset=_env_file(options.env_file))

    return read


def _env_file(file: Path | None) -> dict[str, object]:
    """What the configuration may leave unsaid; looked at anew for each reload."""
    try:
        found = file is not None and file.stat()
    except FileNotFoundError:
        return {}
    except OSError:  # reading it will say what is wrong
        found = True
    return {"env_file": str(file)} if found else {}


def _file(options: argparse.Namespace) -> Path | None:
    return options.config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)


def _config_option(options: argparse.Namespace) -> str:
    """What another command is to be given, so that it reads the same settings."""
    named = {"-c": _file(options), "--env-file": options.env_file}
    return "".join(f" {name} {shlex.quote(str(file))}" for name, file in named.items() if file)


def _run(options: argparse.Namespace) -> int:
    from bloomd.serving import serve

    serve(_reader(options), config_option=_config_option(options))
    return OK


def _dev(options: argparse.Namespace) -> int:
    from bloomd.serving import dev

    dev(options)
    return OK


def _worker(options: argparse.Namespace) -> int:
    from bloomd.worker.main import main

    keys = ("server", "name", "token_file", "max_concurrency", "labels", "root")
    told = {f"worker.{key}": value for key in keys if (value := getattr(options, key)) is not None}
    main(load(_file(options), environ=os.environ, options=told))
    return OK


def _backup(options: argparse.Namespace) -> int:
    from bloomd.backup.command import backup

    return backup(_reader(options), _file(options), options)


def _restore(options: argparse.Namespace) -> int:
    from bloomd.backup.command import restore

    return restore(_reader(options), options)


def _check(options: argparse.Namespace) -> int:
    loaded = _reader(options)()
    # Whether there are named keys, which make it good, the daemon knows; until it has one, it serves this machine only.
    uncertain = [] if loaded.settings.http.allow_unauthenticated else without_key(loaded.settings)
    for warning in loaded.warnings:
        if warning not in uncertain:
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


def _doctor(options: argparse.Namespace) -> int:
    if options.objects:
        from bloomd.doctor.objects import main as compare

        return compare(_reader(options), fix=options.fix, output=options.output)
    if options.fix:
        print("bloomd doctor: --fix goes with --objects", file=sys.stderr)
        return USAGE
    from bloomd.doctor.report import main

    option = _config_option(options)
    return main(_reader(options), config=_file(options), option=option, output=options.output, verbose=options.verbose)


def _migrate(options: argparse.Namespace) -> int:
    from bloomd import migrating

    loaded = _reader(options)()
    if options.status:
        return migrating.show(loaded, options.to)
    return migrating.bring(loaded, options.to, yes=options.yes)
