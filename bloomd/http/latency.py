"""How long requests took, and how they ended: by method, route and status, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import Histogram, Metric
from prometheus_client.core import CounterMetricFamily

# From an answer out of memory to a claim that waits a minute for a task; an event stream lasts longer.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)

LABELS = ("method", "route", "status")


class Latency:
    """A histogram of all requests. `add` costs a microsecond or two: it is on the way of every request."""

    def __init__(self) -> None:
        self._seconds = Histogram(
            "bloomd_http_request_duration_seconds",
            "Time spent on requests, by route and status; status 0 is a client that left before the answer.",
            LABELS,
            buckets=SECONDS,
            registry=None,
        )
        self._children: dict[tuple[str, str, int], Histogram] = {}

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._seconds.labels(method, route, str(status))
        child.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The histogram, and the two sums of it that most questions are asked of."""
        requests = CounterMetricFamily("bloomd_http_requests", "Requests by route and status.", labels=LABELS)
        totals: dict[tuple[str, str], float] = {}
        for family in self._seconds.collect():
            yield family
            for sample in family.samples:
                method, route, status = (sample.labels[name] for name in LABELS)
                if sample.name.endswith("_count"):
                    requests.add_metric([method, route, status], sample.value)
                elif sample.name.endswith("_sum"):
                    totals[method, route] = totals.get((method, route), 0.0) + sample.value
        yield requests
        seconds = CounterMetricFamily("bloomd_http_request_seconds", "Time spent on requests.", labels=LABELS[:2])
        for (method, route), total in totals.items():
            seconds.add_metric([method, route], total)
        yield seconds
