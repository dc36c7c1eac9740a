"""What Prometheus is told, read by the parser of its own library."""

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import psycopg
import pytest
from figures import Figures, classic, openmetrics
from servers import eventually

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@pytest.fixture
def scrape(api: httpx.Client) -> Callable[[], Figures]:
    def scrape() -> Figures:
        answer = api.get("/metrics")
        assert answer.status_code == 200, answer.text
        return Figures(answer.text)

    return scrape


@pytest.fixture
def grown(scrape) -> Callable[[], Callable[..., float]]:
    """By how much each figure has grown since the test began."""
    before = scrape()
    return lambda: scrape().since(before)


@pytest.fixture
def sql(daemon, api) -> Callable[[str], None]:
    def run(statement: str) -> None:
        with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
            connection.execute(statement)

    return run


def post(api, path, body=None):
    answer = api.post(f"/api/runtime{path}", json=body if body is not None else {})
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def test_a_task_that_goes_well(api, create, register, grown):
    register()
    assert grown()("bloomd_tasks_created_total") == 0
    task = create()
    assert grown()("bloomd_tasks_created_total") == 1
    assert grown()("bloomd_claims_total") == 0

    post(api, f"/llm-tasks/{task['id']}/lease")
    leased = grown()
    assert leased("bloomd_claims_total") == 1
    assert leased("bloomd_task_wait_seconds_count") == 1
    assert leased("bloomd_task_wait_seconds_bucket", le="60.0") == 1
    assert leased("bloomd_task_run_seconds_count", outcome="success") == 0

    done = {"status": "success", "output": "hello"}
    post(api, f"/llm-tasks/{task['id']}/complete", done)
    completed = grown()
    assert completed("bloomd_task_run_seconds_count", outcome="success") == 1
    assert completed("bloomd_task_run_seconds_bucket", outcome="success", le="60.0") == 1
    assert completed("bloomd_task_attempts_count", status="completed") == 1
    assert completed("bloomd_task_attempts_sum", status="completed") == 1


def test_a_completion_that_is_said_again_counts_once(api, create, register, grown):
    register()
    task = create()
    lease = post(api, f"/llm-tasks/{task['id']}/lease")["lease"]
    for _ in range(3):
        post(api, f"/llm-tasks/{task['id']}/complete", {"status": "success", "lease_id": lease["id"]})
    assert grown()("bloomd_task_run_seconds_count", outcome="success") == 1
    assert grown()("bloomd_task_attempts_count", status="completed") == 1


def test_what_is_refused_counts_as_nothing(api, create, grown):
    task = create()
    assert api.post(f"/api/runtime/llm-tasks/{task['id']}/lease", json={}).status_code == 503
    assert api.post(f"/api/runtime/llm-tasks/{task['id']}/complete", json={"status": "success"}).status_code == 409
    after = grown()
    assert after("bloomd_claims_total") == 0
    assert after("bloomd_task_run_seconds_count", outcome="success") == 0


def test_a_task_with_a_known_idempotency_key_is_not_created(create, api, grown):
    task = create(idempotency_key="once")
    assert api.post("/api/runtime/llm-tasks", json={"prompt": "x", "idempotency_key": "once"}).json() == task
    assert grown()("bloomd_tasks_created_total") == 1


def test_the_wait_begins_when_a_task_can_be_claimed(api, create, register, sql, grown):
    """An hour of `not_before` or of a retry delay is no wait."""
    register()
    task = create(not_before=1)
    sql("UPDATE llm_tasks SET created_at = created_at - 3600000, updated_at = updated_at - 3600000")
    sql("UPDATE llm_tasks SET retry_at = bloom_now_ms() - 20000")
    post(api, f"/llm-tasks/{task['id']}/lease")
    assert 20 <= grown()("bloomd_task_wait_seconds_sum") < 60


def test_the_run_is_the_time_of_the_lease(api, create, register, sql, grown):
    register()
    task = create()
    post(api, f"/llm-tasks/{task['id']}/lease")
    sql("UPDATE leases SET started_at = started_at - 20000")
    post(api, f"/llm-tasks/{task['id']}/complete", {"status": "success"})
    assert 20 <= grown()("bloomd_task_run_seconds_sum", outcome="success") < 60


def test_errors_until_a_task_is_dead(api, create, register, scrape, grown):
    register()
    task = create(max_attempts=2)
    for attempt in (1, 2):
        eventually(lambda: api.post(f"/api/runtime/llm-tasks/{task['id']}/lease", json={}).status_code == 201)
        post(api, f"/llm-tasks/{task['id']}/complete", {"status": "error", "error_message": "no"})
        after = grown()
        assert after("bloomd_task_run_seconds_count", outcome="error") == attempt
        assert after("bloomd_task_attempts_count", status="dead") == (0, 1)[attempt - 1]
    assert after("bloomd_task_attempts_sum", status="dead") == 2
    assert after("bloomd_leases_rescued_total") == 0
    eventually(lambda: scrape()("bloomd_tasks", status="dead") == 1)


def test_a_permanent_error_fails_a_task(api, create, register, grown):
    register()
    task = create()
    post(api, f"/llm-tasks/{task['id']}/lease")
    post(api, f"/llm-tasks/{task['id']}/complete", {"status": "error", "retryable": False})
    assert grown()("bloomd_task_attempts_count", status="failed") == 1


def test_rescued_leases(api, create, register, sql, scrape, grown):
    register()
    task = create()
    post(api, f"/llm-tasks/{task['id']}/lease")
    sql("UPDATE leases SET expires_at = bloom_now_ms() - 1")
    eventually(lambda: grown()("bloomd_leases_rescued_total") == 1)
    assert grown()("bloomd_task_run_seconds_count", outcome="expired") == 1
    eventually(lambda: scrape()("bloomd_leases_rescued_last_hour") == 1)


def test_the_queue_and_the_workers(api, create, register, sql, scrape):
    """From the database's own counts, a second old at the most."""
    eventually(lambda: scrape()("bloomd_tasks", status="queued") == 0)
    assert scrape()("bloomd_oldest_queued_seconds") == 0
    register("w1", capabilities={"max_concurrency": 3})
    register("w2", status="offline")
    tasks = [create() for _ in range(3)]
    post(api, f"/llm-tasks/{tasks[0]['id']}/lease")
    sql("UPDATE llm_tasks SET created_at = created_at - 500000 WHERE status = 'queued'")
    eventually(lambda: scrape()("bloomd_tasks", status="queued") == 2)
    figures = scrape()
    assert figures("bloomd_tasks", status="leased") == 1
    assert figures("bloomd_tasks", status="dead") == 0
    assert figures("bloomd_active_leases") == 1
    assert 500 <= figures("bloomd_oldest_queued_seconds") < 600
    assert figures("bloomd_workers", state="known") == 2
    assert figures("bloomd_workers", state="online") == 1
    assert figures("bloomd_capacity") == 3


def test_a_pause_is_seen(sql, scrape):
    assert scrape()("bloomd_queue_paused") == 0
    try:
        sql("UPDATE queue_state SET paused = true, until = NULL")
        eventually(lambda: scrape()("bloomd_queue_paused") == 1)
    finally:
        sql("UPDATE queue_state SET paused = false")
    eventually(lambda: scrape()("bloomd_queue_paused") == 0)


def test_requests_by_route_and_status(api, create, grown):
    task = create()
    for id in (task["id"], "none", "nothing"):
        api.get(f"/api/runtime/llm-tasks/{id}")
    api.head(f"/api/runtime/llm-tasks/{task['id']}")
    after = grown()
    route = "/api/runtime/llm-tasks/{task_id}"
    for labels, number in (
        ({"method": "GET", "status": "200"}, 1),
        ({"method": "GET", "status": "404"}, 2),
        ({"method": "HEAD", "status": "200"}, 1),
    ):
        assert after("bloomd_http_requests_total", route=route, **labels) == number
        assert after("bloomd_http_request_duration_seconds_count", route=route, **labels) == number
        assert after("bloomd_http_request_duration_seconds_bucket", route=route, le="+Inf", **labels) == number
    spent = sum(
        after("bloomd_http_request_duration_seconds_sum", method="GET", route=route, status=status)
        for status in ("200", "404")
    )
    assert 0 < spent == pytest.approx(after("bloomd_http_request_seconds_total", method="GET", route=route))


def test_a_label_does_not_grow_with_what_is_asked_for(api, scrape):
    for path in ("/nothing-of-ours", "/api/runtime/llm-tasks/an-id-of-somebody"):
        api.get(path)
    api.request("FROBNICATE", "/api/runtime/stats")
    seen = scrape().labels("bloomd_http_requests_total")
    assert not any("of-ours" in each["route"] or "an-id" in each["route"] for each in seen)
    assert not any(each["method"] == "FROBNICATE" for each in seen)


def test_buckets_are_cumulative(api, create, register, scrape):
    register()
    post(api, f"/llm-tasks/{create()['id']}/lease")
    figures = scrape()
    histograms = [family for family in figures.families.values() if family.type == "histogram"]
    assert {family.name for family in histograms} == {
        "bloomd_task_wait_seconds",
        "bloomd_task_run_seconds",
        "bloomd_task_attempts",
        "bloomd_http_request_duration_seconds",
    }
    for family in histograms:
        for sample in family.samples:
            if sample.name.endswith("_count"):
                buckets = sorted(
                    (float(each.labels["le"]), each.value)
                    for each in family.samples
                    if each.name.endswith("_bucket")
                    and {name: value for name, value in each.labels.items() if name != "le"} == sample.labels
                )
                assert buckets[-1] == (math.inf, sample.value)
                assert all(below <= above for (_, below), (_, above) in itertools.pairwise(buckets))


def test_the_node(daemon, scrape):
    figures = scrape()
    assert figures.labels("bloomd_info")[0].keys() == {"version", "node"}
    assert sum(figures("bloomd_verdict", verdict=each) for each in ("ok", "degraded", "down")) == 1
    assert figures("bloomd_uptime_seconds") > 0
    assert figures("process_resident_memory_bytes") > 1e6
    assert figures("process_open_fds") > 3
    assert 0 <= figures("bloomd_loop_lag_seconds", window="now") <= figures("bloomd_loop_lag_seconds", window="1m_max")
    assert figures("bloomd_leader") == 1
    assert scrape()("bloomd_uptime_seconds") > figures("bloomd_uptime_seconds")
    assert "bloomd_membridge_sync_age_seconds" not in figures.names, "no Membridge is configured"


def test_those_who_wait_for_tasks_and_events(api, register, scrape):
    register()
    assert scrape()("bloomd_event_subscribers") == scrape()("bloomd_waiting_claims") == 0
    with api.stream("GET", "/api/runtime/events") as events, ThreadPoolExecutor() as pool:
        assert events.status_code == 200
        claim = pool.submit(api.post, "/api/runtime/leases/claim", json={"worker_id": "w1", "wait_seconds": 3})
        eventually(lambda: scrape()("bloomd_waiting_claims") == 1)
        assert scrape()("bloomd_event_subscribers") == 1
        assert claim.result().json()["leases"] == []
    eventually(lambda: scrape()("bloomd_event_subscribers") == 0)
    assert scrape()("bloomd_waiting_claims") == 0


def test_services_and_probes(daemon, scrape):
    eventually(lambda: scrape()("bloomd_probe_state", probe="postgresql", state="up") == 1)
    assert scrape()("bloomd_probe_state", probe="minio", state="disabled") == 1
    assert scrape()("bloomd_probe_state", probe="minio", state="up") == 0
    assert scrape()("bloomd_service_restarts_total", service="http") == 0
    with stopped(daemon, "worker-polls"):
        assert scrape()("bloomd_service_running", service="worker-polls") == 0
        assert scrape()("bloomd_verdict", verdict="degraded") == 1
    assert scrape()("bloomd_service_running", service="worker-polls") == 1


@contextmanager
def stopped(daemon, service: str) -> Iterator[None]:
    assert daemon.ctl("stop", service).returncode == 0
    try:
        yield
    finally:
        assert daemon.ctl("start", service).returncode == 0


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text; version=nonsense",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_formats(api, accept, content_type):
    answer = api.get("/metrics", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)
    figures = Figures(answer.text, openmetrics if "openmetrics" in content_type else classic)
    assert figures("bloomd_claims_total") >= 0
    assert not any(sample.endswith("_created") for sample in figures.names)


def test_who_may_read(daemon, api):
    """Loopback without the key; anybody else, here behind a proxy, with it."""
    with httpx.Client(base_url=daemon.url, timeout=10, trust_env=False) as stranger:
        elsewhere = {"X-Forwarded-For": "203.0.113.9"}
        bearer = {"Authorization": f"Bearer {daemon.settings['http.api_key']}"}
        assert stranger.get("/metrics").status_code == 200
        assert stranger.get("/metrics", headers=elsewhere).status_code == 401
        assert stranger.get("/metrics", headers={**elsewhere, "Authorization": "Bearer wrong"}).status_code == 401
        assert stranger.get("/metrics", headers={**elsewhere, **bearer}).status_code == 200
