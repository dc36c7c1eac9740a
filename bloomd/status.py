"""The state of a whole node as one plain value: what `bloomd-ctl status` prints and health is made from."""

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

from bloomd import __version__
from bloomd.control.answers import LastReload, Probe, Process, Queue, Service, Status, Sync, Verdict, Workers
from bloomd.node import Node
from bloomd.probes import ProbeStatus
from bloomd.runtime.stats import Stats
from bloomd.supervisor import ServiceStatus, State

# Raised when a field changes its meaning or goes away; new fields do not count.
SCHEMA = 1

# A loop that was this late within the last minute kept everybody waiting for a time that a person notices.
LAGGING_SECONDS = 1.0

# What a status may wait for the database, which may be frozen; the rest of the status needs none.
DATABASE_SECONDS = 1.0


async def status(node: Node) -> Status:
    """Look at everything. Takes at most `DATABASE_SECONDS`, however frozen the database is."""
    stats = await node.recent_stats(DATABASE_SECONDS)
    services = node.root.status()
    verdict, reasons = judge(node, services)
    return Status(
        schema=SCHEMA,
        verdict=verdict,
        reasons=reasons,
        notices=notices(node),
        services=[service(each) for each in services],
        probes=[probe(each.status) for each in node.probes],
        queue=_queue(stats) if stats else None,
        workers=_workers(stats) if stats else None,
        sync=_sync(node),
        process=_process(node),
        reload=_last_reload(node),
        next=_next(node, services),
    )


def judge(node: Node, services: Sequence[ServiceStatus]) -> tuple[Verdict, list[str]]:
    """The verdict and its reasons, the worst first."""
    reasons: list[str] = []
    down = False
    for each in services:
        if each.name == "http" and each.state is State.FAILED:
            down = True
            reasons.append(f"http has failed: {each.last_error}")
        elif each.name == "database" and each.state is not State.RUNNING:
            down = True
            reasons.insert(0, f"PostgreSQL is not up: {each.last_error or each.cause or each.state.value}")
        elif each.state is not State.RUNNING:
            what = "stopped by hand" if each.by_hand else each.state.value
            cause = each.last_error or each.cause
            reasons.append(f"{each.name} is {what}" + (f": {cause}" if cause and not each.by_hand else ""))
    reasons += [
        f"{probe.status.name} is down: {probe.status.error}" for probe in node.probes if probe.status.state == "down"
    ]
    if node.lag.worst >= LAGGING_SECONDS:
        reasons.append(f"the event loop was {node.lag.worst:.1f} s late within the last minute")
    if node.last_reload and not node.last_reload.ok:
        reasons.append(f"the last reload failed: {node.last_reload.summary}")
    return "down" if down else "degraded" if reasons else "ok", reasons


def notices(node: Node) -> list[str]:
    return list(node.loaded.warnings)


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


def probe(status: ProbeStatus) -> Probe:
    return Probe(
        name=status.name,
        state=status.state,
        last_ok=status.last_ok,
        p50_ms=status.p50_ms,
        p99_ms=status.p99_ms,
        failures=status.failures,
        error=status.error,
    )


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # but for the one that lists them


def _queue(stats: Stats) -> Queue:
    oldest = stats.oldest_queued_at
    return Queue(
        by_status=stats.by_status,
        oldest_queued_seconds=None if oldest is None else max(0.0, (stats.at - oldest) / 1000),
        active_leases=stats.active_leases,
        rescued_last_hour=stats.rescued_last_hour,
    )


def _workers(stats: Stats) -> Workers:
    return Workers(total=stats.workers, online=stats.workers_online, capacity=stats.capacity, busy=stats.active_leases)


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
    )


def _last_reload(node: Node) -> LastReload | None:
    last = node.last_reload
    return LastReload(at=last.at, ok=last.ok, summary=last.summary) if last else None


def _next(node: Node, services: Sequence[ServiceStatus]) -> str | None:
    for each in services:
        if each.state is State.FAILED:
            return f"bloomd-ctl restart {each.name}"
        if each.by_hand:
            return f"bloomd-ctl start {each.name}"
    if node.last_reload and not node.last_reload.ok:
        return "bloomd-ctl reload"
    for each in node.probes:
        if each.status.state == "down":
            return f"bloomd-ctl probe {each.status.name}"
    return None
