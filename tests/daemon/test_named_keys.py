"""Named API keys over the lives of daemons: two nodes, a database that goes away, one that is away from the start."""

import json
import threading
import time

import httpx
import psycopg
import pytest
from servers import eventually

STATS = "/api/runtime/stats"


@pytest.fixture
def client():
    """A client of a daemon that has this key, or none."""
    opened: list[httpx.Client] = []

    def client(daemon, secret=None):
        headers = {"X-Runtime-API-Key": secret} if secret else {}
        opened.append(httpx.Client(base_url=daemon.url, headers=headers, timeout=30, trust_env=False))
        return opened[-1]

    yield client
    for each in opened:
        each.close()


def add(api, name):
    answer = api.post("/api/runtime/keys", json={"name": name})
    assert answer.status_code == 201, answer.text
    return answer.json()["secret"]


def status(api):
    return api.get(STATS).status_code


def register(worker):
    return worker.post("/api/runtime/workers", json={"name": "w1"}).status_code


def last_used(url):
    with psycopg.connect(url, autocommit=True) as connection:
        return dict(connection.execute("SELECT name, last_used_at FROM api_keys").fetchall())


def test_a_key_is_replaced_while_two_nodes_work(bloomd, client):
    """The old key and the new one are both valid for as long as both are there, and no request fails."""
    one, other = bloomd().start(), bloomd().start()
    old = add(one.http, "web-old")
    at_other = client(other, old)
    eventually(lambda: status(at_other) == 200, seconds=1)
    statuses: list[int] = []
    secret, stop = old, threading.Event()

    def work() -> None:
        while not stop.is_set():
            headers = {"X-Runtime-API-Key": secret}
            answers = [httpx.get(node.url + STATS, headers=headers, trust_env=False) for node in (one, other)]
            statuses.extend(answer.status_code for answer in answers)

    thread = threading.Thread(target=work)
    thread.start()
    new = add(at_other, "web-new")
    eventually(lambda: status(client(one, new)) == 200, seconds=1)
    secret = new
    seen = len(statuses)
    eventually(lambda: len(statuses) > seen + 10)
    assert one.http.delete("/api/runtime/keys/web-old").json()["authentication"] == "on"
    assert status(client(one, old)) == 401  # at once here
    eventually(lambda: status(at_other) == 401, seconds=1)  # and within moments there
    seen = len(statuses)
    eventually(lambda: len(statuses) > seen + 10)
    stop.set()
    thread.join()
    assert set(statuses) == {200}
    trail = [entry for entry in one.http.get("/api/runtime/audit").json() if entry["entity_type"] == "key"]
    assert [(entry["action"], entry["entity_id"], entry["actor"]) for entry in trail] == [
        ("key.removed", "web-old", "api-key"),
        ("key.added", "web-new", "web-old"),
        ("key.added", "web-old", "api-key"),
    ]
    for log in (one.log.read_text(), other.log.read_text()):
        assert old not in log
        assert new not in log


def test_a_row_that_somebody_deletes_by_hand_counts_at_the_next_notification(bloomd, client, database):
    daemon = bloomd().start()
    named = client(daemon, add(daemon.http, "ci"))
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DELETE FROM api_keys")
        connection.execute("NOTIFY bloom_settings")
    eventually(lambda: status(named) == 401, seconds=1)


def test_the_last_use_is_recorded_at_the_orderly_stop_and_meanwhile(bloomd, client, database):
    daemon = bloomd().start()
    used, unused = add(daemon.http, "used"), add(daemon.http, "unused")
    assert unused
    before = time.time() * 1000
    assert status(client(daemon, used)) == 200
    after = time.time() * 1000
    assert daemon.stop() == 0
    found = last_used(database)
    assert found["unused"] is None
    assert before - 1000 <= found["used"] <= after + 1000
    daemon.start()
    assert status(client(daemon, used)) == 200
    eventually(lambda: last_used(database)["used"] > found["used"], seconds=15)
    [shown] = [key for key in daemon.http.get("/api/runtime/keys").json() if key["name"] == "used"]
    assert shown["last_used_at"] > found["used"]


def test_what_is_done_on_the_page_uses_the_key_that_was_signed_in_with(bloomd, client, database):
    daemon = bloomd().start()
    page = client(daemon)
    assert page.post("/api/runtime/session", json={"key": add(daemon.http, "olena")}).status_code == 200
    assert daemon.stop() == 0
    signed_in = last_used(database)["olena"]
    assert signed_in is not None
    daemon.start()
    eventually(lambda: status(page) == 200)
    assert daemon.stop() == 0
    assert last_used(database)["olena"] > signed_in


def test_a_secret_in_the_place_of_a_name_is_not_written_down_by_the_control_socket(bloomd):
    daemon = bloomd().start()
    secret = add(daemon.http, "ci")
    assert daemon.ctl("stop", secret).returncode == 1
    eventually(lambda: daemon.http.get("/api/runtime/audit", params={"action": "control.stop"}).json())
    [entry] = daemon.http.get("/api/runtime/audit", params={"action": "control.stop"}).json()
    assert entry["entity_id"] == "****"
    assert secret not in str(entry) + daemon.log.read_text()


def test_keys_are_valid_while_the_database_is_away(bloomd, client, server):
    daemon = bloomd(server.conninfo(), http__api_key=None).start()
    named = client(daemon, add(daemon.http, "ci"))
    server.stop()
    eventually(lambda: "PostgreSQL" in named.get(STATS).json().get("error", ""))
    assert status(named) == 503
    assert status(client(daemon, "wrong")) == 401
    assert named.delete("/api/runtime/keys/ci").status_code == 503
    server.start()
    eventually(lambda: status(named) == 200)
    assert status(client(daemon, "wrong")) == 401


def test_what_changed_while_a_node_had_no_database_counts_when_it_is_back(bloomd, client, server):
    daemon = bloomd(server.conninfo()).start()
    named = client(daemon, add(daemon.http, "ci"))
    assert daemon.ctl("stop", "database").returncode == 0
    assert "`bloomd-ctl start database`" in named.get(STATS).json()["error"]
    assert daemon.ctl("stop", "notifications").returncode == 0
    server.execute("DELETE FROM api_keys")
    assert daemon.ctl("start", "database").returncode == 0
    assert status(named) == 200  # nobody has told it yet
    assert daemon.ctl("start", "notifications").returncode == 0
    eventually(lambda: status(named) == 401, seconds=2)


def test_a_daemon_that_starts_without_a_database_lets_nobody_in(bloomd, client, server):
    daemon = bloomd(server.conninfo(), http__api_key=None)
    server.stop()
    daemon.start(ready=False)
    eventually(lambda: daemon.socket.exists() and daemon.ctl("status").returncode == 2)
    stranger = client(daemon)
    for path in (STATS, "/api/runtime/keys", "/api/schema", "/api/membridge/agents", "/nothing"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), path
        assert "API keys cannot be checked yet" in answer.json()["error"]
    assert stranger.get("/api/runtime/health").status_code == 200
    assert stranger.get("/metrics").status_code == 200
    assert stranger.get("/ready").status_code == 503
    notices = " ".join(daemon.status()["notices"])
    assert "not known yet" in notices
    assert "authentication is off" not in notices
    server.start()
    eventually(daemon.is_ready)
    assert status(stranger) == 200
    assert "authentication is off" in " ".join(daemon.status()["notices"])


def test_with_a_key_of_the_settings_a_daemon_without_a_database_tells_the_keys_apart(bloomd, client, server):
    daemon = bloomd(server.conninfo()).start()
    named = client(daemon, add(daemon.http, "ci"))
    daemon.stop()
    server.stop()
    daemon.start(ready=False)
    eventually(lambda: daemon.socket.exists() and daemon.ctl("status").returncode == 2)
    assert (status(named), status(client(daemon, "wrong")), status(daemon.http)) == (503, 401, 503)
    assert "cannot be checked yet" in named.get(STATS).json()["error"]
    assert "PostgreSQL" in daemon.http.get("/api/runtime/workers").json()["error"]
    assert daemon.http.get("/api/schema").status_code == 200
    server.start()
    eventually(lambda: status(named) == 200)


def test_the_first_key_turns_authentication_on_and_the_last_one_off(bloomd, client):
    daemon, other = bloomd(http__api_key=None).start(), bloomd(http__api_key=None).start()
    stranger, at_other = client(daemon), client(other)
    assert (status(stranger), status(at_other)) == (200, 200)
    assert "authentication is off" in " ".join(daemon.status()["notices"])
    named = client(daemon, add(stranger, "first"))
    assert (status(stranger), status(named)) == (401, 200)
    eventually(lambda: status(at_other) == 401, seconds=1)
    assert daemon.status()["notices"] == []
    add(named, "second")
    assert named.delete("/api/runtime/keys/second").json()["authentication"] == "on"
    assert named.delete("/api/runtime/keys/first").json() == {
        "removed": True, "name": "first", "authentication": "off",
    }  # fmt: skip
    assert status(stranger) == 200
    assert stranger.get(STATS, headers={"Host": "evil.example"}).status_code == 403
    eventually(lambda: status(at_other) == 200, seconds=1)
    assert "authentication is off" in " ".join(daemon.status()["notices"])

    # A token alone would lock everybody out, so none is made. With one, the loss of the last key opens nothing.
    assert stranger.post("/api/runtime/workers/w1/tokens").status_code == 409
    assert stranger.post("/api/runtime/enrolments", json={"worker": "w1"}).status_code == 409
    third = client(daemon, add(stranger, "third"))
    made = third.post("/api/runtime/workers/w1/tokens").json()
    eventually(lambda: register(client(other, made["secret"])) == 201, seconds=1)
    assert third.delete("/api/runtime/keys/third").json()["authentication"] == "on"
    assert (status(stranger), status(client(daemon, made["secret"]))) == (401, 403)
    eventually(lambda: status(at_other) == 401, seconds=1)
    locked_out = "there are worker tokens but no API key"
    for each in (daemon, other):
        eventually(lambda node=each: locked_out in node.log.read_text(), seconds=1)
        assert [locked_out in notice for notice in each.status()["notices"]] == [True]
    daemon.stop()
    logged = daemon.log.stat().st_size
    daemon.start()
    eventually(lambda: locked_out in daemon.log.read_text()[logged:], seconds=1)
    assert daemon.ctl("key", "add", "fourth").returncode == 0
    assert daemon.status()["notices"] == []
    [key] = json.loads(daemon.ctl("-o", "json", "key", "list").stdout)["keys"]
    assert key["name"] == "fourth"


def test_a_sign_in_counts_on_every_node_until_it_is_ended_on_one(bloomd, client):
    """Without a configured secret, both sign with the one that the database keeps."""
    one, other = bloomd().start(), bloomd().start()
    page = client(one)
    signed_in = page.post("/api/runtime/session", json={"key": add(one.http, "olena")})
    assert (signed_in.status_code, signed_in.json()["actor"]) == (200, "olena")
    [(name, value)] = page.cookies.items()
    page_there = client(other)
    page_there.cookies.set(name, value)
    eventually(lambda: status(page_there) == 200)
    assert page_there.get("/api/runtime/session").json()["actor"] == "olena"
    assert page_there.post("/api/runtime/llm-tasks", json={"prompt": "x"}).status_code == 403  # from no page
    own = {"Origin": other.url}
    assert page_there.post("/api/runtime/llm-tasks", json={"prompt": "x"}, headers=own).status_code == 201
    assert page.delete("/api/runtime/session", headers={"Origin": one.url}).json() == {"ended": True}
    eventually(lambda: status(page_there) == 401, seconds=5)
    assert page_there.get("/api/runtime/session").json()["actor"] is None
    kept = client(one)
    kept.cookies.set(name, value)
    assert status(kept) == 401
    trail = other.http.get("/api/runtime/audit", params={"entity_type": "session"}).json()
    assert [(entry["action"], entry["actor"]) for entry in trail] == [
        ("session.ended", "olena"),
        ("session.began", "olena"),
    ]
    assert value not in one.log.read_text() + other.log.read_text()
