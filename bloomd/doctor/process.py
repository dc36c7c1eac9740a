"""The running daemon, as it tells of itself over its control socket."""

import time
from pathlib import Path

import trio

from bloomd import __version__
from bloomd.control.answers import ClockJump
from bloomd.doctor.case import Case, Stuck
from bloomd.doctor.finding import Found, Skip, error, ok, warning
from bloomd.errors import Unavailable, one_line
from bloomd.runtime.wakeups import CHANGES

# Each client, worker and database connection is an open file; the init scripts allow 16384.
FEWEST_FILES = 4096
# Of what is allowed.
MOST_FILES = 0.8

# A loop that was this late within the last minute had somebody wait; the second one a person notices.
LATE_MS, STALLED_MS = 250.0, 1000.0

# A notification takes milliseconds.
ARRIVES_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 0.05

DAY = 86400

# What a check of another name reports.
ELSEWHERE = frozenset({"notifications", "leader-election", "membridge-sync"})

# As a node that has changed something says it; whoever hears it looks, and finds nothing new.
NOTIFY = "SELECT pg_notify(%(channel)s, 'doctor change')::text AS sent"


def running(case: Case) -> Found:
    """The daemon answers, and is the one that is installed."""
    trouble = case.status.trouble
    if trouble is None:
        process = case.status.value["process"]
        if process["version"] != __version__:
            return warning(f"bloomd {process['version']} runs, and {__version__} is installed", _init("restart"))
        return ok(f"bloomd {process['version']} runs, pid {process['pid']}")
    if not isinstance(trouble, Unavailable):
        return warning(
            f"the daemon may not be asked: {one_line(trouble)}", f"run it as root: sudo bloomd doctor{case.option}"
        )
    if isinstance(trouble, Stuck):
        return error(one_line(trouble), _init("restart"))
    return warning(one_line(trouble), _init("start"))


def services(case: Case) -> Found:
    """Every service of the daemon runs."""
    services = {each["name"]: each for each in case.status.value["services"] if each["state"] != "running"}
    if "database" in services:
        services = {name: each for name, each in services.items() if name == "database" or each["state"] == "failed"}
        if case.server.troubled or not case.schema.known or case.schema.value.pending:
            del services["database"]
    troubled = [each for name, each in services.items() if name not in ELSEWHERE]
    if not troubled:
        return ok("every service runs, as far as no other check says otherwise")
    worst = next((each for each in troubled if each["state"] == "failed"), troubled[0])
    why = "stopped by hand" if worst["by_hand"] else worst["last_error"] or worst["cause"]
    text = f"{worst['name']} is {worst['state']}: {why}"
    if len(troubled) > 1:
        text += f" (and {len(troubled) - 1} more)"
    fix = f"bloomd-ctl {'start' if worst['by_hand'] else 'restart'} {worst['name']}"
    return error(text, fix) if worst["state"] == "failed" else warning(text, fix)


async def notifications(case: Case) -> Found:
    """What is notified in the database arrives in the daemon."""
    case.need_service("database")
    before: int = case.of_process("notifications")
    await case.any_database.execute(NOTIFY, channel=CHANGES)
    with trio.move_on_after(ARRIVES_SECONDS):
        while True:
            if (await case.ask_daemon())["process"]["notifications"] > before:
                return ok("notifications of PostgreSQL arrive")
            await trio.sleep(LOOK_AGAIN_SECONDS)
    return error(
        "notifications of PostgreSQL do not arrive: what happens on one node is noticed late on others",
        "bloomd-ctl restart notifications; behind pgBouncer, pool_mode = session",
    )


def loop_lag(case: Case) -> Found:
    """The event loop is never late."""
    worst = case.status.value["process"]["loop_lag_worst_ms"]
    if worst < LATE_MS:
        return ok(f"the event loop was never more than {worst:.0f} ms late within the last minute")
    text = f"the event loop was {worst / 1000:.1f} s late within the last minute"
    fix = "see what else uses this machine's processors: top"
    return error(text, fix) if worst >= STALLED_MS else warning(text, fix)


def clock_jumps(case: Case) -> Found:
    """Nobody has set the clock of this machine."""
    told: list[ClockJump] = case.of_process("clock_jumps")
    jumps = [jump for jump in told if jump["at"] > time.time() - DAY]
    if not jumps:
        return ok("the clock of this machine has not jumped")
    last = jumps[-1]
    way = "forward" if last["seconds"] > 0 else "back"
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(last["at"]))
    often = "" if len(jumps) == 1 else f", the last of {len(jumps)} jumps within a day"
    return warning(
        f"the clock of this machine jumped {way} by {abs(last['seconds']):.0f} s at {at}{often}",
        "let NTP keep the time, and nobody else set it: rc-service chronyd start",
    )


def open_files(case: Case) -> Found:
    """There are open files to be had."""
    process = case.status.value["process"]
    used, limit = process["open_files"], process["open_files_limit"]
    text = f"{used} of {limit} files are open"
    fix = 'allow more: rc_ulimit="-n 16384" in /etc/conf.d/bloomd, or LimitNOFILE=16384 by systemctl edit bloomd'
    if used > MOST_FILES * limit:
        return error(text, fix)
    return ok(text) if limit >= FEWEST_FILES else warning(f"{text}, which a fleet of workers uses up", fix)


def last_reload(case: Case) -> Found:
    """The settings that the daemon has are those that somebody last gave it."""
    reload = case.status.value["reload"]
    if reload is None:
        raise Skip("nobody has reloaded it since it started")
    if reload["ok"]:
        return ok(f"the last reload went well: {reload['summary']}")
    return error(
        f"the last reload failed, and the old settings are in force: {reload['summary']}",
        f"bloomd check{case.option}, then bloomd-ctl reload",
    )


def _init(action: str) -> str:
    """The command of this machine's init system."""
    return f"systemctl {action} bloomd" if Path("/run/systemd/system").is_dir() else f"rc-service bloomd {action}"
