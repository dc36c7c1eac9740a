"""A real bloomd behind a real nginx, over the Unix socket, as nginx/ and bloomd(8) have it."""

import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import httpx
import pytest
import trustme
from bloomd_process import KEY, Bloomd
from nginx_process import NAME, Nginx
from servers import PostgresServer, eventually
from upstream import Answer, ask

from bloomd.settings.model import Http

WITH_KEY = {"X-Runtime-API-Key": KEY}
JSON = {**WITH_KEY, "Content-Type": "application/json"}
HEALTH, STATS, TASKS = "/api/runtime/health", "/api/runtime/stats", "/api/runtime/llm-tasks"
EVENTS, SESSION, AUDIT = "/api/runtime/events", "/api/runtime/session", "/api/runtime/audit"


@dataclass
class Site:
    """Both daemons."""

    bloomd: Bloomd
    nginx: Nginx

    def get(self, path: str, *, headers: dict[str, str] | None = None, source: str = "127.0.0.1") -> Answer:
        return ask(self.nginx.port, path, headers=headers, source=source)


@pytest.fixture(scope="module")
def site(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    database = postgres_server.create_database()
    bloomd = Bloomd(database)
    bloomd.settings["http.bind"] = [f"127.0.0.1:{bloomd.port}", f"unix:{_through(bloomd)}"]
    bloomd.migrate()
    with Nginx(tmp_path_factory.mktemp("nginx"), _through(bloomd)) as nginx, bloomd:
        yield Site(bloomd, nginx)
    postgres_server.drop_database(database)


def _through(bloomd: Bloomd) -> Path:
    """The socket that nginx connects to."""
    return bloomd.directory / "http.sock"


def test_health_and_an_authenticated_answer_come_through(site: Site) -> None:
    eventually(lambda: json.loads(site.get(HEALTH).body)["status"] == "ok")  # once the first probes have come back
    assert site.get(STATS).status == 401
    assert site.get(STATS, headers=WITH_KEY).status == 200


def test_limits_are_counted_for_the_client_that_nginx_saw(site: Site) -> None:
    """One that claims to be somebody else each time is still one, and spends nothing of another's."""
    claims = [{"X-Forwarded-For": f"203.0.113.{number}", "X-Runtime-API-Key": "guess"} for number in range(100)]
    statuses = [site.get(STATS, headers=claim, source="127.0.0.9").status for claim in claims]
    assert (statuses[0], statuses[-1]) == (401, 429)
    assert site.get(STATS, headers=claims[0]).status == 401
    assert site.get(STATS, headers=claims[0], source="127.0.0.10").status == 401


def test_metrics_are_for_this_machine_only(site: Site) -> None:
    local = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1"}
    assert site.get("/metrics").status == 200
    for headers in ({}, local, {**local, **WITH_KEY}):
        answer = site.get("/metrics", headers=headers, source="127.0.0.2")
        assert answer.status == 403
        assert b"bloomd_" not in answer.body


def test_the_claims_of_this_machine_are_dropped_too(site: Site) -> None:
    """bloomd would take 203.0.113.9 for the client, and refuse it, if it believed this."""
    assert site.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status == 200


def test_h2c_is_not_spoken(site: Site) -> None:
    """Otherwise the second request, in the tunnel, would be past `deny` and past X-Forwarded-For."""
    asked = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    answer = site.get(HEALTH, headers=asked, source="127.0.0.2")
    assert answer.status == 200
    assert answer.headers["upgrade"] is None


def test_too_large_a_body_is_a_problem(site: Site) -> None:
    headers = {**JSON, "Content-Length": str(Http().max_body_bytes + 1)}
    answer = ask(site.nginx.port, TASKS, method="POST", headers=headers)
    assert (answer.status, answer.headers.get_content_type()) == (413, "application/problem+json")
    assert json.loads(answer.body)["error"] == "The body is too large"


def test_a_task_of_megabytes_goes_in_and_comes_out(site: Site) -> None:
    prompt = "ї" * 1_000_000
    created = ask(site.nginx.port, TASKS, method="POST", headers=JSON, body=json.dumps({"prompt": prompt}).encode())
    assert created.status == 201, created.body[:500]
    found = site.get(f"{TASKS}/{json.loads(created.body)['id']}", headers=WITH_KEY)
    assert json.loads(found.body)["prompt"] == prompt


def _lease(site: Site) -> str:
    for path, body in (("/api/runtime/workers", {"name": "w"}), (TASKS, {"prompt": "p"})):
        created = ask(site.nginx.port, path, method="POST", headers=JSON, body=json.dumps(body).encode())
    path = f"{TASKS}/{json.loads(created.body)['id']}"
    leased = ask(site.nginx.port, f"{path}/lease", method="POST", headers=JSON, body=b"{}")
    lease = json.loads(leased.body)["lease"]
    ask(site.nginx.port, f"{path}/heartbeat", method="POST", headers=JSON, body=b"{}")
    return lease["id"]


def test_an_upload_goes_in_and_comes_out_and_is_refused_for_what_it_is(site: Site) -> None:
    """Larger than other bodies may be. Whoever has lost his lease learns so, and not that bloomd is away."""
    content = os.urandom(1 << 20) * 12
    lease = _lease(site)
    path = f"/api/runtime/leases/{lease}/artifacts/out.bin"
    made = ask(site.nginx.port, path, method="PUT", headers=WITH_KEY, body=content)
    assert made.status == 201, made.body[:500]
    got = site.get(f"/api/runtime/artifacts/{json.loads(made.body)['id']}/content", headers=WITH_KEY)
    assert (got.status, got.body == content) == (200, True)
    too_large = {**WITH_KEY, "Content-Length": str(Http().max_artifact_bytes + 1)}
    assert ask(site.nginx.port, path, method="PUT", headers=too_large).status == 413
    body = json.dumps([{"lease_id": lease}]).encode()
    assert ask(site.nginx.port, "/api/runtime/leases/release", method="POST", headers=JSON, body=body).status == 200
    for _ in range(5):
        lost = ask(site.nginx.port, f"{path}2", method="PUT", headers=WITH_KEY, body=content)
        assert (lost.status, json.loads(lost.body)["type"].rpartition(":")[2]) == (409, "lease-lost")


def test_the_errors_and_headers_of_bloomd_come_through(site: Site) -> None:
    answer = site.get("/api/runtime/nothing", headers=WITH_KEY)
    assert (answer.status, answer.headers.get_content_type()) == (404, "application/problem+json")
    assert answer.headers["x-request-id"]
    assert answer.headers.get_all("x-content-type-options") == ["nosniff"]


def test_connections_are_kept_alive(site: Site) -> None:
    """Of the client to nginx; and nginx needs no new one to bloomd for each request."""
    client = HTTPConnection("127.0.0.1", site.nginx.port, timeout=10)
    client.connect()
    kept = client.sock
    before = _sockets(site)
    for _ in range(50):
        client.request("GET", STATS, headers=WITH_KEY)
        response = client.getresponse()
        response.read()
        assert (response.status, client.sock) == (200, kept)
    client.close()
    assert _sockets(site) <= before + 1


def test_an_event_comes_through_when_it_happens(site: Site) -> None:
    client = HTTPConnection("127.0.0.1", site.nginx.port, timeout=20)
    client.request("GET", f"{EVENTS}?types=task", headers={**WITH_KEY, "Accept-Encoding": "gzip"})
    stream = client.getresponse()
    assert (stream.status, stream.headers.get_content_type()) == (200, "text/event-stream")
    made = ask(site.nginx.port, TASKS, method="POST", headers=JSON, body=b'{"prompt": "for the stream"}')
    id = json.loads(made.body)["id"].encode()
    while id not in (line := stream.readline()):
        assert line, "the stream has ended"
    client.close()


def test_the_page_comes_through_compressed_and_its_files_once(site: Site) -> None:
    page = site.get("/", headers={"Accept-Encoding": "gzip"})
    assert (page.status, page.headers["content-encoding"]) == (200, "gzip")
    assert page.headers["content-security-policy"]
    again = site.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert again.status == 304
    with httpx.Client(trust_env=False) as client:
        script = client.get(f"http://127.0.0.1:{site.nginx.port}/").text.partition('modulepreload" href="')[2]
    path = script.partition('"')[0]
    assert path.startswith("/web/")
    for _ in range(2):
        assert "immutable" in site.get(path).headers["cache-control"]


def test_guesses_at_keys_are_refused_in_one_form_whoever_counts_them(site: Site) -> None:
    wrong = json.dumps({"key": "a-guess"}).encode()
    as_json = {"Content-Type": "application/json"}
    answers = [
        ask(site.nginx.port, SESSION, method="POST", headers=as_json, body=wrong, source="127.0.0.11")
        for _ in range(20)
    ]
    assert [answer.status for answer in answers[:10]] == [401] * 10
    assert {answer.status for answer in answers[10:]} == {429}
    for answer in answers[10:]:
        assert int(answer.headers["retry-after"]) > 0
        assert json.loads(answer.body)["type"] == "urn:problem-type:bloomd:too-many-requests"


@pytest.fixture(scope="module")
def browser(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """What speaks TLS with an nginx of its own in front of the same bloomd, from 127.0.0.12."""
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    leaf = authority.issue_cert(NAME)
    with (
        Nginx(tmp_path_factory.mktemp("nginx-tls"), _through(site.bloomd), leaf=leaf) as nginx,
        httpx.Client(
            base_url=f"https://{NAME}:{nginx.port}",
            transport=httpx.HTTPTransport(verify=trust, local_address="127.0.0.12"),
            timeout=20,
        ) as client,
    ):
        yield client


def test_who_signs_in_over_tls_gets_a_cookie_for_tls_only(site: Site, browser: httpx.Client) -> None:
    """And may then change something, from the page and from nowhere else. The audit has the address that nginx saw."""
    own = {"Origin": str(browser.base_url).rstrip("/"), "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}
    signed_in = browser.post(SESSION, json={"key": KEY}, headers=own)
    assert signed_in.status_code == 200, signed_in.text
    cookie = signed_in.headers["set-cookie"]
    assert cookie.startswith("__Host-bloomd=")
    assert {"Secure", "HttpOnly", "Path=/"} <= set(cookie.split("; "))
    assert browser.post(TASKS, json={"prompt": "p"}, headers=own).status_code == 201
    for origin in (own["Origin"].replace("https", "http"), "https://elsewhere.example"):
        assert browser.post(TASKS, json={"prompt": "p"}, headers={"Origin": origin}).status_code == 403
    audit = site.get(AUDIT, headers=WITH_KEY).body.decode()
    assert "from 127.0.0.12" in audit
    assert "203.0.113.9" not in audit


@dataclass
class Traffic:
    """What clients saw that asked all the time."""

    answers: list[Answer] = field(default_factory=list)
    """Of those that read."""
    posted: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def traffic(port: int) -> Iterator[Traffic]:
    """Two clients that read and one that creates tasks, each again and again on a connection that is kept alive."""
    seen, stop = Traffic(), threading.Event()

    def ask_on(method: str, path: str, body: bytes | None, answers: list[Answer]) -> None:
        client = HTTPConnection("127.0.0.1", port, timeout=30)
        while not stop.is_set():
            try:
                client.request(method, path, headers=JSON, body=body)
                response = client.getresponse()
                answers.append(Answer(response.status, response.headers, response.read()))
            except (OSError, HTTPException) as error:
                seen.failures.append(repr(error))
                client.close()
            time.sleep(0.002)  # three clients in a tight loop would keep bloomd's restart from the processor
        client.close()

    reading, creating = ("GET", STATS, None, seen.answers), ("POST", TASKS, b'{"prompt": "p"}', seen.posted)
    threads = [threading.Thread(target=ask_on, args=each) for each in (reading, reading, creating)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_reload_fails_no_request(site: Site) -> None:
    with traffic(site.nginx.port) as seen:
        for turn in range(6):
            site.bloomd.configure(database__pool_size=5 + turn, probes__interval=0.5 + turn / 10)
            done = site.bloomd.ctl("-o", "json", "reload")
            assert (done.returncode, json.loads(done.stdout)["result"]) == (0, "reloaded"), done.stdout
            _further(seen, 20, 200)
    assert seen.failures == []
    assert {answer.status for answer in seen.answers} == {200}
    assert {answer.status for answer in seen.posted} == {201}


def _kill(bloomd: Bloomd) -> None:
    assert bloomd.process
    bloomd.process.kill()
    bloomd.process.wait()


@pytest.mark.parametrize("end", [Bloomd.stop, _kill], ids=["restart", "kill -9"])
def test_while_bloomd_is_away_clients_get_a_503_and_then_go_on(site: Site, end: Callable[[Bloomd], object]) -> None:
    with traffic(site.nginx.port) as seen:
        _further(seen, 20, 200)
        end(site.bloomd)
        _further(seen, 20, 503)
        site.bloomd.start()
        _further(seen, 100, 200)
    assert seen.failures == []
    assert {answer.status for answer in seen.answers} == {200, 503}
    assert {answer.status for answer in seen.posted} <= {201, 503}
    for answer in seen.answers + seen.posted:
        if answer.status == 503:
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers.get_content_type() == "application/problem+json"
            assert json.loads(answer.body)["status"] == 503


@pytest.mark.parametrize("end", [Bloomd.stop, _kill], ids=["restart", "kill -9"])
def test_with_two_nodes_nobody_notices_that_one_is_away(
    pair: tuple[Bloomd, int], end: Callable[[Bloomd], object]
) -> None:
    """But who creates something at that very moment: it must not be done twice, so he is told to come back."""
    node, port = pair
    with traffic(port) as seen:
        _further(seen, 20, 200)
        end(node)
        _further(seen, 50, 200)
        node.start()
        _further(seen, 50, 200)
    assert seen.failures == []
    assert {answer.status for answer in seen.answers} == {200}
    assert {answer.status for answer in seen.posted} - {503} == {201}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in seen.posted if answer.status == 503)


@pytest.fixture(scope="module")
def pair(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bloomd, int]]:
    """A second node beside the first, and the port of an nginx in front of both."""
    node = Bloomd(site.bloomd.settings["database.url"])
    node.settings["http.bind"] = [f"127.0.0.1:{node.port}", f"unix:{_through(node)}"]
    with node, Nginx(tmp_path_factory.mktemp("nginx-pair"), _through(site.bloomd), _through(node)) as nginx:
        yield node, nginx.port


def _further(seen: Traffic, number: int, status: int) -> None:
    """Wait for so many more answers of this kind."""
    start = len(seen.answers)
    eventually(lambda: sum(answer.status == status for answer in seen.answers[start:]) >= number)


def _sockets(site: Site) -> int:
    """How many sockets bloomd has open."""
    assert site.bloomd.process
    count = 0
    for each in Path(f"/proc/{site.bloomd.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += str(each.readlink()).startswith("socket:")
    return count
