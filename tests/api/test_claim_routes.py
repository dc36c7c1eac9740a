"""Claims and batches of leases over HTTP, as a worker that pulls speaks (contract, section 3)."""

import json
import socket
import threading
import time

import httpx
import pytest
from servers import eventually


def post(api, path, body):
    answer = api.post(f"/api/runtime{path}", json=body, timeout=70)
    return answer.status_code, answer.json()


@pytest.fixture
def claim(api):
    def claim(worker="w1", **fields):
        status, answer = post(api, "/leases/claim", {"worker_id": worker, **fields})
        assert status == 200, answer
        return answer["leases"]

    return claim


def test_a_life_in_batches(api, create, register, claim):
    register(capabilities={"max_concurrency": 4})
    tasks = [create(prompt=str(number), priority=number) for number in range(4)]
    got = claim(max=10)
    assert [each["task"]["prompt"] for each in got] == ["3", "2", "1", "0"]
    assert all(each["lease"]["id"] == each["task"]["lease_id"] for each in got)
    ids = [each["lease"]["id"] for each in got]

    status, beats = post(api, "/leases/heartbeat", [{"lease_id": id, "progress": "reading"} for id in ids])
    assert status == 200
    assert [(beat["lease_id"], beat["ok"], beat["task_id"]) for beat in beats] == [
        (each["lease"]["id"], True, each["task"]["id"]) for each in got
    ]
    assert all(beat["expires_at"] > time.time() * 1000 for beat in beats)
    assert api.get(f"/api/runtime/llm-tasks/{tasks[0]['id']}").json()["progress"] == "reading"

    status, released = post(api, "/leases/release", [{"lease_id": ids[0], "reason": "going away"}])
    assert released == [{"lease_id": ids[0], "ok": True, "task_id": tasks[3]["id"], "task_status": "queued"}]

    said = [{"lease_id": id, "status": "success", "output": id} for id in ids]
    status, done = post(api, "/leases/complete", said)
    assert status == 200
    assert [each["ok"] for each in done] == [False, True, True, True]
    assert done[0] == {
        "lease_id": ids[0], "ok": False, "status": 409, "type": "urn:problem-type:bloomd:lease-lost",
        "error": "The lease is released and not the current one of the task",
    }  # fmt: skip
    assert done[1]["task_status"] == "completed"
    assert api.get(f"/api/runtime/artifacts/{done[1]['artifact_id']}/content").text == ids[1]
    assert post(api, "/leases/complete", said[1:])[1] == done[1:]


def test_the_history_of_a_task(api, create, register, claim):
    register()
    task = create(max_attempts=2)
    [first] = claim()
    post(api, "/leases/complete", [{"lease_id": first["lease"]["id"], "status": "error", "error_message": "oh no"}])
    eventually(lambda: (second := claim(wait_seconds=5)) and second)
    history = api.get(f"/api/runtime/llm-tasks/{task['id']}").json()["history"]
    assert [(each["attempt"], each["worker_id"], each["outcome"], each["error"]) for each in history] == [
        (2, "w1", None, None),
        (1, "w1", "error", "oh no"),
    ]
    assert history[1]["lease_id"] == first["lease"]["id"]
    assert history[1]["ended_at"] >= history[1]["started_at"]
    assert history[0]["deadline_at"] == history[0]["started_at"] + 150_000


def test_a_long_poll_is_answered_by_a_task(api, create, register, claim):
    register()
    got = []
    waiting = threading.Thread(target=lambda: got.append((claim(wait_seconds=30), time.monotonic())))
    waiting.start()
    time.sleep(0.3)
    assert not got
    created = time.monotonic()
    task = create()
    waiting.join(10)
    [([claimed], answered)] = got
    assert claimed["task"]["id"] == task["id"]
    assert answered - created < 0.9  # woken, not polled


def test_a_long_poll_without_a_task(claim, register):
    register()
    began = time.monotonic()
    assert claim(wait_seconds=0.5) == []
    assert 0.4 < time.monotonic() - began < 5


def test_who_hangs_up_gets_no_task(api, daemon, create, register):
    """The connection of a waiting claim goes away: what comes afterwards stays in the queue."""
    register()
    address = httpx.URL(str(api.base_url))
    body = json.dumps({"worker_id": "w1", "wait_seconds": 60}).encode()
    head = f"POST /api/runtime/leases/claim HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.3)
    time.sleep(0.2)
    task = create()
    time.sleep(0.3)
    now = api.get(f"/api/runtime/llm-tasks/{task['id']}").json()
    assert (now["status"], now["attempts"]) == ("queued", 0)


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/leases/claim", {}, 400, "worker_id: is required"),
        ("/leases/claim", {"worker_id": "w1", "max": 101}, 400, "max: "),
        ("/leases/claim", {"worker_id": "w1", "wait_seconds": 61}, 400, "wait_seconds: "),
        ("/leases/claim", {"worker_id": "w1", "ttl_seconds": 4}, 400, "ttl_seconds: "),
        ("/leases/claim", {"worker_id": "nobody"}, 404, "Worker not found"),
        ("/leases/claim", {"worker_id": "nobody", "wait_seconds": 60}, 404, "Worker not found"),
        ("/leases/heartbeat", [], 400, "An array of 1 to 500 is expected, not of 0"),
        ("/leases/heartbeat", [{}], 400, "[0].lease_id: is required"),
        ("/leases/heartbeat", [{"lease_id": "x", "progress": 101}], 400, "[0].progress: "),
        ("/leases/complete", [{"status": "success"}], 400, "[0].lease_id: is required"),
        ("/leases/complete", [{"lease_id": "x"}], 400, "[0].status: is required"),
        ("/leases/release", {"lease_id": "x"}, 400, "array"),
        ("/queue", {}, 400, "paused: is required"),
        ("/queue", {"paused": True, "until": 1_700_000_000}, 400, "until: this time is over"),
    ],
)
def test_what_is_refused(api, path, body, status, error):
    answer = api.post(f"/api/runtime{path}", json=body)
    assert answer.status_code == status
    assert error in answer.json()["error"]


def test_a_cancelled_task_tells_its_worker(api, create, register, claim):
    register(capabilities={"max_concurrency": 2})
    task, silent = create(), create()
    [got, other] = claim(max=2)
    answer = api.post(f"/api/runtime/llm-tasks/{task['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    [outcome] = post(api, "/leases/heartbeat", [{"lease_id": got["lease"]["id"]}])[1]
    assert (outcome["ok"], outcome["status"], outcome["type"].rpartition(":")[2]) == (False, 409, "cancelled")
    alone = api.post(f"/api/runtime/llm-tasks/{task['id']}/heartbeat")
    assert (alone.status_code, alone.json()["type"].rpartition(":")[2]) == (409, "cancelled")
    assert api.post(f"/api/runtime/llm-tasks/{task['id']}/cancel").status_code == 409
    assert api.post("/api/runtime/llm-tasks/nope/cancel").status_code == 404
    assert api.get("/api/runtime/workers/w1").json()["active_leases"] == 1
    requeued = api.post(f"/api/runtime/llm-tasks/{task['id']}/requeue").json()
    assert (requeued["status"], requeued["attempts"]) == ("queued", 0)
    assert silent["id"] == other["task"]["id"]


def test_pausing(api, create, register, claim):
    register()
    task = create()
    until = int(time.time() * 1000) + 700
    assert post(api, "/queue", {"paused": True, "until": until, "reason": "quota"}) == (
        200, {"paused": True, "until": until, "reason": "quota"},
    )  # fmt: skip
    status, problem = post(api, f"/llm-tasks/{task['id']}/lease", {})
    assert (status, problem["error"]) == (503, "The queue is paused: quota")
    assert claim() == []
    [reason] = api.get(f"/api/runtime/llm-tasks/{task['id']}/explain").json()["reasons"]
    assert reason["code"] == "queue-paused"
    assert [each["task"]["id"] for each in claim(wait_seconds=10)] == [task["id"]]
    assert api.get("/api/runtime/queue").json() == {"paused": False, "until": None, "reason": None}
    assert post(api, "/queue", {"paused": False}) == (200, {"paused": False, "until": None, "reason": None})


def test_holding_a_worker_back(api, create, register, claim):
    register()
    create()
    for action, state in (("cordon", (True, False)), ("drain", (True, True))):
        worker = api.post(f"/api/runtime/workers/w1/{action}")
        assert (worker.status_code, (worker.json()["cordoned"], worker.json()["draining"])) == (200, state)
        assert claim() == []
    assert api.post("/api/runtime/workers/nope/drain").status_code == 404
    worker = api.post("/api/runtime/workers/w1/uncordon").json()
    assert (worker["cordoned"], worker["draining"]) == (False, False)
    assert len(claim()) == 1


def test_a_retry_comes_back_to_who_waits(api, create, register, claim):
    """The sweeper lets its time come; whoever waits is woken."""
    register()
    create()
    [first] = claim()
    post(api, "/leases/release", [{"lease_id": first["lease"]["id"], "retry_after_seconds": 0.4}])
    assert claim() == []
    [again] = claim(wait_seconds=20)
    assert again["task"]["attempts"] == 1
