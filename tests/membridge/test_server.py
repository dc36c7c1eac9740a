"""The control plane that bloomd serves: our own client, and what others in the field send, against a real daemon."""

import hashlib
import json as jsonlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import psycopg
import pytest
import trio
from agent_peer import AgentPeer, agent_peer
from bloomd_process import Bloomd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import Reply, reply
from servers import PostgresServer, free_port

from bloomd.errors import Misconfigured
from bloomd.membridge.client import MembridgeClient

KEY = "the-key-of-the-control-plane"
AGENT_KEY = "the-key-of-the-agents"
PROJECT = hashlib.sha256(b"atlas").hexdigest()[:16]
OLD = {"name": "w1", "url": "http://10.0.0.7:8001"}
NEW = {"name": "w1", "status": "online", "capabilities": {"claude_cli": True, "max_concurrency": 2, "labels": ["gpu"]}}

Sql = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def daemon(postgres_server: PostgresServer, migrated: str) -> Iterator[Bloomd]:
    """Its own sync stays out of the way: it takes `GET /agents` for itself once an hour."""
    bloomd = Bloomd(
        postgres_server.create_database(migrated),
        membridge__serve=f"127.0.0.1:{free_port()}",
        membridge__serve_key=KEY,
        membridge__agent_key=AGENT_KEY,
        membridge__sync_interval=3600,
    )
    with bloomd:
        yield bloomd
        assert bloomd.stop() == 0


@pytest.fixture
def sql(daemon: Bloomd) -> Sql:
    def run(statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def url(daemon: Bloomd, sql: Sql) -> str:
    """Where it is; it knows nothing yet."""
    sql(
        "TRUNCATE membridge_agents, membridge_projects, membridge_nodes, membridge_leaderships, membridge_jobs, "
        "audit_logs"
    )
    return f"http://{daemon.settings['membridge.serve']}"


@pytest.fixture
def plane(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"X-MEMBRIDGE-ADMIN": KEY}, trust_env=False, timeout=30) as client:
        yield client


def later(sql: Sql, seconds: int) -> None:
    """As if so much time had passed since all that has happened here."""
    sql(f"UPDATE membridge_agents SET last_seen = last_seen - {seconds * 1000}")
    sql(f"UPDATE membridge_leaderships SET expires_at = expires_at - {seconds * 1000}")
    sql(f"UPDATE membridge_jobs SET created_at = created_at - {seconds * 1000}")


def test_health_needs_no_key_and_counts(plane: httpx.Client, url: str) -> None:
    plane.post("/agents", json=OLD)
    plane.post("/projects", json={"name": "atlas"})
    health = httpx.get(f"{url}/health").json()
    assert health.pop("version")
    assert health == {"status": "ok", "service": "membridge-control-plane", "projects": 1, "agents": 1}
    assert httpx.head(f"{url}/health").content == b""


@pytest.mark.parametrize("path", ["/agents", "/projects", "/jobs", "/no-such", "//health", "/%68ealth", "/health/"])
@pytest.mark.parametrize("key", [None, "", KEY[:-1], KEY + "x", "не ключ".encode()])
def test_nothing_else_is_told_without_the_key(url: str, path: str, key: str | bytes | None) -> None:
    headers = {} if key is None else {"X-MEMBRIDGE-ADMIN": key}
    answer = httpx.get(url + path, headers=headers)
    assert (answer.status_code, list(answer.json())) == (401, ["detail"])


def test_the_key_is_judged_before_the_body_comes(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /agents HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 401")


def test_an_old_agent_is_unknown_and_updated_when_it_returns(plane: httpx.Client) -> None:
    first = plane.post("/agents", json=OLD)
    assert (first.status_code, first.json()["status"]) == (201, "unknown")
    assert abs(first.json()["registered_at"] - time.time()) < 60
    assert isinstance(first.json()["registered_at"], float)
    again = plane.post("/agents", json={**OLD, "url": "http://10.0.0.8:8001"})
    assert (again.status_code, again.json()["url"]) == (200, "http://10.0.0.8:8001")
    assert plane.get("/agents").json() == [again.json()]
    assert "last_seen" not in again.json()
    assert again.json()["registered_at"] == first.json()["registered_at"]


def test_a_new_agent_is_online_as_long_as_it_is_heard(plane: httpx.Client, sql: Sql) -> None:
    assert plane.post("/agents", json=NEW).status_code == 201
    [agent] = plane.get("/agents").json()
    assert (agent["status"], agent["capabilities"], agent["id"]) == ("online", NEW["capabilities"], "w1")
    later(sql, 61)
    assert plane.get("/agents").json()[0]["status"] == "offline"
    plane.post("/agent/heartbeat", json={"node_id": "w1", "canonical_id": PROJECT})
    [agent] = plane.get("/agents").json()
    assert (agent["status"], abs(agent["last_seen"] - time.time()) < 60) == ("online", True)
    assert plane.post("/agents", json={"name": "w1", "status": "offline"}).json()["status"] == "offline"


def test_what_is_not_said_overwrites_nothing(plane: httpx.Client) -> None:
    full = {**NEW, **OLD, "ip_addrs": ["10.0.0.7"], "obs_count": 3, "db_sha": "5f1c"}
    before = plane.post("/agents", json=full).json()
    plane.post("/agents", json={"name": "w1", "url": None, "capabilities": None, "status": "no such", "db_sha": {}})
    plane.post("/agent/heartbeat", json={"node_id": "w1", "canonical_id": PROJECT, "obs_count": -1, "ip_addrs": None})
    [after] = plane.get("/agents").json()
    assert after | {"last_seen": 0} == before | {"last_seen": 0}
    merged = plane.post("/agents", json={"name": "w1", "capabilities": {"labels": ["arm64"], "extra": [1]}}).json()
    assert merged["capabilities"] == {**NEW["capabilities"], "labels": ["arm64"], "extra": [1]}
    for n in range(6):
        sent = {"name": "w1", "capabilities": {f"note{n}": "x" * 16_000}}
        merged = plane.post("/agents", json=sent).json()
    assert "note3" in merged["capabilities"]
    assert "note4" not in merged["capabilities"]


def test_an_agent_goes_with_what_it_is_of_projects(plane: httpx.Client) -> None:
    for name in ("w1", "w/1 ü", "w2"):
        plane.post("/agent/heartbeat", json={"node_id": name, "canonical_id": PROJECT})
    assert plane.delete("/agents/w%2F1%20%C3%BC").status_code == 204
    assert plane.delete("/agents/w1").status_code == 204
    assert (plane.delete("/agents/w1").status_code, plane.delete("/agents/%00").status_code) == (404, 400)
    assert [node["node_id"] for node in plane.get(f"/projects/{PROJECT}/nodes").json()] == ["w2"]
    assert [agent["name"] for agent in plane.get("/agents").json()] == ["w2"]


def test_projects_by_hand_and_by_heartbeat(plane: httpx.Client) -> None:
    added = plane.post("/projects", json={"name": "atlas"})
    assert added.status_code == 201
    assert (added.json()["canonical_id"], added.json()["source"], added.json()["nodes_count"]) == (PROJECT, "manual", 0)
    assert plane.post("/projects", json={"name": "atlas"}).status_code == 409
    assert plane.post("/projects", json={"name": "other", "canonical_id": PROJECT}).status_code == 409
    plane.post("/agent/heartbeat", json={"node_id": "w1", "canonical_id": PROJECT, "project_id": "p"})
    plane.post("/agent/heartbeat", json={"node_id": "w1", "canonical_id": "f" * 16, "project_id": "atlas"})
    plane.post("/agent/heartbeat", json={"node_id": "w1", "canonical_id": "e" * 16, "project_id": "borealis"})
    projects = {each["name"]: each for each in plane.get("/projects").json()}
    assert {name: (each["source"], each["nodes_count"]) for name, each in projects.items()} == {
        "atlas": ("manual", 1), "f" * 16: ("heartbeat", 1), "borealis": ("heartbeat", 1),
    }  # fmt: skip
    assert abs(projects["atlas"]["last_seen"] - time.time()) < 60
    assert (plane.delete("/projects/atlas").status_code, plane.delete("/projects/atlas").status_code) == (204, 404)
    assert plane.get(f"/projects/{PROJECT}/nodes").json() == []


def test_roles_follow_the_leadership_until_its_time_is_over(plane: httpx.Client, sql: Sql) -> None:
    def beat(node: str) -> str:
        return plane.post("/agent/heartbeat", json={"node_id": node, "canonical_id": PROJECT, "db_sha": "5f"}).json()[
            "role"
        ]

    leadership, select = f"/projects/{PROJECT}/leadership", f"/projects/{PROJECT}/leadership/select"
    assert [beat("n1"), beat("n2")] == ["unknown", "unknown"]
    none = plane.get(leadership).json()
    assert (none["preferred_primary"], none["epoch"], none["node_count"]) == (None, None, 2)
    chosen = plane.post(select, json={"primary_node_id": "n1", "lease_seconds": 60}).json()
    assert (chosen["ok"], chosen["canonical_id"], chosen["lease_seconds"]) == (True, PROJECT, 60)
    assert (chosen["primary_node_id"], chosen["epoch"]) == ("n1", 1)
    assert (chosen["expires_at"] - chosen["issued_at"], abs(chosen["issued_at"] - time.time()) < 60) == (60, True)
    assert [beat("n1"), beat("n2")] == ["primary", "secondary"]
    told = plane.get(leadership).json()
    assert {key: told[key] for key in ("primary_node_id", "epoch", "issued_at", "expires_at")} == {
        key: chosen[key] for key in ("primary_node_id", "epoch", "issued_at", "expires_at")
    }
    assert told["preferred_primary"] == "n1"
    assert [(node["node_id"], node["role"]) for node in told["nodes"]] == [("n1", "primary"), ("n2", "secondary")]
    later(sql, 60)
    over = plane.get(leadership).json()
    assert (over["primary_node_id"], over["expires_at"], beat("n1")) == (None, None, "unknown")
    assert [node["role"] for node in plane.get(f"/projects/{PROJECT}/nodes").json()] == ["unknown", "unknown"]


def test_no_epoch_comes_twice(plane: httpx.Client) -> None:
    select = f"/projects/{PROJECT}/leadership/select"

    def choose(number: int) -> dict[str, Any]:
        return plane.post(select, json={"primary_node_id": f"n{number}"}).json()

    with ThreadPoolExecutor(20) as pool:
        chosen = sorted(pool.map(choose, range(20)), key=lambda each: each["epoch"])
    assert [each["epoch"] for each in chosen] == list(range(1, 21))
    assert all(one["issued_at"] <= next["issued_at"] for one, next in pairwise(chosen))
    assert plane.get(f"/projects/{PROJECT}/leadership").json()["primary_node_id"] == chosen[-1]["primary_node_id"]
    plane.post("/projects", json={"name": "atlas"})
    plane.delete("/projects/atlas")
    assert plane.get(f"/projects/{PROJECT}/leadership").json()["primary_node_id"] is None
    assert choose(1)["epoch"] == 21


def test_of_many_at_once_one_is_new(plane: httpx.Client) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: plane.post("/agents", json=NEW).status_code, range(20)))
        projects = list(pool.map(lambda _: plane.post("/projects", json={"name": "atlas"}).status_code, range(20)))
        beat = {"node_id": "n1", "canonical_id": "a" * 16, "project_id": "p"}
        beats = list(pool.map(lambda _: plane.post("/agent/heartbeat", json=beat).status_code, range(20)))
    assert sorted(answers) == [200] * 19 + [201]
    assert sorted(projects) == [201] + [409] * 19
    assert beats == [200] * 20
    assert [each["name"] for each in plane.get("/agents").json()] == ["w1", "n1"]


SELECT = f"/projects/{PROJECT}/leadership/select"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/agents", b"{", 400),
        ("/agents", b"[" * 100_000, 400),
        ("/agents", b'{"name": "\xff"}', 400),
        ("/agents", b'{"name": "\\ud800"}', 400),
        ("/agents", b"", 400),
        ("/agents", b"[]", 422),
        ("/agents", b"{}", 422),
        ("/agents", b'{"name": "a\\u0000b"}', 422),
        ("/agents", b'{"name": "' + b"n" * 129 + b'"}', 422),
        ("/agents", b'{"name": "w1", "url": "ftp://x"}', 422),
        ("/projects", b'{"name": ""}', 422),
        ("/projects", b'{"name": "atlas", "canonical_id": "../x"}', 422),
        ("/agent/heartbeat", b'{"node_id": "n1"}', 422),
        ("/agent/heartbeat", b'{"node_id": "n1", "canonical_id": "0123456789ABCDEF"}', 422),
        (SELECT, b'{"lease_seconds": 60}', 422),
        (SELECT, b'{"primary_node_id": "n1", "lease_seconds": "60"}', 422),
        (SELECT, b'{"primary_node_id": "n1", "lease_seconds": 0}', 422),
        (SELECT, b'{"primary_node_id": "n1", "lease_seconds": 1e18}', 422),
        ("/projects/atlas/leadership/select", b'{"primary_node_id": "n1"}', 404),
        ("/sync/push", b'{"project": "atlas"}', 422),
        ("/sync/pull", b'{"project": "atlas", "agent": "w1"}', 404),
        ("/sync/other", b"{}", 404),
        ("/agents", b'{"name": "' + b"n" * 1_100_000 + b'"}', 413),
    ],
)
def test_a_body_or_path_that_makes_no_sense(plane: httpx.Client, path: str, body: bytes, status: int) -> None:
    answer = plane.post(path, content=body)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert isinstance(answer.json()["detail"], str)
    assert plane.get("/health").json()["agents"] == 0


def test_a_body_of_unknown_length_ends_at_the_limit(plane: httpx.Client) -> None:
    assert plane.post("/agents", content=(b" " * 100_000 for _ in range(20))).status_code == 413


def test_another_method_is_named(plane: httpx.Client) -> None:
    answer = plane.put("/agents")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert plane.get("/jobs?limit=0").status_code == 422


def test_no_body_is_a_bug_of_ours(plane: httpx.Client) -> None:
    json = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
    fields = ("name", "url", "status", "capabilities", "ip_addrs", "obs_count", "db_sha", "node_id", "canonical_id",
              "project_id", "agent_version", "primary_node_id", "lease_seconds")  # fmt: skip
    good: dict[str, Any] = {"name": "w1", "node_id": "n1", "canonical_id": PROJECT, "primary_node_id": "n1"}

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(st.sampled_from(["/agents", "/projects", "/agent/heartbeat", SELECT]), st.dictionaries(
        st.sampled_from(fields), json, max_size=4
    ))  # fmt: skip
    def post(path: str, changed: dict[str, Any]) -> None:
        body = written(good | changed)
        assert plane.post(path, content=body).status_code in (200, 201, 400, 409, 422)
        assert plane.get("/agents").status_code == 200

    post()


def written(value: Any) -> bytes:
    """JSON as others write it: with NaN, lone surrogates and integers of any length."""
    return jsonlib.dumps(value).encode("utf-8", "surrogatepass")


async def off_loop(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run blocking code in a thread, so that the peers of this loop go on answering."""
    return await trio.to_thread.run_sync(partial(function, *args, **kwargs))


async def sync(plane: httpx.Client, agent: AgentPeer | str, action: str = "push") -> dict[str, Any]:
    url = agent if isinstance(agent, str) else agent.url
    await off_loop(plane.post, "/agents", json={"name": "w1", "url": url})
    answer = await off_loop(plane.post, f"/sync/{action}", json={"project": "atlas", "agent": "w1"})
    assert answer.status_code == 200, answer.text
    job = (await off_loop(plane.get, f"/jobs/{answer.json()['job_id']}")).json()
    assert (job["status"], job["detail"]) == ("done" if answer.json()["ok"] else "failed", answer.json()["detail"])
    assert (job["action"], job["agent"], job["finished_at"] >= job["created_at"]) == (action, "w1", True)
    return answer.json()


@pytest.mark.parametrize("action", ["push", "pull"])
async def test_a_sync_is_forwarded_and_its_answer_passed_on_by_known_fields(plane: httpx.Client, action: str) -> None:
    async with agent_peer(key=AGENT_KEY) as agent:
        told = await sync(plane, agent, action)
        assert told.pop("job_id")
        assert told == {"ok": True, "project": "atlas", "agent": "w1", "canonical_id": PROJECT, "detail": "done"}
        request = agent.requests[-1]
        assert (request.method, request.path) == ("POST", f"/sync/{action}")
        assert request.json == {"project": "atlas"}
        assert "x-membridge-admin" not in request.headers


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (reply({"ok": False, "detail": "conflict"}), "conflict"),
        (reply({"detail": "no such project"}, 404), "the agent answered 404: no such project"),
        (reply({"detail": "?"}, 401), "the agent refuses the key (it answered 401): see membridge.agent_key"),
        (reply({"ok": "yes", "detail": f"\0\ud800a {AGENT_KEY}"}), "a ****"),
        (reply({"ok": False, "error": "x" * 10_000}), "x" * 2000),
        (Reply(200, b"<html>"), ""),
        (Reply(200, b"[" * 2_000_000), "the agent: its answer is longer than 1 MiB"),
    ],
)
async def test_an_agent_that_fails(plane: httpx.Client, answer: Reply, detail: str) -> None:
    async with agent_peer(key=AGENT_KEY) as agent:
        agent.replies["/sync/push"] = answer
        told = await sync(plane, agent)
        assert (told["ok"], told["detail"]) == (False, detail)


async def test_an_agent_that_cannot_be_asked(plane: httpx.Client) -> None:
    assert (await sync(plane, f"http://127.0.0.1:{free_port()}"))["detail"].endswith("connection refused")
    assert "outside workers.allowed_networks" in (await sync(plane, "http://169.254.169.254"))["detail"]
    await off_loop(plane.post, "/agents", json={"name": "nowhere"})
    answer = await off_loop(plane.post, "/sync/push", json={"project": "atlas", "agent": "nowhere"})
    assert answer.status_code == 400


def test_jobs_newest_first_and_lost_when_they_never_ended(plane: httpx.Client, sql: Sql) -> None:
    for number in range(3):
        sql(
            "INSERT INTO membridge_jobs SELECT "
            f"'j{number}', 'push', 'p', '{PROJECT}', 'w1', 'running', '', bloom_now_ms() + {number}"
        )
    assert [job["id"] for job in plane.get("/jobs").json()] == ["j2", "j1", "j0"]
    assert [job["id"] for job in plane.get("/jobs?limit=1").json()] == ["j2"]
    assert plane.get("/jobs/j0").json()["status"] == "running"
    later(sql, 400)
    assert plane.get("/jobs/j0").json()["status"] == "lost"
    assert plane.get("/jobs/other").status_code == 404


def test_changes_are_in_the_audit_trail_and_heartbeats_are_not(plane: httpx.Client, sql: Sql) -> None:
    plane.post("/agents", json=OLD)
    for _ in range(3):
        plane.post("/agent/heartbeat", json={"node_id": "w1", "canonical_id": PROJECT})
    plane.post(SELECT, json={"primary_node_id": "w1"})
    plane.delete("/agents/w1")
    actions = [
        action
        for (action,) in sql("SELECT action FROM audit_logs WHERE action LIKE 'membridge.%' ORDER BY timestamp, action")
    ]
    assert sorted(actions) == [
        "membridge.agent_registered",
        "membridge.agent_removed",
        "membridge.primary_selected",
        "membridge.project_added",
    ]


async def test_our_own_client(plane: httpx.Client, url: str) -> None:
    for body in (OLD, {**NEW, "name": "w2", "status": "online"}):
        await off_loop(plane.post, "/agents", json=body)
    client = MembridgeClient(url, KEY)
    assert (await client.health()).agents == 2
    await client.check_key()
    old, new = await client.agents()
    assert (old.id, old.url, old.status, old.capabilities) == ("w1", OLD["url"], "unknown", None)
    assert (new.id, new.url, new.status, new.capabilities) == ("w2", None, "online", NEW["capabilities"])
    assert abs((new.last_seen_ms or 0) - time.time() * 1000) < 60_000
    answer = await client.request("POST", SELECT, json={"primary_node_id": "w1"})
    assert answer.status == 200
    with pytest.raises(Misconfigured, match="refuses the admin key"):
        await MembridgeClient(url, "another").agents()
