"""The state of a whole node as one plain value: what `bloomd-ctl status` prints and health is made from."""

import os
import resource
import stat
import time
from pathlib import Path

from bloomd import __version__
from bloomd.backup.schedule import next_at
from bloomd.control.answers import (
    Backup,
    ClockJump,
    LastReload,
    Leader,
    Objects,
    Pause,
    Probe,
    Process,
    Queue,
    Round,
    Service,
    Status,
    Sync,
    Workers,
)
from bloomd.node import Node
from bloomd.probes import Probe as Watch
from bloomd.runtime.stats import Stats
from bloomd.settings.check import without_key
from bloomd.supervisor import ServiceStatus
from bloomd.verdict import reasons, verdict

# Raised when a field changes its meaning or goes away; new fields do not count.
SCHEMA = 1

ONLY_WORKERS = (
    "there are worker tokens but no API key, so nobody but workers is let in: `bloomd-ctl key add NAME` makes one"
)

# What a status may wait for the database, which may be frozen; the rest of the status needs none.
DATABASE_SECONDS = 1.0


async def status(node: Node) -> Status:
    """Look at everything. Takes at most `DATABASE_SECONDS`, however frozen the database is."""
    stats = await node.recent_stats(DATABASE_SECONDS)
    found = reasons(node)
    return Status(
        schema=SCHEMA,
        verdict=verdict(found),
        reasons=[reason.text for reason in found],
        notices=notices(node, stats),
        services=[service(each) for each in node.root.status()],
        probes=[probe(each) for each in node.probes],
        queue=_queue(stats) if stats else None,
        workers=_workers(stats) if stats else None,
        leader=_leader(node),
        sync=_sync(node),
        objects=_objects(node, stats) if stats and node.settings.minio.endpoint else None,
        backup=_backup(node, stats) if stats else None,
        process=_process(node),
        reload=_last_reload(node),
        next=next((reason.next for reason in found if reason.next), None),
    )


def notices(node: Node, stats: Stats | None = None) -> list[str]:
    """What an operator should know although nothing is wrong; of what is counted, if that is known."""
    about_no_key = without_key(node.settings)
    found = [notice for notice in node.loaded.warnings if node.keys.empty or notice not in about_no_key]
    if about_no_key and not node.keys.known:
        found.append("whether there are API keys is not known yet, so whatever needs one is answered 503")
    if node.keys.only_workers(node.settings.http.api_key):
        found.append(ONLY_WORKERS)
    if node.logs.level != node.settings.log.level:
        found.append(f"the log level is {node.logs.level} until the next reload")
    if damaged := sorted(node.contents.damaged):
        found.append(f"the content of {', '.join(damaged[:3])}{' and others' * (len(damaged) > 3)} is damaged")
    if stats and stats.backup and node.settings.backup.schedule is not None:
        concern = stats.backup.concern(stats.at, warn_after_days=node.settings.backup.warn_after_days)
        found += [concern] if concern else []
    if node.pending_restart:
        found.append(f"changed, and in force after a restart of bloomd: {', '.join(sorted(node.pending_restart))}")
    return found


def services(node: Node, path: str) -> list[Service]:
    """The service with this path, and those below it."""
    return [service(each) for each in node.root.status() if each.name == path or each.name.startswith(f"{path}/")]


def service(status: ServiceStatus) -> Service:
    return Service(
        name=status.name,
        state=status.state.value,
        since=status.since,
        cause=status.cause,
        restarts=status.restarts,
        retry_in=status.retry_in,
        last_error=status.last_error,
        essential=status.essential,
        by_hand=status.by_hand,
    )


def probe(watch: Watch) -> Probe:
    status = watch.status
    return Probe(
        name=status.name,
        state=status.state,
        last_ok=status.last_ok,
        p50_ms=status.p50_ms,
        p99_ms=status.p99_ms,
        failures=status.failures,
        error=status.error,
        history=[Round(at=each.at, ms=each.ms) for each in watch.history],
    )


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # but for the one that lists them


def log_files() -> list[str]:
    """What the init system, or whoever started us, lets stdout and stderr go to, as far as that is a file."""
    files = [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2) if stat.S_ISREG(os.fstat(number).st_mode)]
    return list(dict.fromkeys(files))


def _queue(stats: Stats) -> Queue:
    oldest = stats.oldest_queued_at
    return Queue(
        by_status=stats.by_status,
        oldest_queued_seconds=None if oldest is None else max(0.0, (stats.at - oldest) / 1000),
        active_leases=stats.active_leases,
        rescued_last_hour=stats.rescued_last_hour,
        pause=_pause(stats),
    )


def _pause(stats: Stats) -> Pause | None:
    if not stats.paused:
        return None
    until = stats.paused_until
    return Pause(until=None if until is None else until / 1000, reason=stats.pause_reason)


def _workers(stats: Stats) -> Workers:
    return Workers(
        total=stats.workers,
        online=stats.workers_online,
        capacity=stats.capacity,
        busy=stats.active_leases,
        free=stats.free,
        cordoned=stats.cordoned,
        draining=stats.draining,
    )


def _leader(node: Node) -> Leader | None:
    leader = node.leadership.leader
    if leader is None:
        return None
    return Leader(node=leader.node, epoch=leader.epoch, since=leader.since / 1000, here=leader.here)


def _sync(node: Node) -> Sync:
    sync = node.sync.status
    return Sync(
        configured=node.membridge.configured,
        last_success=sync.last_success,
        age_seconds=None if sync.last_success is None else time.time() - sync.last_success,
        failures=sync.failures,
        error=sync.error,
        agents=sync.agents,
    )


def _objects(node: Node, stats: Stats) -> Objects:
    return Objects(
        to_move=stats.to_move,
        to_move_bytes=stats.to_move_bytes,
        to_remove=stats.to_remove,
        damaged=sorted(node.contents.damaged),
    )


def _backup(node: Node, stats: Stats) -> Backup | None:
    at, known = node.settings.backup.schedule, stats.backup
    if at is None:
        return None
    return Backup(
        next=next_at(at, time.time(), known),
        since=known.started_at / 1000 if known and known.under_way and known.started_at else None,
        verified_age_seconds=known.age(stats.at) if known and known.verified_from is not None else None,
        file=known and known.file,
        node=known and known.node,
        bytes=known and known.bytes,
        missing=known.missing if known else 0,
        error=known and known.error,
    )


def _process(node: Node) -> Process:
    return Process(
        pid=os.getpid(),
        uptime_seconds=node.uptime,
        version=__version__,
        schema=node.database.schema,
        rss_bytes=rss_bytes(),
        open_files=open_files(),
        open_files_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        loop_lag_ms=round(node.lag.now * 1000, 1),
        loop_lag_worst_ms=round(node.lag.worst * 1000, 1),
        node=node.name,
        clock_jumps=[ClockJump(at=jump.at, seconds=round(jump.seconds, 3)) for jump in node.wall_clock.jumps],
        notifications=node.notifications,
        log_files=log_files(),
    )


def _last_reload(node: Node) -> LastReload | None:
    last = node.last_reload
    return LastReload(at=last.at, ok=last.ok, summary=last.summary) if last else None
