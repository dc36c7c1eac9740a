"""A real daemon and a peer that speaks Membridge (contract, sections 3 and 5): mirror, settings, proxy, test."""

import json
from functools import partial

import pytest
import trio
from peers import membridge_peer, new_agent, old_agent

KEY = "admin-key-0123456789"


def off_loop(function, *args, **kwargs):
    """Run blocking test code in a thread, so that the peers of this loop go on answering."""
    return trio.to_thread.run_sync(partial(function, *args, **kwargs))


async def eventually(condition, seconds=20):
    with trio.fail_after(seconds):
        while not await off_loop(condition):
            await trio.sleep(0.05)


def workers(daemon):
    return {worker["id"]: worker for worker in daemon.http.get("/api/runtime/workers").json()}


def sync_service(daemon):
    return next((each for each in daemon.status()["services"] if each["name"] == "membridge-sync"), None)


@pytest.mark.parametrize("generation", [old_agent, new_agent])
async def test_agents_become_workers(bloomd, generation):
    async with membridge_peer(key=KEY) as peer:
        peer.agents = [generation("w1"), generation("w2"), {"nonsense": 1}, 7]
        daemon = bloomd(membridge__server_url=peer.url, membridge__admin_key=KEY, membridge__sync_interval=0.2)
        await off_loop(daemon.start)
        await eventually(lambda: set(workers(daemon)) == {"w1", "w2"})
        peer.agents.append(generation("w3"))
        await eventually(lambda: "w3" in workers(daemon))
        assert (await off_loop(workers, daemon))["w1"]["source"] == "membridge"
        round = json.loads((await off_loop(daemon.ctl, "-o", "json", "sync")).stdout)
        assert (round["agents"], round["added"]) == (3, 0)
        assert await off_loop(daemon.stop) == 0


@pytest.mark.parametrize("mode", ["hang", "lie", "redirect", "500", "garbage", "huge", "drop", "html"])
async def test_a_peer_that_misbehaves_changes_nothing_and_is_visible(bloomd, mode):
    async with membridge_peer(key=KEY) as peer, membridge_peer() as elsewhere:
        peer.agents, peer.redirect_to = [new_agent("w1")], elsewhere.url
        daemon = bloomd(
            membridge__server_url=peer.url,
            membridge__admin_key=KEY,
            membridge__sync_interval=0.2,
            membridge__timeout=1,
            probes__timeout=0.5,
        )
        await off_loop(daemon.start)
        await eventually(lambda: "w1" in workers(daemon))
        before = await off_loop(workers, daemon)
        peer.mode = mode
        await eventually(lambda: sync_service(daemon)["state"] == "waiting")
        assert (await off_loop(daemon.http.get, "/api/runtime/stats")).status_code == 200
        status = await off_loop(daemon.status)
        assert (status["verdict"], status["sync"]["failures"] > 0) == ("degraded", True)
        after = await off_loop(workers, daemon)
        assert {id: worker["status"] for id, worker in after.items()} == {
            id: worker["status"] for id, worker in before.items()
        }
        assert not any("x-membridge-admin" in request.headers for request in elsewhere.requests)
        peer.mode = "ok"
        peer.agents.append(new_agent("w2"))
        await eventually(lambda: "w2" in workers(daemon))
        assert KEY not in daemon.log.read_text()


async def test_settings_made_through_the_api_are_in_force_at_once_on_every_node(bloomd, database):
    async with membridge_peer(key=KEY) as peer:
        peer.agents = [new_agent("w1")]
        one, other = bloomd(), bloomd()
        await off_loop(one.start)
        await off_loop(other.start)
        post, get = partial(off_loop, one.http.post), partial(off_loop, one.http.get)
        assert (await get("/api/runtime/config")).json() == {
            "membridge_server_url": "", "admin_key_masked": "", "connected": False, "last_test": None, "stored": [],
        }  # fmt: skip
        body = {"membridge_server_url": peer.url + "/", "membridge_admin_key": KEY}
        saved = (await post("/api/runtime/config", json=body)).json()
        assert (saved["membridge_server_url"], saved["admin_key_masked"]) == (peer.url, "admi****6789")
        tested = (await post("/api/runtime/test-connection")).json()
        assert (tested["connected"], tested["health"]["service"]) == (True, "membridge-control-plane")
        assert (await get("/api/runtime/config")).json()["connected"] is True
        await eventually(lambda: "w1" in workers(one))
        proxied = partial(off_loop, other.http.get, "/api/membridge/agents")
        with trio.fail_after(5):
            while (answer := await proxied()).status_code != 200:
                await trio.sleep(0.05)
        assert answer.json()[0]["name"] == "w1"
        shown = await off_loop(one.ctl, "config")
        assert KEY not in shown.stdout
        assert "database" in shown.stdout
        audit = (await get("/api/runtime/audit", params={"action": "config.updated"})).json()
        assert KEY not in json.dumps(audit)
        assert len(audit) == 1

        unset = await off_loop(one.http.delete, "/api/runtime/config/membridge_server_url")
        assert (unset.json()["membridge_server_url"], unset.json()["connected"]) == ("", False)
        assert unset.json()["last_test"] is None  # that was of another server
        assert (await get("/api/membridge/agents")).status_code == 502
        await eventually(lambda: sync_service(one) is None)


async def test_a_key_goes_only_to_the_server_it_was_given_for(bloomd):
    async with membridge_peer(key=KEY) as peer, membridge_peer() as thief:
        daemon = bloomd(membridge__server_url=peer.url, membridge__admin_key=KEY)
        await off_loop(daemon.start)
        post = partial(off_loop, daemon.http.post, "/api/runtime/config")
        refused = await post(json={"membridge_server_url": thief.url})
        assert refused.status_code == 400
        assert refused.json()["errors"][0]["field"] == "admin_key"
        for bad in ("ftp://x", "javascript:alert(1)", "http://", "http://u:p@h/"):
            assert (await post(json={"membridge_server_url": bad, "admin_key": "k" * 12})).status_code == 400, bad
        assert (await post(json={})).status_code == 400
        assert (await post(json={"admin_key": "не ключ"})).status_code == 400
        assert (await post(json={"membridge_server_url": thief.url, "admin_key": "another-key-1"})).status_code == 200
        await off_loop(daemon.http.get, "/api/membridge/agents")
        assert {request.headers.get("x-membridge-admin") for request in thief.requests} <= {"another-key-1", None}
        await off_loop(daemon.http.delete, "/api/runtime/config/membridge_server_url")
        peer.requests.clear()
        await off_loop(daemon.http.get, "/api/membridge/agents")
        assert {request.headers.get("x-membridge-admin") for request in peer.requests if request.path != "/health"} == {
            KEY
        }


async def test_the_proxy(bloomd):
    async with membridge_peer(key=KEY) as peer:
        project = "0123456789abcdef"
        peer.projects = [{"name": "p", "canonical_id": project, "nodes_count": 1, "source": "manual"}]
        peer.nodes = {project: [{"node_id": "n1", "canonical_id": project, "role": "primary"}]}
        daemon = bloomd(membridge__server_url=peer.url, membridge__admin_key=KEY)
        await off_loop(daemon.start)
        get, post = partial(off_loop, daemon.http.get), partial(off_loop, daemon.http.post)
        assert (await get("/api/membridge/health")).json()["service"] == "membridge-control-plane"
        assert (await get("/api/membridge/projects")).json() == peer.projects
        assert (await get("/api/membridge/jobs?limit=5")).json() == []
        # The daemon's own polls ask the same peer.
        assert [request.query for request in peer.requests if request.path.endswith("/jobs")] == ["limit=5"]
        path = f"/api/membridge/projects/{project}/leadership"
        assert (await get(path)).json()["node_count"] == 1
        assert (await post(f"{path}/select", json={})).status_code == 422
        chosen = await post(f"{path}/select", json={"primary_node_id": "n1"})
        assert (chosen.status_code, chosen.json()["primary_node_id"]) == (200, "n1")
        [entry] = (await get("/api/runtime/audit", params={"action": "membridge.promoted"})).json()
        assert (entry["entity_id"], "n1" in entry["detail"]) == (project, True)
        peer.key = "changed"
        assert (await get("/api/membridge/agents")).status_code == 401
        peer.mode = "500"
        assert (await get("/api/membridge/agents")).status_code == 502


async def test_workers_are_polled(bloomd):
    async with membridge_peer() as agent:
        daemon = bloomd(workers__poll_interval=0.2, workers__offline_after=5)
        await off_loop(daemon.start)
        body = {"name": "w1", "url": agent.url, "status": "offline"}
        await off_loop(daemon.http.post, "/api/runtime/workers", json=body)
        await eventually(lambda: workers(daemon)["w1"]["status"] == "online")
        agent.mode = "500"
        await eventually(lambda: workers(daemon)["w1"]["status"] == "offline")
