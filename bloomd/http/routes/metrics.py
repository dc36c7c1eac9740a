"""Prometheus metrics: what the node is now, and what it has counted.

In the text format, or in OpenMetrics for who asks for it (https://prometheus.io/docs/instrumenting/exposition_formats/).
What is read from the state of the node is read here, for each scrape; counters and histograms are kept where they are
counted: `bloomd.runtime.meters` and `bloomd.http.latency`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

import trio
from litestar import Response, get
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from bloomd import __version__
from bloomd.control.answers import Verdict
from bloomd.http.requests import Req, node_of
from bloomd.node import Node
from bloomd.probes import State as ProbeState
from bloomd.runtime.model import TaskStatus
from bloomd.runtime.stats import Stats
from bloomd.status import DATABASE_SECONDS, open_files, rss_bytes
from bloomd.supervisor import State
from bloomd.verdict import reasons, verdict

OPENMETRICS = "application/openmetrics-text"


@get("/metrics", summary="Prometheus metrics", opt={"media": ("text/plain", OPENMETRICS)})
async def metrics(request: Req) -> Response[bytes]:
    """What the database would tell is left out while it is away."""
    node = node_of(request)
    stats = await node.recent_stats(DATABASE_SECONDS)
    scrape = Scrape(
        [*_node(node), *((*_queue(stats), *_backup(node, stats)) if stats else ())],
        [node.database.meters.registry, request.app.state["latency"]],
    )
    # The library takes much of the header at its word; what it may hear is one of two.
    encode, content_type = choose_encoder(OPENMETRICS if OPENMETRICS in request.headers.get("accept", "") else "")
    # A thousand lines take ten milliseconds, for which the loop shall not stand still.
    text = await trio.to_thread.run_sync(encode, scrape)
    return Response(text, headers={"content-type": content_type})  # Litestar would name the charset of a text once more


class Scrape(Collector):
    """All that one scrape tells: what was read for it, and what others keep."""

    def __init__(self, read: Iterable[Metric], kept: Iterable[Collector]) -> None:
        self._read = read
        self._kept = kept

    def collect(self) -> Iterator[Metric]:
        yield from self._read
        for collector in self._kept:
            yield from collector.collect()


def _node(node: Node) -> Iterator[Metric]:
    services = node.root.status()
    yield InfoMetricFamily("bloomd", "What runs here.", value={"version": __version__, "node": node.name})
    judged = verdict(reasons(node))
    yield _gauges(
        "bloomd_verdict",
        "1 for the verdict of status.",
        "verdict",
        {each: each == judged for each in get_args(Verdict)},
    )
    yield _gauge("bloomd_uptime_seconds", "Since the start of the daemon.", node.uptime)
    yield _gauge("process_resident_memory_bytes", "Resident memory.", rss_bytes())
    yield _gauge("process_open_fds", "Open file descriptors.", open_files())
    yield _gauges(
        "bloomd_loop_lag_seconds",
        "How late the event loop was.",
        "window",
        {"now": node.lag.now, "1m_max": node.lag.worst},
    )
    yield _gauges(
        "bloomd_service_running",
        "Whether a service runs.",
        "service",
        {each.name: each.state is State.RUNNING for each in services},
    )
    restarts = CounterMetricFamily(
        "bloomd_service_restarts", "How often a service was started again after trouble.", labels=["service"]
    )
    for each in services:
        restarts.add_metric([each.name], each.restarts)
    yield restarts
    states = GaugeMetricFamily("bloomd_probe_state", "1 for the state of a dependency.", labels=["probe", "state"])
    for probe in node.probes:
        for state in get_args(ProbeState):
            states.add_metric([probe.status.name, state], float(probe.status.state == state))
    yield states
    leader = node.leadership.leader
    yield _gauge("bloomd_leader", "Whether this node is the one that sweeps and syncs.", bool(leader and leader.here))
    yield _gauge("bloomd_waiting_claims", "Claims that wait here for a task.", len(node.waiting_room))
    yield _gauge(
        "bloomd_objects_damaged", "Artifacts whose content was seen here to be damaged.", len(node.contents.damaged)
    )
    yield _gauge("bloomd_event_subscribers", "Readers that follow the events here.", node.feed.subscribers)
    if (last := node.sync.status.last_success) is not None:
        yield _gauge("bloomd_membridge_last_sync_timestamp_seconds", "When the last round succeeded.", last)
        yield _gauge("bloomd_membridge_sync_age_seconds", "Since the last round that succeeded.", time.time() - last)


def _queue(stats: Stats) -> Iterator[Metric]:
    yield _gauges(
        "bloomd_tasks",
        "Tasks by status.",
        "status",
        {**dict.fromkeys(get_args(TaskStatus), 0), **stats.by_status},
    )
    age = 0.0 if stats.oldest_queued_at is None else max(0.0, (stats.at - stats.oldest_queued_at) / 1000)
    yield _gauge("bloomd_oldest_queued_seconds", "Age of the oldest queued task; 0 for none.", age)
    yield _gauge("bloomd_queue_paused", "Whether the queue hands out nothing.", stats.paused)
    yield _gauge("bloomd_active_leases", "Leases held now.", stats.active_leases)
    yield _gauge("bloomd_leases_rescued_last_hour", "Leases that expired within the hour.", stats.rescued_last_hour)
    yield _gauges(
        "bloomd_workers",
        "Workers, and those that are online.",
        "state",
        {"known": stats.workers, "online": stats.workers_online},
    )
    yield _gauge(
        "bloomd_objects_to_move",
        "Contents to be moved, counted up to 10000.",
        stats.to_move,
    )
    yield _gauge("bloomd_objects_to_move_bytes", "Their size.", stats.to_move_bytes)
    yield _gauge("bloomd_objects_to_remove", "Objects to be removed, counted up to 10000.", stats.to_remove)
    yield _gauge("bloomd_capacity", "Leases that online workers may hold.", stats.capacity)


def _backup(node: Node, stats: Stats) -> Iterator[Metric]:
    known = stats.backup
    if node.settings.backup.schedule is None or known is None:
        return
    yield _gauge("bloomd_backup_failed", "Whether the latest scheduled backup failed.", known.failed)
    yield _gauge("bloomd_backup_missing_objects", "Objects that the latest one lacks or has damaged.", known.missing)
    yield _gauge(
        "bloomd_backup_verified_age_seconds",
        "Age of the last scheduled backup that was verified; without one, of the schedule.",
        known.age(stats.at),
    )


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=float(value))


def _gauges(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family


HANDLERS = [metrics]
