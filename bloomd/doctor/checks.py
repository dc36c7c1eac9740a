"""The table of all checks, in the order in which a person reads them, and how they are run."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import psycopg
import trio
from psycopg.errors import InsufficientPrivilege

from bloomd.doctor import files, fleet, front, keys, peers, postgres, process, room, sockets
from bloomd.doctor.case import Case
from bloomd.doctor.fact import SECONDS
from bloomd.doctor.finding import NOT_PERMITTED, Finding, Found, Skip, error
from bloomd.doctor.gather import gathered
from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.settings import Loaded

Check = Callable[[Case], Found | Awaitable[Found]]
"""A plain function may block: it runs in a thread of its own."""

# By subject and name. The names are for scripts as well: one may be added, none changes its meaning.
CHECKS: Mapping[str, Mapping[str, Check]] = {
    "files": {
        "settings.file": files.settings_file,
        "settings.hidden": files.hidden_settings,
        "secrets.mode": files.secrets_mode,
        "env_file.mode": files.env_file_mode,
        "socket.directory": sockets.directory,
        "socket.group": sockets.group,
        "disk.data": room.data_disk,
        "disk.logs": room.log_disk,
        "logs.writable": room.logs_writable,
        "logs.rotated": room.logs_rotated,
    },
    "postgresql": {
        "postgres.reachable": postgres.reachable,
        "postgres.version": postgres.version,
        "postgres.privileges": postgres.privileges,
        "postgres.fsync": postgres.durable,
        "postgres.schema": postgres.schema,
        "postgres.time": postgres.clock,
    },
    "membridge and minio": {
        "membridge.reachable": peers.membridge_reachable,
        "membridge.time": peers.membridge_time,
        "membridge.key": peers.membridge_key,
        "minio.reachable": peers.minio_reachable,
        "minio.time": peers.minio_time,
        "minio.bucket": peers.minio_bucket,
    },
    "the way in": {
        "http.port": front.port,
        "http.open": keys.open_to_all,
        "keys.weak": keys.weak,
        "nginx.answers": front.nginx_answers,
        "nginx.client_address": front.nginx_client_address,
        "nginx.certificate": front.nginx_certificate,
        "public_url.reachable": front.public_url,
    },
    "the daemon": {
        "daemon.running": process.running,
        "daemon.services": process.services,
        "reload.last": process.last_reload,
        "notifications": process.notifications,
        "loop.lag": process.loop_lag,
        "clock.jumps": process.clock_jumps,
        "limits.open_files": process.open_files,
    },
    "the work": {
        "leader.present": fleet.leader_present,
        "workers.silent": fleet.workers_silent,
        "agents.key": fleet.agents_key,
        "queue.stuck": fleet.queue_stuck,
        "leases.rescued": fleet.leases_rescued,
        "backup.age": fleet.backup_age,
    },
}


async def run(read: Callable[[], Loaded], *, config: Path | None = None, option: str = "") -> list[Finding]:
    """Make every check on the node that has these settings; the findings in the order of the table.

    Takes seconds, whatever hangs.

    Args:
        read: reads the settings.
        config: the file from which it does.
        option: how a command is told so, with a blank before it: ` -c FILE`.
    """
    found: dict[str, Found] = {}

    async def note(name: str, check: Check) -> None:
        found[name] = await _answer(check, case)

    async with gathered(read, config=config, option=option) as case, trio.open_nursery() as nursery:
        for checks in CHECKS.values():
            for name, check in checks.items():
                nursery.start_soon(note, name, check)
    return [
        Finding(name, subject, found[name].state, found[name].text, found[name].fix)
        for subject, checks in CHECKS.items()
        for name in checks
    ]


async def _answer(check: Check, case: Case) -> Found:
    with trio.move_on_after(SECONDS):
        try:
            if inspect.iscoroutinefunction(check):
                return await cast("Callable[[Case], Awaitable[Found]]", check)(case)
            return await trio.to_thread.run_sync(
                partial(cast("Callable[[Case], Found]", check), case), abandon_on_cancel=True
            )
        except Skip as reason:
            return Found("skipped", str(reason))
        except InsufficientPrivilege:
            return Found("skipped", NOT_PERMITTED)
        except (Unavailable, Misconfigured, psycopg.Error, OSError) as trouble:
            return error(f"it could not be looked at: {one_line(trouble)}", "see bloomd-ctl status")
        except Exception as bug:  # the other checks are still worth having
            return error(f"this check has a bug: {type(bug).__name__}", "report it")
    return error(f"it could not be looked at within {SECONDS:g} s", "see bloomd-ctl status")
