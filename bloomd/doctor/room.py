"""Disks and logs: whether there is room, and whether what is written can be kept."""

import os
import shlex
from pathlib import Path

import msgspec
import trio

from bloomd.doctor.case import Case
from bloomd.doctor.finding import Found, Skip, error, ok, warning

MIB, GIB = 1 << 20, 1 << 30

# Below this PostgreSQL cannot be relied upon to finish what it does; a warning comes while there is time to act.
FULL_BYTES = 512 * MIB
SCARCE_BYTES = 2 * GIB

# Rotated daily, not even a busy node's log grows to this.
LARGEST_LOG = 256 * MIB

# What the init systems make for bloomd.
HOME, LOGS = Path("/var/lib/bloomd"), Path("/var/log/bloomd")
# What rotates these logs, logrotate/bloomd, is there.
ROTATION = Path("/etc/logrotate.d/bloomd")

# Only of a server on this machine, and only shown to who may see all settings.
DATA_DIRECTORY = """
SELECT (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS path, quote_ident(current_user) AS role
 WHERE inet_server_addr() IS NULL OR inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1'
"""


class _Directory(msgspec.Struct, frozen=True):
    path: str | None
    role: str


async def data_disk(case: Case) -> Found:
    """PostgreSQL and bloomd have room for what they keep."""
    directories, nothing, unseen = [HOME], "no data is known to be on this machine", ""
    for found in await case.any_database.rows(_Directory, DATA_DIRECTORY) if case.server.known else ():
        if found.path is None:
            unseen = f"; PostgreSQL does not tell where its own is: GRANT pg_read_all_settings TO {found.role}"
        else:
            directories.append(Path(found.path))
    try:
        room = await trio.to_thread.run_sync(_room, directories, nothing, abandon_on_cancel=True)
    except Skip as reason:
        raise Skip(f"{reason}{unseen}") from None
    return msgspec.structs.replace(room, text=f"{room.text}{unseen}")


def log_disk(case: Case) -> Found:
    """The logs have room."""
    return _room(list(dict.fromkeys(file.parent for file in _log_files(case))), "no log is known to be in a file")


def logs_writable(case: Case) -> Found:
    """What the daemon writes goes into a file that people can find."""
    user = case.user
    for file in _log_files(case):
        if str(file).endswith(" (deleted)"):
            return error(f"the log goes to a file that was deleted, {str(file)[:-10]}", "restart bloomd")
        if not file.parent.is_dir():
            made = f"install -d -o {user.name} -g {user.group} -m 0750 {shlex.quote(str(file.parent))}"
            return error(f"there is no log directory {file.parent}", made)
        if not user.may_write(file if file.exists() else file.parent):
            return error(
                f"the user {user.name} may not write {file}",
                f"chown {user.name} {shlex.quote(str(file))}",
            )
    return ok("the logs can be written")


def logs_rotated(case: Case) -> Found:
    """The logs do not grow for ever."""
    sizes = {file: file.stat().st_size for file in _log_files(case) if file.exists()}
    large = [file for file, size in sizes.items() if size > LARGEST_LOG]
    fix = f"install logrotate, with bloomd's logrotate/bloomd as {ROTATION}"
    if large:
        return warning(f"{large[0]} has {sizes[large[0]] // MIB} MiB: nobody seems to rotate it", fix)
    if any(file.parent == LOGS for file in sizes) and not ROTATION.exists():
        return warning(f"nothing rotates the logs in {LOGS}: there is no {ROTATION}", fix)
    return ok(f"no log is larger than {LARGEST_LOG // MIB} MiB")


def _log_files(case: Case) -> list[Path]:
    """Where the daemon says that it writes; else what lies where the init systems have it write."""
    if case.status.known:
        files = [Path(file) for file in case.of_process("log_files")]
        if not files:
            raise Skip("the daemon writes its logs to no file: the init system has them")
        return files
    files = sorted(LOGS.glob("*.log")) if LOGS.is_dir() else []
    if not files:
        raise Skip(f"no daemon answers, and there are no logs in {LOGS}")
    return files


def _room(directories: list[Path], nothing: str) -> Found:
    free, worst = min(filter(None, map(_free, directories)), default=(0, None))
    if worst is None:
        raise Skip(nothing)
    text = f"{free / GIB:.1f} GiB are free for {worst}"
    if free < FULL_BYTES:
        return error(text, f"make room: df -h {shlex.quote(str(worst))}")
    if free < SCARCE_BYTES:
        return warning(f"only {text}", f"make room: df -h {shlex.quote(str(worst))}")
    return ok(text)


def _free(directory: Path) -> tuple[int, Path] | None:
    """What is free there, or at the nearest directory above to which we get; None where there is no such directory."""
    for place in (directory, *directory.parents):
        try:
            room = os.statvfs(place)
        except PermissionError:
            continue
        except (FileNotFoundError, NotADirectoryError):
            return None
        return room.f_bavail * room.f_frsize, place
    return None
