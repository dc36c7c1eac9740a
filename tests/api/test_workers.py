"""Workers over HTTP."""

import psycopg
import pytest

WORKER_FIELDS = {
    "id", "node_id", "url", "status", "capabilities", "last_heartbeat", "ip_addrs", "obs_count", "db_sha",
    "registered_at", "active_leases", "agent_version", "os_info", "install_method", "cordoned", "draining", "source",
}  # fmt: skip


def test_what_an_agent_in_the_field_sends_is_kept(api):
    body = {
        "name": "worker-rpi4b", "url": "http://10.0.0.5:8001", "status": "online", "ip_addrs": ["10.0.0.5"],
        "capabilities": {"claude_cli": True, "max_concurrency": 2, "labels": ["openrc", "aarch64"], "extra": {"a": 1}},
        "agent_version": "1.2", "os_info": "Alpine", "install_method": "script",
    }  # fmt: skip
    first = api.post("/api/runtime/workers", json=body)
    assert (first.status_code, set(first.json())) == (201, WORKER_FIELDS)
    worker = first.json()
    assert worker["capabilities"] == body["capabilities"]
    assert (worker["agent_version"], worker["os_info"], worker["install_method"]) == ("1.2", "Alpine", "script")
    again = api.post("/api/runtime/workers", json={"name": "worker-rpi4b", "capabilities": {"max_concurrency": 3}})
    assert again.status_code == 200
    assert again.json()["capabilities"] == {**body["capabilities"], "max_concurrency": 3}
    assert again.json()["url"] == "http://10.0.0.5:8001"


def test_one_worker_shows_what_it_holds(api, create, register):
    register("w1", capabilities={"max_concurrency": 2})
    task = create()
    lease = api.post(f"/api/runtime/llm-tasks/{task['id']}/lease").json()["lease"]
    worker = api.get("/api/runtime/workers/w1").json()
    assert worker["leases"] == [lease]
    assert worker["active_leases"] == 1


def test_removing_a_worker(api, create, register):
    register("w1")
    task = create()
    api.post(f"/api/runtime/llm-tasks/{task['id']}/lease")
    refused = api.delete("/api/runtime/workers/w1")
    assert (refused.status_code, "force=true" in refused.json()["error"]) == (409, True)
    removed = api.delete("/api/runtime/workers/w1", params={"force": "true"})
    assert (removed.status_code, removed.json()) == (200, {"removed": True, "id": "w1"})
    assert api.get(f"/api/runtime/llm-tasks/{task['id']}").json()["status"] == "queued"
    assert api.delete("/api/runtime/workers/w1").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "."}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "w", "url": "http://user:secret@h:1/"}, "url"),
        ({"name": "w", "url": "ftp://x"}, "url"),
        ({"name": "w", "status": "busy"}, "status"),
        ({"name": "w", "capabilities": {"max_concurrency": 0}}, "capabilities.max_concurrency"),
        ({"name": "w", "capabilities": {"max_concurrency": 33}}, "capabilities.max_concurrency"),
        ({"name": "w", "capabilities": []}, "capabilities"),
    ],
)
def test_bad_registrations(api, body, field):
    answer = api.post("/api/runtime/workers", json=body)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_a_name_that_no_path_can_have_is_refused_everywhere_in_a_sentence(api):
    for name in (".", ".."):
        written = name.replace(".", "%2E")
        refused = (
            api.post("/api/runtime/workers", json={"name": name}),
            api.post(f"/api/runtime/workers/{written}/tokens"),
            api.post("/api/runtime/enrolments", json={"worker": name}),
            api.get("/api/runtime/agent-install-script", params={"node_id": name}),
            api.put(f"/api/runtime/leases/x/artifacts/{written}", content=b"x"),
        )
        assert [answer.status_code for answer in refused] == [400] * 5
        assert all("and neither `.` nor `..`" in answer.json()["error"] for answer in refused)
        for kind, sent in (("keys", {}), ("projects", {"repo_url": "https://git.example/x"})):
            assert api.post(f"/api/runtime/{kind}", json={"name": name, **sent}).status_code == 400
    assert api.post("/api/runtime/workers", json={"name": "..."}).status_code == 201


def test_one_that_has_such_a_name_already_is_removed_by_it(daemon, api):
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        connection.execute("INSERT INTO workers (id, node_id, url) VALUES ('.', '.', ''), ('..', '..', '')")
    for name in (".", ".."):
        written = name.replace(".", "%2E")
        assert api.get(f"/api/runtime/workers/{written}").json()["id"] == name
        assert api.delete(f"/api/runtime/workers/{written}").json() == {"removed": True, "id": name}


def test_capabilities_that_bloomd_does_not_read_are_few(api, register):
    """Each registration adds to what is known, so there is a limit of one, and one of all."""
    register("w1")
    one = {"note": "é" * 7_000}
    assert api.post("/api/runtime/workers", json={"name": "w1", "capabilities": one}).status_code == 200
    refused = api.post("/api/runtime/workers", json={"name": "w1", "capabilities": {**one, "more": "x" * 3_000}})
    assert refused.status_code == 400
    [error] = refused.json()["errors"]
    assert error["field"] == "capabilities"
    assert "16 KiB" in error["message"]
    api.post("/api/runtime/workers", json={"name": "w1", "capabilities": {"note": None}})
    answers = [
        api.post("/api/runtime/workers", json={"name": "w1", "capabilities": {f"note{n}": "x" * 16_000}})
        for n in range(6)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 409, 409]
    assert "64 KiB" in answers[-1].json()["error"]
    kept = api.get("/api/runtime/workers/w1").json()["capabilities"]
    assert {"note3", "max_concurrency"} < set(kept)
    assert "note4" not in kept
    smaller = api.post("/api/runtime/workers", json={"name": "w1", "capabilities": {"note3": None, "labels": ["gpu"]}})
    assert (smaller.status_code, smaller.json()["capabilities"]["labels"]) == (200, ["gpu"])


def test_registering_again_brings_a_silent_worker_back(api, register):
    register("w1", status="offline")
    assert register("w1")["status"] == "online"
    assert register("w1", status="error")["status"] == "error"
    assert register("w1")["status"] == "error"


def test_filters(api, register):
    register("on")
    register("off", status="offline")
    assert [worker["id"] for worker in api.get("/api/runtime/workers", params={"status": "offline"}).json()] == ["off"]
    assert {worker["id"] for worker in api.get("/api/runtime/workers").json()} == {"on", "off"}
