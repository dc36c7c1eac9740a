"""Prometheus metrics, in its text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from collections.abc import Iterator

from litestar import Response, get

from bloomd import __version__
from bloomd.http.observe import RequestCounts
from bloomd.http.requests import Req, node_of
from bloomd.node import Node
from bloomd.runtime.stats import Stats
from bloomd.status import DATABASE_SECONDS, open_files, rss_bytes
from bloomd.supervisor import State
from bloomd.verdict import reasons, verdict

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_PROBE_STATES = ("up", "down", "unknown", "disabled")


@get("/metrics", summary="Prometheus metrics")
async def metrics(request: Req) -> Response[str]:
    """What the database would tell is left out while it is away."""
    node = node_of(request)
    stats = await node.recent_stats(DATABASE_SECONDS)
    lines = [*_node(node), *(_queue(stats) if stats else ()), *_requests(request.app.state["counts"])]
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _metric(name: str, kind: str, help: str, samples: dict[str, float]) -> Iterator[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples.items():
        yield f"{name}{labels} {value:.10g}"


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items()) + "}"


def _node(node: Node) -> Iterator[str]:
    services = node.root.status()
    judged = verdict(reasons(node))
    yield from _metric("bloomd_info", "gauge", "What runs here.", {_labels(version=__version__, node=node.name): 1})
    yield from _metric(
        "bloomd_verdict",
        "gauge",
        "1 for the verdict of status.",
        {_labels(verdict=each): float(each == judged) for each in ("ok", "degraded", "down")},
    )
    yield from _metric("bloomd_uptime_seconds", "gauge", "Since the start of the daemon.", {"": node.uptime})
    yield from _metric("process_resident_memory_bytes", "gauge", "Resident memory.", {"": rss_bytes()})
    yield from _metric("process_open_fds", "gauge", "Open file descriptors.", {"": open_files()})
    yield from _metric(
        "bloomd_loop_lag_seconds",
        "gauge",
        "How late the event loop was.",
        {_labels(window="now"): node.lag.now, _labels(window="1m_max"): node.lag.worst},
    )
    yield from _metric(
        "bloomd_service_running",
        "gauge",
        "Whether a service runs.",
        {_labels(service=each.name): float(each.state is State.RUNNING) for each in services},
    )
    yield from _metric(
        "bloomd_service_restarts_total",
        "counter",
        "How often a service was started again after trouble.",
        {_labels(service=each.name): each.restarts for each in services},
    )
    yield from _metric(
        "bloomd_probe_state",
        "gauge",
        "1 for the state of a dependency.",
        {
            _labels(probe=probe.status.name, state=state): float(probe.status.state == state)
            for probe in node.probes
            for state in _PROBE_STATES
        },
    )
    if (last := node.sync.status.last_success) is not None:
        yield from _metric(
            "bloomd_membridge_last_sync_timestamp_seconds", "gauge", "When the last round succeeded.", {"": last}
        )


def _queue(stats: Stats) -> Iterator[str]:
    yield from _metric(
        "bloomd_tasks",
        "gauge",
        "Tasks by status.",
        {_labels(status=status): tasks for status, tasks in stats.by_status.items()},
    )
    age = 0.0 if stats.oldest_queued_at is None else max(0.0, (stats.at - stats.oldest_queued_at) / 1000)
    yield from _metric("bloomd_oldest_queued_seconds", "gauge", "Age of the oldest queued task; 0 for none.", {"": age})
    yield from _metric("bloomd_active_leases", "gauge", "Leases held now.", {"": stats.active_leases})
    yield from _metric(
        "bloomd_leases_rescued_last_hour",
        "gauge",
        "Leases that expired within the hour.",
        {"": stats.rescued_last_hour},
    )
    yield from _metric(
        "bloomd_workers",
        "gauge",
        "Workers, and those that are online.",
        {_labels(state="known"): stats.workers, _labels(state="online"): stats.workers_online},
    )
    yield from _metric("bloomd_capacity", "gauge", "Leases that online workers may hold.", {"": stats.capacity})


def _requests(counts: RequestCounts) -> Iterator[str]:
    yield from _metric(
        "bloomd_http_requests_total",
        "counter",
        "Requests by route and status.",
        {
            _labels(method=method, route=route, status=str(status)): number
            for (method, route, status), number in counts.requests.items()
        },
    )
    yield from _metric(
        "bloomd_http_request_seconds_total",
        "counter",
        "Time spent on requests.",
        {_labels(method=method, route=route): seconds for (method, route), seconds in counts.seconds.items()},
    )


HANDLERS = [metrics]
