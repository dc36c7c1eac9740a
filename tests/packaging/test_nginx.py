"""nginx/bloomd.conf and what it includes in a real nginx, in front of a server that keeps what it is sent."""

import gzip
import json
import re
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
import trustme
from nginx_process import FILES, Nginx
from servers import eventually
from upstream import Reply, Upstream, ask

from bloomd.http.routes.events import KEEPALIVE_SECONDS
from bloomd.http.server import KEEP_ALIVE_SECONDS
from bloomd.membridge.errands import STEP_SECONDS, UPDATE_SECONDS
from bloomd.membridge.projects import CLONE_SECONDS, SYNC_SECONDS
from bloomd.runtime.claims import GRACE_SECONDS
from bloomd.settings.model import Http

UPSTREAM = (FILES / "bloomd-upstream.conf").read_text()
LOCATIONS = (FILES / "bloomd-locations.conf").read_text()

SIGN_IN = "/api/runtime/session"


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
    [keepalive] = re.findall(r"^ *keepalive_timeout (\d+)s;", UPSTREAM, re.MULTILINE)
    assert int(keepalive) < KEEP_ALIVE_SECONDS
    sizes = re.findall(r"^ *client_max_body_size (\d+)m;", LOCATIONS, re.MULTILINE)
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
    ("/api/runtime/events", KEEPALIVE_SECONDS),
]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("path", "seconds"), WAITS)
def test_nginx_waits_longer_than_bloomd_takes(path: str, seconds: float, slash: str) -> None:
    assert read_timeout_of(path + slash) > seconds


def read_timeout_of(path: str) -> float:
    """By the location of a regular expression that matches, else by the server."""
    locations = re.findall(r"^location ~ (\S+) \{(.*?)^\}", LOCATIONS, re.MULTILINE | re.DOTALL)
    bodies = [body for pattern, body in locations if re.search(pattern, path)]
    assert len(bodies) <= 1
    server = LOCATIONS.partition("\nlocation")[0]
    seconds = [found for body in (*bodies, server) for found in re.findall(r"proxy_read_timeout (\d+)s;", body)]
    return float(seconds[0])


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


def test_an_upload_reaches_bloomd_before_all_of_it_is_there(front: Front) -> None:
    path, half = "/api/runtime/leases/7/artifacts/report.pdf", b"x" * 1000
    client = HTTPConnection("127.0.0.1", front.port, timeout=20)
    try:
        client.putrequest("PUT", path)
        client.putheader("Content-Length", str(2 * len(half)))
        client.endheaders(half)
        eventually(lambda: path in front.upstream.arrived)
        client.send(half)
        assert client.getresponse().status == 200
    finally:
        client.close()
    assert front.upstream.seen[-1].body == 2 * half


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


def test_a_long_uri_is_refused_in_that_form_too(front: Front) -> None:
    answer = ask(front.port, f"/api/runtime/audit?{'x' * 10000}")
    assert (answer.status, answer.headers.get_content_type()) == (414, "application/problem+json")
    assert json.loads(answer.body)["error"] == "The URI is too long"


# As what nginx and bloomd both read as /metrics can be written.
METRICS = ["/metrics", "//metrics", "/%6detrics", "/x/../metrics", "/metrics?x"]
METRICS += ["/metrics/", "/metrics//", "/metrics%2f", "/metrics/?x", "/metrics/x/.."]


@pytest.mark.parametrize("path", METRICS)
def test_metrics_are_closed_to_the_outside(front: Front, path: str) -> None:
    before = len(front.upstream.seen)
    refused = ask(front.port, path, source="127.0.0.2")
    assert (refused.status, refused.headers.get_content_type()) == (403, "application/problem+json")
    assert json.loads(refused.body)["error"] == "Closed to this address"
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
        script = "/api/runtime/agent-install-script"
        for path in (f"{script}?code=s3cret-c", f"{script}/?code=s3cret-d", "/api/runtime/audit?limit=told"):
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
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert answer.headers.get_all("x-content-type-options") == ["nosniff"]
    assert json.loads(answer.body)["error"] == "bloomd does not answer"


@pytest.mark.parametrize("path", ["/api/runtime/events?types=task", "/api/runtime/events/"])
def test_an_event_goes_out_at_once(front: Front, path: str) -> None:
    """The rest of the stream comes only when the first event has arrived."""
    event = b"data: {}\n\n"
    held = threading.Event()
    front.upstream.replies[path] = Reply(event, {"content-type": "text/event-stream"}, held=held)
    client = HTTPConnection("127.0.0.1", front.port, timeout=10)
    try:
        client.request("GET", path, headers={"Accept-Encoding": "gzip"})
        response = client.getresponse()
        assert response.read(len(event)) == event
        held.set()
        assert response.read() == event
        assert response.headers["content-encoding"] is None
    finally:
        held.set()
        client.close()


@pytest.mark.parametrize(
    ("path", "kind", "compressed"),
    [
        ("/", "text/html; charset=utf-8", True),
        ("/web/0123456789ab/page.js", "text/javascript; charset=utf-8", True),
        ("/web/0123456789ab/page.css", "text/css; charset=utf-8", True),
        ("/web/0123456789ab/icon.svg", "image/svg+xml", True),
        ("/api/runtime/llm-tasks", "application/json", False),
        ("/api/runtime/agent-install-script", "text/html", False),  # whatever its type, it holds a code
    ],
)
def test_only_the_page_itself_is_compressed(front: Front, path: str, kind: str, *, compressed: bool) -> None:
    content = b"the same again and again " * 200
    front.upstream.replies[path] = Reply(content, {"content-type": kind})
    answer = ask(front.port, path, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == ("gzip" if compressed else None)
    assert (gzip.decompress(answer.body) if compressed else answer.body) == content
    plain = ask(front.port, path)
    assert (plain.body, plain.headers["vary"]) == (content, "Accept-Encoding" if compressed else None)


def test_a_file_of_the_page_is_asked_for_once(front: Front) -> None:
    path = "/web/0123456789ab/once.js"
    told = {"content-type": "text/javascript", "cache-control": "public, max-age=31536000, immutable"}
    front.upstream.replies[path] = Reply(b"1", {**told, "x-request-id": "of-the-first"})
    front.upstream.replies["/"] = Reply(b"<p>", {"content-type": "text/html", "cache-control": "no-cache"})
    before = len(front.upstream.seen)
    for answer in [ask(front.port, each) for each in (path, path, f"{path}?{'x' * 9}", "/", "/")]:
        assert answer.status == 200
        assert answer.headers["x-request-id"] is None
    assert [request.path for request in front.upstream.seen[before:]] == [path, "/", "/"]
    assert ask(front.port, path).headers["cache-control"] == told["cache-control"]


def test_a_file_that_is_not_there_is_asked_for_again(front: Front) -> None:
    """A node of the other version may have been asked."""
    path = "/web/ba9876543210/new.js"
    front.upstream.replies[path] = Reply(status=404)
    assert ask(front.port, path).status == 404
    del front.upstream.replies[path]
    assert ask(front.port, path).status == 200


def test_attempts_to_sign_in_are_limited_for_each_address(front: Front) -> None:
    """By one path or the other."""
    before = len(front.upstream.seen)
    paths = [SIGN_IN, f"{SIGN_IN}/"] * 10
    answers = [ask(front.port, path, method="POST", body=b"{}", source="127.0.0.5") for path in paths]
    statuses = [answer.status for answer in answers]
    assert set(statuses[:11]) == {200}
    assert statuses[-1] == 429
    assert len(front.upstream.seen) - before == statuses.count(200)
    refused = answers[-1]
    assert (refused.headers.get_content_type(), refused.headers["retry-after"]) == ("application/problem+json", "6")
    assert refused.headers.get_all("x-content-type-options") == ["nosniff"]
    assert json.loads(refused.body)["type"] == "urn:problem-type:bloomd:too-many-requests"
    assert ask(front.port, SIGN_IN, source="127.0.0.5").status == 200  # the page asks who is signed in
    assert ask(front.port, SIGN_IN, method="POST", body=b"{}", source="127.0.0.6").status == 200


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Upstream, Upstream, int]]:
    """Two nodes, and the port of an nginx in front of both."""
    sockets = tmp_path / "a.sock", tmp_path / "b.sock"
    with Upstream(sockets[0]) as one, Upstream(sockets[1]) as other, Nginx(tmp_path, *sockets) as nginx:
        yield one, other, nginx.port


@pytest.mark.parametrize("failure", [None, Reply(status=503)], ids=["silent", "starting"])
def test_what_can_be_asked_twice_is_asked_of_the_other_node(
    nodes: tuple[Upstream, Upstream, int], failure: Reply | None
) -> None:
    one, other, port = nodes
    one.replies["/api/runtime/stats"] = failure
    assert [ask(port, "/api/runtime/stats").status for _ in range(4)] == [200] * 4
    assert one.seen
    assert len(other.seen) == 4


def test_a_503_is_not_held_against_a_node(nodes: tuple[Upstream, Upstream, int]) -> None:
    """It comes through as it is when both say so, and other requests go on."""
    one, other, port = nodes
    path = "/api/runtime/membridge/projects"
    one.replies[path] = other.replies[path] = Reply(b'{"error": "not configured"}', status=503)
    for _ in range(4):
        refused = ask(port, path)
        assert (refused.status, refused.body) == (503, b'{"error": "not configured"}')
        assert ask(port, "/api/runtime/stats").status == 200


@pytest.mark.parametrize("failure", [None, Reply(headers={"retry-after": "2"}, status=503)], ids=["silent", "starting"])
def test_a_post_that_was_sent_is_never_sent_again(nodes: tuple[Upstream, Upstream, int], failure: Reply | None) -> None:
    """It may have been done."""
    one, other, port = nodes
    one.replies["/api/runtime/llm-tasks"] = other.replies["/api/runtime/llm-tasks"] = failure
    answer = ask(port, "/api/runtime/llm-tasks", method="POST", body=b"{}")
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert len(one.seen) + len(other.seen) == 1


def test_a_post_that_reached_nobody_goes_to_the_other_node(nodes: tuple[Upstream, Upstream, int]) -> None:
    one, other, port = nodes
    Path(str(one.server_address)).unlink()
    posted = [ask(port, "/api/runtime/llm-tasks", method="POST", body=b"{}").status for _ in range(4)]
    assert posted == [200] * 4
    assert len(other.seen) == 4


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a machine that answers nothing: as many wait to be let in as can."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        connected = True
        while connected:
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
            connected = bool(select.select([], [waiting], [], 0.1)[1])
        yield "{}:{}".format(*listener.getsockname())


def test_a_machine_that_is_off_is_not_waited_for(tmp_path: Path, silent: str) -> None:
    other = tmp_path / "other.sock"
    nginx = Nginx(tmp_path, tmp_path / "off.sock", other)
    conf = tmp_path / "bloomd-upstream.conf"
    conf.write_text(conf.read_text().replace(f"unix:{tmp_path}/off.sock", silent))
    with Upstream(other), nginx:
        assert ask(nginx.port, "/api/runtime/stats").status == 200  # with nginx's own 60 s, this would not wait
    assert f'upstream: "http://{silent}/' in nginx.error_log.read_text()


def test_a_page_gets_its_files_from_the_node_of_its_version(nodes: tuple[Upstream, Upstream, int]) -> None:
    one, other, port = nodes
    one.replies |= {f"/web/0123456789ab/{number}.js": Reply(status=404) for number in range(4)}
    assert [ask(port, f"/web/0123456789ab/{number}.js").status for number in range(4)] == [200] * 4
    assert one.seen
    assert len(other.seen) == 4


# Of the main files of Alpine and of Debian what meets ours.
MAINS = {
    "http.d": """
        server_tokens off;
        client_max_body_size 1m;
        ssl_protocols TLSv1.1 TLSv1.2 TLSv1.3;
        ssl_prefer_server_ciphers on;
        ssl_session_cache shared:SSL:2m;
        gzip_vary on;
        map $http_upgrade $connection_upgrade { default upgrade; '' close; }
        log_format main '$remote_addr';
    """,
    "conf.d": """
        types_hash_max_size 2048;
        include /etc/nginx/mime.types;
        default_type application/octet-stream;
        ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
        ssl_prefer_server_ciphers on;
        access_log off;
        gzip on;
    """,
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("folder", MAINS)
def test_nginx_takes_the_files_where_they_are_installed(tmp_path: Path, folder: str, *, tls: bool) -> None:
    nginx = Nginx(tmp_path, tmp_path / "a.sock", leaf=trustme.CA().issue_cert("localhost") if tls else None)
    (tmp_path / folder).mkdir()
    (tmp_path / "bloomd.conf").rename(tmp_path / folder / "bloomd.conf")
    main = (tmp_path / "nginx.conf").read_text()
    ours = "    access_log off;\n", "    include bloomd.conf;\n"
    for line, new in zip(ours, (MAINS[folder], f"include {folder}/*.conf;\n"), strict=True):
        assert line in main
        main = main.replace(line, new)
    (tmp_path / "nginx.conf").write_text(main)
    done = subprocess.run([*nginx.command, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Since nginx 1.25.1 there is one, about `listen ... http2`.
    assert [line for line in done.stderr.splitlines() if "warn" in line and "http2" not in line] == []


def test_certbot_shows_that_it_has_the_name_before_there_is_a_certificate(front: Front) -> None:
    challenge = front.socket.parent / "webroot/.well-known/acme-challenge/token"
    challenge.parent.mkdir(parents=True)
    challenge.write_text("token.thumbprint")
    assert ask(front.port, "/.well-known/acme-challenge/token").body == b"token.thumbprint"
