"""The agents of workers over HTTP (contract, section 3), with a real daemon and real agents."""

from functools import partial

import pytest
import trio
from agent_peer import agent_peer
from peers import Peer, reply, serving
from servers import free_port

KEY = "the-agent-key-of-the-tests"
URL = "https://git.example.org/agent.git"
STEPS = ("agent-update", "agent-restart", "agent-uninstall")


@pytest.fixture
def http(keyed):
    for worker in keyed.http.get("/api/runtime/workers").json():
        keyed.http.delete(f"/api/runtime/workers/{worker['id']}")
    return keyed.http


@pytest.fixture
async def agent():
    async with agent_peer(key=KEY) as agent:
        yield agent


@pytest.fixture
def worker(http, agent):
    """What there is of a worker over HTTP; the agent is its agent."""

    class Worker:
        async def get(self, path=""):
            return await off_loop(http.get, f"/api/runtime/workers/w1{path}")

        async def post(self, path, **options):
            return await off_loop(http.post, f"/api/runtime/workers/w1/{path}", **options)

        async def told(self):
            answer = await off_loop(http.get, "/api/runtime/audit", params={"entity_id": "w1", "limit": 1})
            [entry] = answer.json()
            return entry["action"], entry["actor"], entry["detail"]

    body = {"name": "w1", "url": agent.url, "capabilities": {"max_concurrency": 1, "gpu": "none"}}
    assert http.post("/api/runtime/workers", json=body).status_code == 201
    return Worker()


def off_loop(function, *args, **kwargs):
    """Run blocking test code in a thread, so that the peers of this loop go on answering."""
    return trio.to_thread.run_sync(partial(function, *args, **kwargs))


async def test_an_agent_that_answers_is_as_it_says(http, worker, agent):
    await off_loop(http.post, "/api/runtime/workers", json={"name": "w1", "status": "offline"})
    agent.replies["/health"] = reply({
        "version": "1.4.0", "os_info": "Alpine 3.20", "hostname": "agent-1", "secret": "x", "ip_addrs": ["10.0.0.7", 7],
        "capabilities": {"claude_cli": True, "max_concurrency": 99, "labels": ["openrc"]},
    })  # fmt: skip
    answer = await worker.get("/agent-health")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "reachable": True, "version": "1.4.0", "os_info": "Alpine 3.20", "hostname": "agent-1",
            "ip_addrs": ["10.0.0.7", "7"],
            "capabilities": {"claude_cli": True, "max_concurrency": 32, "labels": ["openrc"]},
        },
    )  # fmt: skip
    after = (await worker.get()).json()
    assert (after["status"], after["agent_version"], after["os_info"]) == ("online", "1.4.0", "Alpine 3.20")
    assert after["capabilities"] == {"claude_cli": True, "max_concurrency": 32, "labels": ["openrc"], "gpu": "none"}
    assert await worker.told() == ("worker.online", "api-key", "it answered its health poll")
    assert "x-membridge-agent" not in agent.requests[-1].headers


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("500", "the agent answered 500 to GET /health"),
        ("html", "the agent's /health is not a JSON object"),
        ("close", "the agent: the connection was closed before the answer was complete"),
        ("huge", "the agent: its answer is longer than 1 MiB"),
    ],
)
async def test_an_agent_that_does_not_answer_is_offline(worker, agent, mode, error):
    agent.mode = mode
    answer = await worker.get("/agent-health")
    assert (answer.status_code, answer.json()) == (200, {"reachable": False, "error": error})
    assert (await worker.get()).json()["status"] == "offline"
    assert await worker.told() == ("worker.offline", "api-key", error)


async def test_nobody_is_there(http, worker):
    await off_loop(http.post, "/api/runtime/workers", json={"name": "w1", "url": f"http://127.0.0.1:{free_port()}"})
    answer = await worker.get("/agent-health")
    assert answer.json() == {"reachable": False, "error": "the agent: connection refused"}
    for step in STEPS:
        refused = await worker.post(step)
        assert refused.status_code == 502
        assert refused.json()["error"].endswith("of worker w1: the agent: connection refused")
    assert (await worker.get()).json()["status"] == "offline"


async def test_an_agent_is_updated(worker, agent):
    done = await worker.post("agent-update", json={"repo_url": URL})
    assert (done.status_code, done.json()) == (
        200,
        {"status": "updated", "ok": True, "detail": URL, "version": "1.5.0"},
    )
    request = agent.errands[-1]
    assert (request.method, request.path, request.json) == ("POST", "/self-update", {"repo_url": URL})
    assert request.headers["x-membridge-agent"] == KEY
    assert await worker.told() == ("worker.agent-updated", "api-key", f"from {URL}")


async def test_an_agent_may_want_to_know_from_where(worker, agent):
    refused = await worker.post("agent-update")
    assert refused.status_code == 502
    assert "it answered 422; name the repository that it came from as repo_url" in refused.json()["error"]
    for url in ("https://u:token-3f@h/x", "ftp://h/x", ""):
        answer = await worker.post("agent-update", json={"repo_url": url})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "repo_url")
        assert "token-3f" not in answer.text
    assert len(agent.errands) == 1


async def test_an_agent_is_restarted(worker, agent):
    done = await worker.post("agent-restart")
    assert (done.status_code, done.json()) == (200, {"status": "restarted", "ok": True})
    assert (agent.errands[-1].path, agent.errands[-1].json) == ("/restart", {})
    assert await worker.told() == ("worker.agent-restarted", "api-key", "")
    assert (await worker.get()).json()["status"] == "online"


async def test_a_worker_without_its_agent_gets_no_work_any_more(http, worker, agent):
    done = await worker.post("agent-uninstall")
    assert (done.status_code, done.json()) == (200, {"status": "uninstalled", "ok": True})
    assert agent.errands[-1].path == "/uninstall"
    after = (await worker.get()).json()
    assert (after["status"], after["cordoned"]) == ("offline", True)
    assert await worker.told() == ("worker.agent-uninstalled", "api-key", "offline and cordoned, leases it holds: 0")
    assert (await worker.get("/agent-health")).json()["reachable"] is True
    assert (await worker.get()).json()["cordoned"] is True


@pytest.mark.parametrize("step", STEPS)
async def test_an_agent_that_says_no_is_a_502_and_changes_nothing(worker, agent, step):
    before = (await worker.get()).json()
    path = {"agent-update": "/self-update", "agent-restart": "/restart", "agent-uninstall": "/uninstall"}[step]
    for said, error in (
        (reply({"ok": False, "error": f"not me; my key is {KEY}"}), "not me; my key is ****"),
        (reply({"detail": "busy"}, 503), "it answered 503, busy"),
        (reply([]), "its answer is not a JSON object"),
    ):
        agent.replies[path] = said
        answer = await worker.post(step, json={"repo_url": URL})
        assert (answer.status_code, answer.json()["error"]) == (502, f"{path} of worker w1: {error}")
    assert (await worker.get()).json() == before


async def test_the_key_is_not_carried_elsewhere_by_a_redirect(worker, agent):
    async with serving(Peer(lambda _: reply({"ok": True}))) as elsewhere:
        agent.mode, agent.redirect_to = "redirect", elsewhere.url
        for step in STEPS:
            assert (await worker.post(step)).status_code == 502
        assert (await worker.get("/agent-health")).json()["reachable"] is False
        assert elsewhere.connections == 0


async def test_who_has_no_agent(http):
    await off_loop(http.post, "/api/runtime/workers", json={"name": "w2"})
    for worker, status, error in (("w2", 400, "has no url"), ("nobody", 404, "Worker not found")):
        path = f"/api/runtime/workers/{worker}"
        answers = [await off_loop(http.get, f"{path}/agent-health")]
        answers += [await off_loop(http.post, f"{path}/{step}") for step in STEPS]
        assert {answer.status_code for answer in answers} == {status}
        assert all(error in answer.json()["error"] for answer in answers)
