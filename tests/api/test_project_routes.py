"""Managed projects over HTTP (contract, section 3), with a real daemon, real agents and a real Membridge."""

import signal
import socket
from contextlib import suppress
from functools import partial

import psycopg
import pytest
import trio
from agent_peer import agent_peer
from bloomd_process import KEY
from peers import membridge_peer, reply

AGENT_KEY = "the-agent-key-of-the-tests"
ADMIN_KEY = "the-admin-key-of-the-tests"
PROJECTS = "/api/runtime/projects"
FIELDS = {
    "id", "name", "repo_url", "canonical_id", "target_path", "clone_status", "primary_node_id", "created_at",
    "updated_at", "error_message",
}  # fmt: skip
NODE_FIELDS = {"id", "project_id", "node_id", "clone_status", "last_sync_at", "error_message", "repo_path"}

# As it is when bloomd looks again after a while.
LATER = """
CREATE OR REPLACE FUNCTION bloom_now_ms() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + {minutes} * 60000 $$
"""


@pytest.fixture
def tables(keyed):
    """Its database, whose clock a test may move."""
    with psycopg.connect(keyed.settings["database.url"], autocommit=True) as connection:
        [[clock]] = connection.execute("SELECT pg_get_functiondef('bloom_now_ms'::regproc)").fetchall()
        yield connection
        connection.execute(clock)


@pytest.fixture
def http(keyed):
    for worker in keyed.http.get("/api/runtime/workers").json():
        keyed.http.delete(f"/api/runtime/workers/{worker['id']}")
    for project in keyed.http.get(PROJECTS).json():
        keyed.http.delete(f"{PROJECTS}/{project['id']}")
    return keyed.http


@pytest.fixture
def create(http):
    def create(name="bloom", **fields):
        answer = http.post(PROJECTS, json={"name": name, "repo_url": "https://git.example.org/b.git", **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    return create


@pytest.fixture
def register(http):
    def register(name, url, **fields):
        assert http.post("/api/runtime/workers", json={"name": name, "url": url, **fields}).is_success

    return register


def off_loop(function, *args, **kwargs):
    """Run blocking test code in a thread, so that the peers of this loop go on answering."""
    return trio.to_thread.run_sync(partial(function, *args, **kwargs))


async def until(http, project, status):
    with trio.fail_after(15):
        while (seen := (await off_loop(http.get, f"{PROJECTS}/{project['id']}")).json())["clone_status"] != status:
            await trio.sleep(0.02)
    return seen


def test_a_project_from_its_creation_to_its_end(http, create):
    made = create("My project", target_path="/srv/p")
    assert set(made) == FIELDS
    assert (made["canonical_id"], made["clone_status"], made["target_path"]) == (
        "cc42295b252b2e69",
        "pending",
        "/srv/p",
    )
    assert create("other", target_path="")["target_path"] is None
    one = http.get(f"{PROJECTS}/{made['id']}").json()
    assert one == {**made, "nodes": []}
    assert http.get(f"{PROJECTS}/{made['id']}/node-status").json() == []
    removed = http.delete(f"{PROJECTS}/{made['id']}")
    assert (removed.status_code, removed.json()) == (200, {"removed": True, "id": made["id"]})
    for method, path in (
        ("GET", ""), ("DELETE", ""), ("GET", "/node-status"), ("POST", "/clone"), ("POST", "/propagate"),
    ):  # fmt: skip
        answer = http.request(method, f"{PROJECTS}/{made['id']}{path}")
        assert (answer.status_code, answer.json()["error"]) == (404, "Project not found"), path
    answer = http.post(f"{PROJECTS}/{made['id']}/sync-memory", json={"direction": "push"})
    assert answer.status_code == 404


def test_projects_are_listed_newest_first_in_pages(http, create):
    made = [create(f"p{n}")["name"] for n in range(5)]
    seen, path = [], f"{PROJECTS}?limit=2"
    while path:
        answer = http.get(path)
        seen += [project["name"] for project in answer.json()]
        path = answer.links.get("next", {}).get("url")
    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["name", "repo_url"]),
        ({"name": "a/b", "repo_url": "ftp://h/x", "target_path": "a/../b"}, ["name", "repo_url", "target_path"]),
        ({"name": "ok", "repo_url": "https://user:token-3f@h/x"}, ["repo_url"]),
        ({"name": 7, "repo_url": "https://h/x"}, ["name"]),
    ],
)
def test_bad_projects(http, body, fields):
    answer = http.post(PROJECTS, json=body)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == fields
    assert "token-3f" not in answer.text


async def test_cloning_and_propagating(http, create, register):
    project = await off_loop(create)
    path = f"{PROJECTS}/{project['id']}"
    post, get = partial(off_loop, http.post), partial(off_loop, http.get)
    assert (await post(f"{path}/clone")).status_code == 400
    assert (await post(f"{path}/propagate")).json() == {"status": "nothing_to_propagate", "results": []}
    async with agent_peer(key=AGENT_KEY) as one, agent_peer(key=AGENT_KEY) as other:
        await off_loop(register, "w1", one.url)
        unknown = await post(f"{path}/clone", json={"node_id": "nobody"})
        assert (unknown.status_code, "nobody" in unknown.json()["error"]) == (400, True)
        cloned = await post(f"{path}/clone", json={"node_id": "w1"})
        assert (cloned.status_code, cloned.json()) == (
            200,
            {"status": "cloned", "node": "w1", "result": {"ok": True, "path": "/srv/bloom", "detail": "cloned"}},
        )
        await off_loop(register, "w2", other.url)
        propagated = await post(f"{path}/propagate")
        assert propagated.json() == {
            "status": "synced",
            "results": [{"node": "w2", "ok": True, "result": {"ok": True, "path": "/srv/bloom", "detail": "cloned"}}],
        }
        assert (one.cloned, other.cloned) == (["bloom"], ["bloom"])
        shown = (await get(path)).json()
        assert (shown["clone_status"], shown["primary_node_id"]) == ("synced", "w1")
        assert [(node["node_id"], node["clone_status"]) for node in shown["nodes"]] == [
            ("w1", "cloned"),
            ("w2", "synced"),
        ]
        assert set(shown["nodes"][0]) == NODE_FIELDS
        assert (await get(f"{path}/node-status")).json() == shown["nodes"]
        other.replies["/clone"] = reply({"ok": False, "error": "no disk"})
        partly = (await post(f"{path}/propagate")).json()
        assert (partly["status"], partly["results"][0]["ok"]) == ("partial", False)
        one.replies["/clone"] = reply({"ok": False, "error": "no disk either"})
        failed = await post(f"{path}/clone")
        assert (failed.status_code, failed.json()["type"]) == (502, "urn:problem-type:bloomd:agent-failed")
        assert failed.json()["error"] == "/clone of worker w1: no disk either"
        after = (await get(path)).json()
        assert (after["clone_status"], after["error_message"]) == (
            "failed",
            "node w1: /clone of worker w1: no disk either",
        )
    assert (await post(f"{path}/clone", json={"node_id": "w2"})).status_code == 502
    audit = (await get("/api/runtime/audit", params={"entity_id": project["id"]})).json()
    assert [entry["action"] for entry in audit][::-1][:3] == ["project.created", "project.cloning", "project.cloned"]
    assert {entry["actor"] for entry in audit} == {"api-key"}


async def test_the_memory_of_a_project(keyed, http, create, register):
    project = await off_loop(create)
    sync = partial(off_loop, http.post, f"{PROJECTS}/{project['id']}/sync-memory")
    await off_loop(register, "w1", "http://127.0.0.1:1")
    away = await sync(json={"direction": "push"})
    assert (away.status_code, "no Membridge server is configured" in away.json()["error"]) == (502, True)
    async with membridge_peer(key=ADMIN_KEY) as peer:
        config = {"membridge_server_url": peer.url, "admin_key": ADMIN_KEY}
        assert (await off_loop(http.post, "/api/runtime/config", json=config)).status_code == 200
        for direction in ("push", "pull"):
            done = await sync(json={"direction": direction, "node_id": "w1"})
            assert (done.status_code, done.json()["status"], done.json()["node"]) == (200, "synced", "w1")
            assert [each.path for each in peer.requests if each.path.startswith("/sync/")][-1] == f"/sync/{direction}"
        assert done.json()["result"]["project"] == "bloom"
        for body in ({}, {"direction": "up"}, {"direction": "push", "node_id": "nobody"}):
            assert (await sync(json=body)).status_code == 400
        await off_loop(http.delete, "/api/runtime/config/membridge_server_url")
        await off_loop(http.delete, "/api/runtime/config/admin_key")
        assert ADMIN_KEY not in keyed.log.read_text()


def hold_back(agent):
    """Let the agent do things only when the gate is open. How it is, it says all the time."""
    gate, answer = trio.Event(), agent.answer

    async def answer_later(request):
        if request.path != "/health":
            await gate.wait()
        return await answer(request)

    agent.answer = answer_later
    return gate


async def test_a_cloning_goes_on_when_its_client_goes_away(keyed, http, create, register):
    project = await off_loop(create)
    async with agent_peer(key=AGENT_KEY) as agent:
        await off_loop(register, "w1", agent.url)
        gate = hold_back(agent)
        with socket.create_connection(("127.0.0.1", keyed.port)) as client:
            client.sendall(
                f"POST {PROJECTS}/{project['id']}/clone HTTP/1.1\r\nHost: localhost\r\nX-Runtime-API-Key: {KEY}\r\n\r\n"
                .encode()
            )  # fmt: skip
            while not agent.errands:
                await trio.sleep(0.01)
        assert (await until(http, project, "cloning"))["nodes"][0]["clone_status"] == "cloning"
        second = await off_loop(http.post, f"{PROJECTS}/{project['id']}/clone")
        assert (second.status_code, len(agent.errands)) == (409, 1)
        gate.set()
        assert (await until(http, project, "cloned"))["nodes"][0]["clone_status"] == "cloned"


async def test_a_cloning_under_way_when_bloomd_ends_is_over(keyed, tables, http, create, register):
    """Stopped, bloomd says so itself. Killed, it says nothing more: whoever looks after a while finds it overdue."""
    project = await off_loop(create)
    path = f"{PROJECTS}/{project['id']}"
    async with agent_peer(key=AGENT_KEY) as agent, trio.open_nursery() as nursery:
        gate = hold_back(agent)
        for minutes, (number, left) in enumerate(((signal.SIGTERM, "failed"), (signal.SIGKILL, "cloning")), 1):
            # Anew, as by the clock that was moved nobody has heard of it for a while.
            await off_loop(register, "w1", agent.url)
            agent.requests.clear()
            nursery.start_soon(ask_in_vain, keyed, f"{path}/clone")
            with trio.fail_after(10):
                while "/clone" not in [request.path for request in agent.requests]:
                    await trio.sleep(0.01)
            keyed.signal(number)
            await off_loop(keyed.process.wait, 15)
            assert tables.execute("SELECT clone_status FROM managed_projects").fetchall() == [(left,)]
            tables.execute(LATER.format(minutes=minutes))
            await off_loop(keyed.start)
            after = (await off_loop(http.get, path)).json()
            assert (after["clone_status"], "interrupted" in after["error_message"]) == ("failed", True)
            assert after["nodes"][0]["clone_status"] == "failed"
        await off_loop(register, "w1", agent.url)
        gate.set()
        again = await off_loop(http.post, f"{path}/clone", json={"node_id": "w1"})
        assert (again.status_code, again.json()["node"]) == (200, "w1")


async def ask_in_vain(bloomd, path):
    def ask():
        with socket.create_connection(("127.0.0.1", bloomd.port)) as client, suppress(ConnectionError):
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Runtime-API-Key: {KEY}\r\n\r\n".encode())
            client.recv(1)

    await off_loop(ask)
