"""The figures of requests, read back as Prometheus would read them."""

from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from bloomd.http.latency import SECONDS, Latency


def samples(latency):
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in classic(generate_latest(latency).decode())
        for sample in family.samples
    }


def test_nothing_was_asked_yet():
    assert samples(Latency()) == {}


def test_each_request_counts_once_in_each_figure():
    latency = Latency()
    latency.add("GET", "/tasks", 200, 0.004)
    latency.add("GET", "/tasks", 200, 2.0)
    latency.add("GET", "/tasks", 503, 1.0)
    latency.add("POST", "/tasks", 201, 0.5)
    found = samples(latency)

    def figure(name, **labels):
        return found[name, frozenset(labels.items())]

    get_200 = {"method": "GET", "route": "/tasks", "status": "200"}
    assert figure("bloomd_http_requests_total", **get_200) == 2
    assert figure("bloomd_http_request_duration_seconds_count", **get_200) == 2
    assert figure("bloomd_http_request_duration_seconds_sum", **get_200) == 2.004
    assert figure("bloomd_http_request_duration_seconds_bucket", le="0.0025", **get_200) == 0
    assert figure("bloomd_http_request_duration_seconds_bucket", le="0.005", **get_200) == 1
    assert figure("bloomd_http_request_duration_seconds_bucket", le="2.5", **get_200) == 2
    assert figure("bloomd_http_request_seconds_total", method="GET", route="/tasks") == 3.004
    assert figure("bloomd_http_request_seconds_total", method="POST", route="/tasks") == 0.5
    assert len([name for name, _ in found if name == "bloomd_http_requests_total"]) == 3


def test_a_request_longer_than_any_bucket():
    latency = Latency()
    latency.add("GET", "/events", 200, SECONDS[-1] * 10)
    labels = {"method": "GET", "route": "/events", "status": "200"}
    found = samples(latency)
    assert found["bloomd_http_request_duration_seconds_bucket", frozenset({**labels, "le": "60.0"}.items())] == 0
    assert found["bloomd_http_request_duration_seconds_bucket", frozenset({**labels, "le": "+Inf"}.items())] == 1


def test_labels_are_escaped_in_both_formats():
    latency = Latency()
    route = '/a "quoted" \\path\\n\nsecond line, ключ'
    latency.add("GET", route, 200, 0.1)
    for parse, generate in ((classic, generate_latest), (openmetrics, generate_openmetrics)):
        routes = {sample.labels["route"] for family in parse(generate(latency).decode()) for sample in family.samples}
        assert routes == {route}
