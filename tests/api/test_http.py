"""The conventions that hold for every route (contract, section 1)."""

import hashlib
import json
import re
import socket
from base64 import b64encode

import httpx
import pytest


@pytest.fixture(scope="module")
def daemon(start_daemon):
    """Of its own: so many are refused here that the limit of failed attempts would be reached for others."""
    with start_daemon() as bloomd:
        yield bloomd


def raw(daemon, data, *, wait=5.0):
    """Send bytes as they are; everything that comes back until the server closes or says no more."""
    with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
        connection.settimeout(wait)
        connection.sendall(data)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except TimeoutError:
            pass
        return answer


@pytest.fixture
def stranger(daemon):
    with httpx.Client(base_url=daemon.url, timeout=10, trust_env=False) as client:
        yield client


def test_the_key_is_needed_everywhere_but_where_it_is_not(stranger, api):
    assert stranger.get("/api/runtime/health").status_code == 200
    assert stranger.get("/ready").status_code == 200
    assert stranger.post("/api/runtime/test-connection").json() == {
        "connected": False,
        "error": "Membridge cannot be reached",
    }
    for path in ("/api/runtime/stats", "/api/membridge/health", "/api/schema", "/api/runtime/nothing", "/nothing"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="bloomd"')
    assert stranger.get("/metrics").status_code == 200
    assert stranger.get("/metrics", headers={"X-Forwarded-For": "9.9.9.9"}).status_code == 401


def test_no_spelling_gets_round_the_key(daemon, api):
    for path in (
        b"/api/runtime//stats", b"/api/runtime/./stats", b"/api/runtime/st%61ts", b"/API/runtime/stats",
        b"/api/runtime/stats/", b"/api/runtime/health/../stats", b"/api/runtime/health%2f..%2fstats",
        b"/api/runtime/health;/stats", b"//api/runtime/stats",
    ):  # fmt: skip
        answer = raw(daemon, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 401 " in answer.split(b"\r\n")[0], path
    odd = b"GET /api/runtime/stats HTTP/1.1\r\nHost: x\r\nX-Runtime-API-Key: \xd0\xba\xff\r\nConnection: close\r\n\r\n"
    assert b" 401 " in raw(daemon, odd).split(b"\r\n")[0]


def test_authentication_comes_before_the_body(daemon, api):
    """A stranger's body is not waited for."""
    head = b"POST /api/runtime/llm-tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n"
    assert b" 401 " in raw(daemon, head, wait=2).split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b'{"prompt": "x"', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_001, "application/json", 413),
        (b"[" * 50_000, "application/json", 400),
        (b'{"prompt": "a\\u0000b"}', "application/json", 400),
        (b'{"prompt": "x", "context_hints": {"k": {"deep": ["a\\u0000b"]}}}', "application/json", 400),
        (b'{"prompt": "x"}', "text/plain", 415),
        (b'{"prompt": "x"}', "application/x-www-form-urlencoded", 415),
        (b'"text"', "application/json", 400),
        (b"null", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"prompt": "' + b"x" * 100_000 + b'"}', "application/json", 413),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b'{"prompt": "x", "policy": null}', "application/json", 400),
        (b'{"prompt": "x", "not_before": 1e400}', "application/json", 400),
        (b'{"prompt": "x", "context_id": "' + b"c" * 513 + b'"}', "application/json", 400),
        (b'{"prompt": "x", "max_attempts": 2.5}', "application/json", 400),
        (b'{"prompt": "x", "max_attempts": 1e30}', "application/json", 400),
        (b'{"prompt": "x", "max_attempts": 2.0, "policy": {"timeout_sec": 6e1}}', "application/json", 201),
        (b'{"prompt": "x", "unknown": 1}', "application/json; charset=utf-8", 201),
        (b'{"prompt": "x"}', "application/vnd.api+json", 201),
    ],
)
def test_bodies(api, content, content_type, status):
    answer = api.post("/api/runtime/llm-tasks", content=content, headers={"content-type": content_type})
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["error"]


def test_a_body_without_a_length_is_limited_too(api):
    answer = api.post(
        "/api/runtime/llm-tasks",
        content=(b"x" * 10_000 for _ in range(20)),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("GET", "/api/runtime/nothing", 404),
        ("GET", "/nothing", 404),
        ("PUT", "/api/runtime/stats", 405),
        ("DELETE", "/api/runtime/llm-tasks", 405),
        ("GET", "/api/runtime/workers/nobody", 404),
        ("DELETE", "/api/runtime/workers/nobody", 404),
        ("GET", "/api/runtime/artifacts/none", 404),
        ("GET", "/api/runtime/artifacts/none/content", 404),
        ("GET", "/api/runtime/llm-tasks/a%00b", 400),
        ("GET", "/api/runtime/llm-tasks?worker_id=a%00b", 400),
        ("GET", "/api/runtime/audit?since=x", 400),
        ("GET", "/api/runtime/audit?since=-1", 400),
        ("GET", "/api/runtime/llm-tasks?status=null", 400),
        ("GET", "/api/runtime/leases?status=null", 400),
        ("GET", "/api/runtime/workers?status=null", 400),
    ],
)
def test_paths_and_methods(api, method, path, status):
    answer = api.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    if status == 405:
        assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/api/runtime/llm-tasks", "GET, HEAD, OPTIONS, POST"),
        ("/api/runtime/workers/w1", "DELETE, GET, HEAD, OPTIONS"),
        ("/api/runtime/leases/claim", "OPTIONS, POST"),
    ],
)
def test_all_methods_of_a_path_are_told(api, path, methods):
    asked = api.options(path)
    assert (asked.status_code, asked.content, asked.headers["allow"]) == (204, b"", methods)
    refused = api.patch(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, methods)


@pytest.mark.parametrize("path", ["/api/runtime/health", "/api/runtime/stats", "/api/runtime/llm-tasks", "/metrics"])
def test_head_is_get_without_the_body(api, path):
    get, head = api.get(path), api.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert api.head("/api/runtime/nothing").status_code == 404


def test_requests_have_ids(api):
    given = api.get("/api/runtime/stats", headers={"X-Request-ID": "my-request-1"})
    assert given.headers["x-request-id"] == "my-request-1"
    made = api.get("/api/runtime/stats", headers={"X-Request-ID": "bad id\twith spaces"})
    assert made.headers["x-request-id"] != "bad id\twith spaces"
    assert made.headers["x-content-type-options"] == "nosniff"


def test_a_bearer_token_is_as_good(daemon, stranger):
    key = daemon.settings["http.api_key"]
    assert stranger.get("/api/runtime/stats", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_health_says_what_clients_read(api):
    health = api.get("/api/runtime/health").json()
    assert (health["service"], health["storage"]) == ("bloom-runtime", "postgresql")
    assert set(health["membridge"]) == {"consecutiveFailures", "lastSuccess", "lastError", "connected"}
    assert set(health["probes"]) == {"postgresql", "minio", "membridge"}
    assert isinstance(health["uptime"], float)


def test_http_2_is_not_spoken(daemon, api):
    """Through a proxy that passes an Upgrade on, it would be a tunnel round everything the proxy forbids."""
    upgrade = (
        b"GET /api/runtime/health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
    )
    assert b"bloom-runtime" not in raw(daemon, upgrade, wait=1)
    assert b"bloom-runtime" not in raw(daemon, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", wait=1)


def test_an_invented_method_is_no_label(api):
    api.request("FROBNICATE", "/api/runtime/stats")
    assert "FROBNICATE" not in api.get("/metrics").text


def test_ranges_of_a_content(api, create, register):
    register()
    task = create()
    api.post(f"/api/runtime/llm-tasks/{task['id']}/lease")
    done = api.post(f"/api/runtime/llm-tasks/{task['id']}/complete", json={"status": "success", "output": "0123456789"})
    path = f"/api/runtime/artifacts/{done.json()['artifact']['id']}/content"
    whole = api.get(path)
    assert (whole.headers["accept-ranges"], whole.headers["content-type"]) == ("bytes", "text/plain; charset=utf-8")
    for asked, status, text, content_range in (
        ("bytes=2-4", 206, "234", "bytes 2-4/10"),
        ("bytes=7-", 206, "789", "bytes 7-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("bytes=-99", 206, "0123456789", "bytes 0-9/10"),
        ("bytes=4-2", 200, "0123456789", None),
        ("bytes=0-1,4-5", 200, "0123456789", None),
        (f"bytes={'9' * 5000}-", 200, "0123456789", None),
        ("lines=1-2", 200, "0123456789", None),
    ):
        answer = api.get(path, headers={"Range": asked})
        assert (answer.status_code, answer.text, answer.headers.get("content-range")) == (status, text, content_range)
    beyond = api.get(path, headers={"Range": "bytes=10-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */10")
    etag = whole.headers["etag"]
    for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        assert api.get(path, headers={"If-None-Match": known}).status_code == 304
    assert api.get(path, headers={"Range": "bytes=0-1", "If-Range": '"old"'}).status_code == 200


def test_the_proxy_without_a_server(api):
    for path in ("health", "agents", "projects", "jobs", "projects/0123456789abcdef/nodes"):
        answer = api.get(f"/api/membridge/{path}")
        assert (answer.status_code, answer.json()["type"]) == (502, "urn:problem-type:bloomd:membridge-unavailable")
    assert api.get("/api/membridge/projects/..%2f..%2fagents/nodes").status_code == 404
    assert api.get("/api/membridge/projects/0123456789ABCDEF/nodes").status_code == 404


def test_metrics_are_prometheus_text(api, create):
    create()
    text = api.get("/metrics").text
    for line in text.splitlines():
        assert line.startswith("# ") or len(line.rpartition(" ")) == 3
        if not line.startswith("#"):
            float(line.rpartition(" ")[2])
    assert 'bloomd_probe_state{probe="postgresql",state="up"} 1' in text
    assert 'route="/api/runtime/llm-tasks"' in text


def test_the_schema_names_every_route_and_body(api):
    document = api.get("/api/schema").json()
    assert document["openapi"].startswith("3.1")
    create = document["paths"]["/api/runtime/llm-tasks"]["post"]
    assert "NewTask" in json.dumps(create["requestBody"])
    assert "BadRequest" in json.dumps(create["responses"]["400"])
    page = api.get("/api/schema", headers={"accept": "text/html"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    [style] = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    hashed = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{hashed}'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://127.0.0.1", "")
    assert "/api/runtime/llm-tasks" in page.text


def test_audit_filters(api, create):
    task = create()
    [entry] = api.get("/api/runtime/audit", params={"entity_id": task["id"]}).json()
    assert (entry["action"], entry["actor"], entry["entity_type"]) == ("task.created", "api-key", "task")
    assert api.get("/api/runtime/audit", params={"action": "task.created"}).json() == [entry]
    assert api.get("/api/runtime/audit", params={"since": entry["timestamp"] + 1}).json() == []
