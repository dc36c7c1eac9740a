"""The control plane that bloomd serves itself, end to end: the sync, the proxy and the probe use it like any other."""

import json

import httpx
import pytest
from peers import membridge_peer, new_agent
from servers import eventually, free_port
from test_membridge import off_loop, workers

KEY = "the-key-of-the-environment"
OTHER_KEY = "a-key-that-was-saved-later"
PROJECT = "0123456789abcdef"
SELECT = f"/api/membridge/projects/{PROJECT}/leadership/select"


def client(daemon, key=KEY):
    headers = {"X-MEMBRIDGE-ADMIN": key}
    url = f"http://{daemon.settings['membridge.serve']}"
    return httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False)


@pytest.fixture
def serving(bloomd):
    """A daemon that serves it, with a sync that waits for nobody."""

    def make(*args, **settings):
        daemon = bloomd(*args, membridge__serve=f"127.0.0.1:{free_port()}", membridge__sync_interval=0.2, **settings)
        daemon.environ["MEMBRIDGE_ADMIN_KEY"] = KEY
        return daemon

    return make


def test_agents_become_workers_and_a_restart_forgets_nothing(serving):
    daemon = serving().start()
    with client(daemon) as plane:
        plane.post("/agents", json={"name": "w1", "status": "online", "capabilities": {"claude_cli": True}})
        plane.post("/agent/heartbeat", json={"node_id": "w2", "canonical_id": PROJECT})
        eventually(lambda: set(workers(daemon)) == {"w1", "w2"})
        assert {worker["status"] for worker in workers(daemon).values()} == {"online"}
        chosen = daemon.http.post(SELECT, json={"primary_node_id": "w2"})
        assert (chosen.status_code, chosen.json()["epoch"]) == (200, 1)
        assert {probe["name"]: probe["state"] for probe in daemon.status()["probes"]}["membridge"] == "up"
        config = daemon.http.get("/api/runtime/config").json()
        assert config["membridge_server_url"] == f"http://{daemon.settings['membridge.serve']}"
        tested = daemon.http.post("/api/runtime/test-connection").json()
        assert (tested["connected"], tested["health"]["agents"]) == (True, 2)
        before = plane.get("/agents").json(), plane.get(f"/projects/{PROJECT}/leadership").json()
    assert daemon.stop() == 0
    daemon.start()
    with client(daemon) as plane:
        assert (plane.get("/agents").json(), plane.get(f"/projects/{PROJECT}/leadership").json()) == before
    assert daemon.http.post(SELECT, json={"primary_node_id": "w1"}).json()["epoch"] == 2
    assert KEY not in daemon.log.read_text()


async def test_the_settings_of_the_api_switch_the_client_away_and_never_change_its_key(serving):
    async with membridge_peer(key=OTHER_KEY) as peer:
        peer.agents = [new_agent("elsewhere")]
        daemon = serving()
        await off_loop(daemon.start)

        def listed():
            return [agent["name"] for agent in daemon.http.get("/api/membridge/agents").json()]

        def act():
            with client(daemon) as plane, client(daemon, OTHER_KEY) as other:
                plane.post("/agents", json={"name": "here", "status": "online"})
                assert listed() == ["here"]
                # A key alone would be one for no server: the one that is served has its own.
                refused = daemon.http.post("/api/runtime/config", json={"admin_key": OTHER_KEY})
                assert refused.status_code == 400
                saved = {"membridge_server_url": peer.url, "admin_key": OTHER_KEY}
                assert daemon.http.post("/api/runtime/config", json=saved).status_code == 200
                assert listed() == ["elsewhere"]
                eventually(lambda: "elsewhere" in workers(daemon))
                assert (plane.get("/agents").status_code, other.get("/agents").status_code) == (200, 401)
                daemon.http.delete("/api/runtime/config/membridge_server_url")
                assert listed() == ["here"]
                assert (plane.get("/agents").status_code, other.get("/agents").status_code) == (200, 401)

        await off_loop(act)
        assert {request.headers.get("x-membridge-admin") for request in peer.requests} <= {OTHER_KEY, None}


def test_it_comes_and_moves_and_goes_by_reload(bloomd):
    daemon = bloomd().start()

    def reload():
        return json.loads(daemon.ctl("-o", "json", "reload").stdout)

    def services():
        return {each["name"]: each["state"] for each in daemon.status()["services"]}

    first, second = free_port(), free_port()
    daemon.configure(membridge__serve=f"127.0.0.1:{first}")
    assert (reload()["result"], services()["membridge-server"]) == ("reloaded", "running")
    # No key is set, so there is one that only this daemon has.
    assert daemon.http.get("/api/membridge/agents").json() == []
    eventually(lambda: services()["membridge-sync"] == "running")
    with client(daemon, "") as nobody:
        assert (nobody.get("/agents").status_code, nobody.get("/health").status_code) == (401, 200)
    daemon.configure(membridge__serve=f"127.0.0.1:{second}", membridge__serve_key=OTHER_KEY)
    report = reload()
    assert (report["result"], report["needs_restart"], report["restarted"]) == ("reloaded", [], ["probes"])
    assert daemon.http.get("/api/membridge/agents").status_code == 200
    with client(daemon, OTHER_KEY) as plane:
        assert plane.get("/agents").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{first}/health")
    daemon.configure(membridge__serve=f"127.0.0.1:{daemon.port}", http__bind=[f"127.0.0.1:{free_port()}"])
    report = reload()
    assert (report["result"], "membridge.serve: cannot listen on" in report["errors"][0]) == ("failed", True)
    daemon.configure(membridge__serve=None, membridge__serve_key=None, http__bind=[f"127.0.0.1:{daemon.port}"])
    assert reload()["result"] == "reloaded"
    assert "membridge-server" not in services()
    assert daemon.http.get("/api/membridge/agents").status_code == 502
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{second}/health")


def test_while_postgresql_is_away_it_says_so(serving, server):
    daemon = serving(server.create_database()).start()
    with client(daemon) as plane:
        plane.post("/agents", json={"name": "w1", "status": "online"})
        server.kill()
        eventually(lambda: plane.get("/agents").status_code == 503)
        for answer in (plane.get("/health"), plane.post("/agents", json={"name": "w2"})):
            assert (answer.status_code, list(answer.json()), answer.headers["retry-after"]) == (503, ["detail"], "2")
        server.start()
        eventually(lambda: plane.get("/agents").status_code == 200)
        assert [agent["name"] for agent in plane.get("/agents").json()] == ["w1"]
