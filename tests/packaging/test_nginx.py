"""nginx/bloomd.conf in a real nginx, in front of a server that keeps what it is sent."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nginx_process import CONFIGURATION, Nginx
from servers import eventually
from upstream import Upstream, ask

from bloomd.http.server import KEEP_ALIVE_SECONDS
from bloomd.membridge.errands import STEP_SECONDS, UPDATE_SECONDS
from bloomd.membridge.projects import CLONE_SECONDS, SYNC_SECONDS
from bloomd.runtime.claims import GRACE_SECONDS
from bloomd.settings.model import Http


@dataclass
class Front:
    """A running nginx and what is behind it."""

    port: int
    upstream: Upstream
    socket: Path
    log: Path
    errors: Path
    command: list[str]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("nginx")
    socket = directory / "bloomd.sock"
    with Upstream(socket) as upstream, Nginx(directory, socket) as nginx:
        yield Front(nginx.port, upstream, socket, nginx.access_log, nginx.error_log, nginx.command)


def test_nginx_finds_nothing_wrong(front: Front) -> None:
    done = subprocess.run([*front.command, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


def test_the_numbers_are_those_of_bloomd() -> None:
    [keepalive] = re.findall(r"^ *keepalive_timeout (\d+)s;", CONFIGURATION, re.MULTILINE)
    assert int(keepalive) < KEEP_ALIVE_SECONDS
    sizes = re.findall(r"^ *client_max_body_size (\d+)m;", CONFIGURATION, re.MULTILINE)
    assert [int(size) << 20 for size in sizes] == [Http().max_body_bytes, Http().max_artifact_bytes]


# How long bloomd may take for an answer, in seconds.
WAITS = [
    ("/api/runtime/llm-tasks/42/dispatch", 3600 + GRACE_SECONDS),
    ("/api/runtime/projects/42/clone", CLONE_SECONDS),
    ("/api/runtime/projects/42/propagate", 4 * CLONE_SECONDS),
    ("/api/runtime/projects/42/sync-memory", SYNC_SECONDS),
    ("/api/runtime/workers/gpu-1/agent-health", STEP_SECONDS),
    ("/api/runtime/workers/gpu-1/agent-update", UPDATE_SECONDS),
    ("/api/runtime/workers/gpu-1/agent-restart", STEP_SECONDS),
    ("/api/runtime/workers/gpu-1/agent-uninstall", STEP_SECONDS),
    ("/api/runtime/leases/claim", 60),
]


@pytest.mark.parametrize(("path", "seconds"), WAITS)
def test_nginx_waits_longer_than_bloomd_takes(path: str, seconds: float) -> None:
    assert read_timeout_of(path) > seconds


def read_timeout_of(path: str) -> float:
    """By the location of a regular expression that matches, else by the server."""
    locations = re.findall(r"^    location ~ (\S+) \{(.*?)^    \}", CONFIGURATION, re.MULTILINE | re.DOTALL)
    [body] = [body for pattern, body in locations if re.search(pattern, path)] or [
        CONFIGURATION.partition("location")[0]
    ]
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", body)
    return float(seconds)


def test_requests_of_many_clients_share_a_connection(front: Front) -> None:
    for _ in range(5):
        assert ask(front.port, "/api/runtime/stats").status == 200
    assert len({request.connection for request in front.upstream.seen[-5:]}) == 1
    assert front.upstream.seen[-1].headers["connection"] is None


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("path", ["/api/runtime/stats", "/api/runtime/events", "/metrics"])
def test_no_upgrade_is_passed_on(front: Front, path: str, protocol: str) -> None:
    """What follows one would be a tunnel past all rules of nginx."""
    asked = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    assert ask(front.port, path, headers=asked).status == 200
    headers = front.upstream.seen[-1].headers
    assert (headers["upgrade"], headers["connection"]) == (None, None)


def test_bloomd_learns_the_client_and_the_name_it_asked_for(front: Front) -> None:
    spoofed = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "Host": f"bloom.test:{front.port}"}
    ask(front.port, "/api/runtime/stats", headers=spoofed, source="127.0.0.2")
    headers = front.upstream.seen[-1].headers
    assert headers.get_all("x-forwarded-for") == ["127.0.0.2"]
    assert headers.get_all("x-forwarded-proto") == ["http"]
    assert headers["host"] == f"bloom.test:{front.port}"


def test_the_path_arrives_as_it_was_sent(front: Front) -> None:
    path = "/api/runtime/artifacts/a%2Fb//content?x=%20y"
    ask(front.port, path)
    assert front.upstream.seen[-1].path == path


@pytest.mark.parametrize(
    "path",
    [
        "/api/runtime/llm-tasks/42/dispatch",
        "/api/runtime/projects/42/propagate",
        "/api/runtime/workers/gpu-1/agent-update",
        "/api/runtime/events",
        "/api/runtime/agent-install-script?code=x",
    ],
)
def test_special_paths_reach_bloomd_with_the_same_headers(front: Front, path: str) -> None:
    assert ask(front.port, path, method="POST", body=b"{}").status == 200
    request = front.upstream.seen[-1]
    assert (request.method, request.path, request.body) == ("POST", path, b"{}")
    assert request.headers["x-forwarded-for"] == "127.0.0.1"


def test_a_body_as_large_as_bloomd_takes_passes(front: Front) -> None:
    size = Http().max_body_bytes
    assert ask(front.port, "/api/runtime/llm-tasks", method="POST", body=b"x" * size).status == 200
    assert len(front.upstream.seen[-1].body) == size


def test_a_larger_body_is_refused_in_the_form_that_clients_read(front: Front) -> None:
    before = len(front.upstream.seen)
    # The length alone is enough: nginx answers without reading the body.
    answer = ask(
        front.port,
        "/api/runtime/llm-tasks",
        method="POST",
        headers={"Content-Length": str(Http().max_body_bytes + 1)},
    )
    assert (answer.status, answer.headers.get_content_type()) == (413, "application/problem+json")
    assert json.loads(answer.body)["error"] == "The body is too large"
    assert len(front.upstream.seen) == before


@pytest.mark.parametrize("path", ["/metrics", "//metrics", "/%6detrics", "/x/../metrics", "/metrics?x"])
def test_metrics_are_closed_to_the_outside(front: Front, path: str) -> None:
    before = len(front.upstream.seen)
    assert ask(front.port, path, source="127.0.0.2").status == 403
    assert len(front.upstream.seen) == before
    assert ask(front.port, path).status == 200


def test_security_headers_are_there_once(front: Front) -> None:
    for path in ("/", "/api/runtime/events"):
        headers = ask(front.port, path).headers
        assert headers.get_all("x-content-type-options") == ["nosniff"]
        assert headers.get_all("x-frame-options") == ["DENY"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["server"] == "nginx"


def test_no_query_is_logged(front: Front) -> None:
    ask(front.port, "/api/runtime/audit?limit=s3cret-a")
    ask(front.port, "/api/runtime/agent-install-script?code=s3cret-b")
    eventually(lambda: "/api/runtime/agent-install-script HTTP/1.1" in front.log.read_text())
    assert "s3cret" not in front.log.read_text()


def test_no_query_with_a_code_is_in_the_error_log(front: Front) -> None:
    """Which holds whole requests, where bloomd does not answer."""
    aside = front.socket.rename(front.socket.with_suffix(".aside"))
    front.upstream.hang_up()
    try:
        for path in ("/api/runtime/agent-install-script?code=s3cret-c", "/api/runtime/audit?limit=told"):
            assert ask(front.port, path).status == 503
    finally:
        aside.rename(front.socket)
    eventually(lambda: "limit=told" in front.errors.read_text())
    assert "s3cret" not in front.errors.read_text()


def test_without_bloomd_clients_get_a_503_that_they_can_read(front: Front) -> None:
    aside = front.socket.rename(front.socket.with_suffix(".aside"))
    front.upstream.hang_up()
    try:
        answer = ask(front.port, "/api/runtime/stats")
    finally:
        aside.rename(front.socket)
    assert answer.status == 503
    assert json.loads(answer.body)["error"] == "bloomd does not answer"
