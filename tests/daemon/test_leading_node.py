"""Several nodes on one database: one of them leads, and what it does goes on elsewhere when it is gone."""

import signal
import time

import pytest
from servers import eventually

# From the moment at which a leader is gone until another one has taken its place.
AT_MOST = 10.0


def leader(daemon):
    return daemon.status()["leader"]


def leads(daemon):
    found = leader(daemon)
    return found is not None and found["here"]


def service(daemon, name):
    return next((each for each in daemon.status()["services"] if each["name"] == name), None)


def elections(daemon):
    entries = daemon.http.get("/api/runtime/audit", params={"action": "leader.elected"}).json()
    return [entry["detail"] for entry in reversed(entries)]


def actions(daemon, task):
    entries = daemon.http.get("/api/runtime/audit", params={"entity_id": task}).json()
    return [entry["action"] for entry in entries]


@pytest.fixture
def nodes(bloomd):
    """Make nodes of which the first one leads, and all know that."""

    def start(count=2):
        found = [bloomd(migrate=number == 0, tasks__sweep_interval=0.2) for number in range(count)]
        found[0].start()
        eventually(lambda: leads(found[0]))
        for node in found[1:]:
            node.start(ready=False)
        for node in found:
            eventually(node.is_ready)
            eventually(lambda node=node: leader(node) and leader(node)["epoch"] == 1)
        assert [leads(node) for node in found].count(True) == 1
        return found

    return start


def leased_task(daemon):
    """Its lease ends in five seconds."""
    daemon.http.post("/api/runtime/workers", json={"name": "w"})
    task = daemon.http.post("/api/runtime/llm-tasks", json={"prompt": "x"}).json()["id"]
    leased = daemon.http.post(f"/api/runtime/llm-tasks/{task}/lease", json={"ttl_seconds": 5})
    assert leased.status_code == 201, leased.text
    return task


def test_a_leader_that_is_killed_is_replaced_and_the_sweep_goes_on(nodes):
    first, *others = nodes(3)
    task = leased_task(others[0])
    first.signal(signal.SIGKILL)
    gone = time.monotonic()
    eventually(lambda: any(map(leads, others)), seconds=AT_MOST)
    assert time.monotonic() - gone < AT_MOST
    eventually(lambda: "lease.expired" in actions(others[0], task))
    assert others[0].http.get(f"/api/runtime/llm-tasks/{task}").json()["status"] == "queued"
    assert elections(others[0]) == ["epoch 1", "epoch 2"]
    assert len([node for node in others if leads(node)]) == 1


def test_a_leader_that_was_frozen_wakes_up_as_one_that_follows(nodes):
    first, other = nodes()
    task = leased_task(other)
    first.signal(signal.SIGSTOP)
    try:
        eventually(lambda: leads(other), seconds=AT_MOST)
        eventually(lambda: "lease.expired" in actions(other, task))
    finally:
        first.signal(signal.SIGCONT)
    seen = []
    eventually(lambda: seen.append(leader(first)) or seen[-1] is not None)
    assert not any(found and found["here"] for found in seen)
    for _ in range(5):
        assert (leads(first), leads(other)) == (False, True)
    assert leader(first)["epoch"] == 2
    assert elections(first) == ["epoch 1", "epoch 2"]
    assert actions(first, task).count("lease.expired") == 1
    assert service(first, "sweeper")["state"] == "running"
    assert "crashed" not in first.log.read_text()


def test_a_leader_that_stops_is_replaced_at_once(nodes):
    first, other = nodes()
    assert first.stop() == 0
    eventually(lambda: leads(other), seconds=4)
    assert elections(other) == ["epoch 1", "epoch 2"]


def test_one_whose_election_is_stopped_by_hand_leads_no_more(nodes):
    first, other = nodes()
    assert first.ctl("stop", "leader-election").returncode == 0
    eventually(lambda: leads(other), seconds=4)
    assert not leads(first)
    assert service(first, "sweeper")["state"] == "running"
    assert first.ctl("start", "leader-election").returncode == 0
    eventually(lambda: leader(first) is not None)
    assert leader(first)["epoch"] == 2


def test_a_node_alone_leads_at_once_and_again_when_its_database_is_back(bloomd, server):
    daemon = bloomd(server.conninfo()).start()
    eventually(lambda: leads(daemon))
    started = service(daemon, "http")["since"]
    assert leader(daemon)["since"] - started < 5
    assert "leader    this node, epoch 1, for" in daemon.ctl("status").stdout
    server.stop()
    eventually(lambda: leader(daemon) is None)
    assert len(daemon.status()["reasons"]) == 2
    server.start()
    eventually(lambda: leads(daemon))
    eventually(lambda: daemon.status()["verdict"] == "ok")


def test_the_leader_mirrors_and_the_others_say_who_does(bloomd):
    first, other = bloomd(), bloomd()
    first.start()
    eventually(lambda: leads(first))
    other.start()
    eventually(lambda: leader(other) is not None)
    assert service(other, "membridge-sync") is None

    body = {"membridge_server_url": "http://127.0.0.1:9", "admin_key": "a-key-of-the-test"}
    assert first.http.post("/api/runtime/config", json=body).status_code == 200
    eventually(lambda: (service(first, "membridge-sync") or {}).get("state") == "waiting")
    eventually(lambda: (service(other, "membridge-sync") or {}).get("state") == "running")
    refused = other.ctl("sync")
    assert refused.returncode == 1
    assert f"this is for the leader to do, which is the node {leader(other)['node']}" in " ".join(
        refused.stderr.split()
    )
    assert "sync      done by" in other.ctl("status").stdout

    assert first.http.delete("/api/runtime/config/membridge_server_url").status_code == 200
    eventually(lambda: service(first, "membridge-sync") is None)
    eventually(lambda: service(other, "membridge-sync") is None)


def test_who_leads_in_one_database_is_nobody_in_another(bloomd, postgres_server):
    """An epoch says nothing there, whatever its number."""
    daemon = bloomd().start()
    eventually(lambda: leads(daemon))
    elsewhere = bloomd(postgres_server.create_database())
    elsewhere.start()
    eventually(lambda: leads(elsewhere))
    daemon.configure(database__url=elsewhere.settings["database.url"])
    assert daemon.ctl("reload").returncode == 0
    eventually(lambda: leader(daemon) is not None)
    assert (leads(daemon), leads(elsewhere)) == (False, True)
    assert leader(daemon)["epoch"] == 1
