"""Workers' tokens over HTTP: how they are had and lost, and what they allow."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest
from servers import eventually

ALLOWED = {
    ("POST", "/api/runtime/workers"),
    ("POST", "/api/runtime/leases/claim"),
    ("POST", "/api/runtime/leases/heartbeat"),
    ("POST", "/api/runtime/leases/complete"),
    ("POST", "/api/runtime/leases/release"),
    ("PUT", "/api/runtime/leases/{lease_id}/artifacts/{name}"),
    ("POST", "/api/runtime/llm-tasks/{task_id}/heartbeat"),
    ("POST", "/api/runtime/llm-tasks/{task_id}/complete"),
    ("POST", "/l/{lease_id}/api/runtime/llm-tasks/{task_id}/heartbeat"),
    ("POST", "/l/{lease_id}/api/runtime/llm-tasks/{task_id}/complete"),
    ("GET", "/api/runtime/agent-package/{filename}"),
}

# What anybody may do.
OPEN = {
    ("GET", "/api/runtime/health"),
    ("GET", "/ready"),
    ("GET", "/api/runtime/ready"),
    ("GET", "/metrics"),
    ("POST", "/api/runtime/test-connection"),
    ("POST", "/api/runtime/enrolments/exchange"),
    ("GET", "/api/runtime/session"),
    ("POST", "/api/runtime/session"),
}


@pytest.fixture(scope="module")
def daemon(start_daemon):
    """Of its own: so many are refused here that the limit of failed attempts would be reached elsewhere."""
    with start_daemon() as bloomd:
        yield bloomd


@pytest.fixture
def api(daemon, api):
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        connection.execute("DELETE FROM enrolments")
    return api


@pytest.fixture
def token(api):
    """Make a token."""

    def make(worker="w1"):
        answer = api.post(f"/api/runtime/workers/{worker}/tokens")
        assert answer.status_code == 201, answer.text
        return answer.json()

    return make


@pytest.fixture
def worker(daemon, token):
    """Clients that each have a token of the worker of this name, and its registration."""
    clients = []

    def make(name="w1", **capabilities):
        headers = {"Authorization": f"Bearer {token(name)['secret']}"}
        clients.append(httpx.Client(base_url=daemon.url, headers=headers, timeout=30, trust_env=False))
        answer = clients[-1].post("/api/runtime/workers", json={"name": name, "capabilities": capabilities})
        assert answer.status_code in (200, 201), answer.text
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def two(worker, create):
    """Two workers, of which the first holds a lease: both, and that lease with its task."""
    first, second = worker("w1"), worker("w2")
    create()
    [claimed] = first.post("/api/runtime/leases/claim", json={"worker_id": "w1"}).json()["leases"]
    return first, second, claimed["lease"]["id"], claimed["task"]["id"]


def stranger(daemon, **headers):
    return httpx.Client(base_url=daemon.url, headers=headers, timeout=30, trust_env=False)


def error_of(answer):
    return answer.status_code, answer.json()["type"].rpartition(":")[2]


def test_a_token_from_its_making_to_its_end(daemon, api, token):
    made = token("w1")
    assert set(made) == {"id", "worker_id", "secret", "created_at", "created_by"}
    assert (made["worker_id"], made["created_by"]) == ("w1", "api-key")
    assert re.fullmatch(r"bloomw_[A-Za-z0-9_-]{43}", made["secret"])
    listed = api.get("/api/runtime/workers/w1/tokens").json()
    assert listed == [
        {"id": made["id"], "worker_id": "w1", "created_at": made["created_at"], "created_by": "api-key",
         "last_used_at": None}
    ]  # fmt: skip
    for headers in ({"X-Runtime-API-Key": made["secret"]}, {"Authorization": f"Bearer {made['secret']}"}):
        with stranger(daemon, **headers) as worker:
            answer = worker.post("/api/runtime/workers", json={"name": "w1"})
            assert answer.status_code in (200, 201), answer.text
    assert api.delete(f"/api/runtime/workers/w2/tokens/{made['id']}").status_code == 404
    removed = api.delete(f"/api/runtime/workers/w1/tokens/{made['id']}")
    assert removed.json() == {"removed": True, "id": made["id"], "worker_id": "w1", "authentication": "on"}
    with stranger(daemon, **headers) as worker:
        assert worker.post("/api/runtime/workers", json={"name": "w1"}).status_code == 401
    assert api.delete(f"/api/runtime/workers/w1/tokens/{made['id']}").status_code == 404
    trail = api.get("/api/runtime/audit").json()
    told = [(each["action"], each["entity_id"], each["actor"]) for each in trail if each["entity_type"] == "worker"]
    assert told == [
        ("worker.token_removed", "w1", "api-key"),
        ("worker.updated", "w1", "worker:w1"),
        ("worker.registered", "w1", "worker:w1"),
        ("worker.token_added", "w1", "api-key"),
    ]
    assert made["secret"] not in str(trail) + daemon.log.read_text()


def test_the_lists_are_in_pages_and_of_known_workers(api, token, register):
    made = {token("w1")["id"] for _ in range(3)} | {
        each["id"] for each in api.get("/api/runtime/workers/w1/tokens").json()
    }
    first = api.get("/api/runtime/workers/w1/tokens", params={"limit": 2})
    found = first.json()
    while "next" in first.links:
        first = api.get(first.links["next"]["url"])
        found += first.json()
    assert {each["id"] for each in found} == made
    assert len(found) == len(made)
    register("without")
    assert api.get("/api/runtime/workers/without/tokens").json() == []
    assert api.get("/api/runtime/workers/nobody/tokens").status_code == 404


@pytest.mark.parametrize("name", ["a%0Ab", "x" * 129, "a%7Fb"])
def test_a_name_that_no_worker_can_have(api, name):
    assert error_of(api.post(f"/api/runtime/workers/{name}/tokens")) == (400, "invalid")
    assert api.post("/api/runtime/enrolments", json={"worker": httpx.URL(f"/{name}").path[1:]}).status_code == 400


def test_every_route_is_closed_to_a_token_but_for_what_a_worker_does(daemon, api, worker):
    """What is added to the API later is closed, too, until somebody adds it here."""
    client = worker("w1")
    paths = api.get("/api/schema").json()["paths"]
    operations = {(method.upper(), path) for path, item in paths.items() for method in item}
    answers = {(m, p): client.request(m, re.sub(r"\{\w+\}", "0123456789abcdef", p)) for m, p in operations}
    closed = {each for each, answer in answers.items() if answer.status_code == 403}
    assert {error_of(answers[each]) for each in closed} == {(403, "not-for-workers")}
    assert operations - closed - OPEN == ALLOWED & operations
    assert ALLOWED - operations <= {("GET", "/api/runtime/agent-package/{filename}")}
    assert len(closed) > 40
    assert all(answers[each].status_code not in (401, 403, 405) for each in operations - closed)


@pytest.mark.parametrize(
    "path",
    [
        "/api/runtime/llm-tasks",
        "//api/runtime/llm-tasks",
        "/api/runtime/leases/claim/../../llm-tasks",
        "/api/runtime/leases/x/artifacts/../../../llm-tasks",
        "/api/runtime/llm-tasks/x%2Fcancel%2Fheartbeat",
        "/api/runtime/llm-tasks/x/cancel",
        "/l/x/api/runtime/llm-tasks/y/cancel",
        "/l/x/api/runtime/workers",
        "/api/runtime/workers/",
        "/api/runtime/worker%73/",
        "/nothing",
    ],
)
def test_no_spelling_opens_more(daemon, worker, path):
    client = worker("w1")
    request = client.build_request("POST", "/", json={"prompt": "x", "name": "w1"})
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = client.send(request)
    assert error_of(answer) == (403, "not-for-workers"), answer.text


def test_a_worker_is_nobody_else(api, worker):
    client = worker("w1")
    worker("w2")
    assert error_of(client.post("/api/runtime/workers", json={"name": "w2"})) == (403, "not-your-worker")
    assert error_of(client.post("/api/runtime/leases/claim", json={"worker_id": "w2"})) == (403, "not-your-worker")
    for path in ("/api/runtime/llm-tasks/x/heartbeat", "/api/runtime/llm-tasks/x/complete"):
        body = {"status": "success", "worker_id": "w2"}
        assert error_of(client.post(path, json=body)) == (403, "not-your-worker")
    for path in ("heartbeat", "complete", "release"):
        many = [{"lease_id": "x", "status": "success", "worker_id": "w2"}]
        assert error_of(client.post(f"/api/runtime/leases/{path}", json=many)) == (403, "not-your-worker")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", ""])
def test_a_worker_does_not_say_where_it_is_called(api, worker, register, url):
    register("w1", url="http://127.0.0.1:7")
    answer = worker("w1").post("/api/runtime/workers", json={"name": "w1", "url": url})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "url")
    assert api.get("/api/runtime/workers/w1").json()["url"] == "http://127.0.0.1:7"


def test_a_worker_does_its_own_work(api, two):
    first, _, lease, task = two
    for path in (f"/api/runtime/llm-tasks/{task}/heartbeat", f"/l/{lease}/api/runtime/llm-tasks/{task}/heartbeat"):
        assert first.post(path).status_code == 200
    assert first.post("/api/runtime/leases/heartbeat", json=[{"lease_id": lease}]).json()[0]["ok"]
    put = first.put(f"/api/runtime/leases/{lease}/artifacts/a", content=b"x")
    assert put.status_code == 201
    body = {"status": "success", "output": "done", "artifact_id": put.json()["id"]}
    for _ in range(2):
        done = first.post(f"/l/{lease}/api/runtime/llm-tasks/{task}/complete", json=body)
        assert (done.status_code, done.json()["task"]["status"]) == (200, "completed")
    actors = {each["action"]: each["actor"] for each in api.get("/api/runtime/audit").json()}
    assert {actors[f"task.{action}"] for action in ("leased", "running", "completed")} == {"worker:w1"}


def test_a_worker_gives_back_what_is_its_own(two):
    first, _, lease, _ = two
    for _ in range(2):
        [outcome] = first.post("/api/runtime/leases/release", json=[{"lease_id": lease}]).json()
        assert (outcome["ok"], outcome["task_status"]) == (True, "queued")


def attempts_on(lease, task):
    """What one may try on somebody's lease: a method, a path, a body."""
    done = {"status": "success", "output": "x"}
    yield "POST", f"/api/runtime/llm-tasks/{task}/heartbeat", {}
    yield "POST", f"/api/runtime/llm-tasks/{task}/heartbeat", {"lease_id": lease}
    yield "POST", f"/l/{lease}/api/runtime/llm-tasks/{task}/heartbeat", {}
    yield "POST", f"/api/runtime/llm-tasks/{task}/complete", done
    yield "POST", f"/api/runtime/llm-tasks/{task}/complete", {**done, "lease_id": lease}
    yield "POST", f"/l/{lease}/api/runtime/llm-tasks/{task}/complete", done
    yield "POST", "/api/runtime/leases/heartbeat", [{"lease_id": lease}]
    yield "POST", "/api/runtime/leases/complete", [{**done, "lease_id": lease}]
    yield "POST", "/api/runtime/leases/release", [{"lease_id": lease}]
    yield "PUT", f"/api/runtime/leases/{lease}/artifacts/b", {}
    yield "PUT", f"/api/runtime/leases/{lease}/artifacts/a", {}


def refusals_of(client, lease, task):
    for method, path, body in attempts_on(lease, task):
        answer = client.request(method, path, json=body)
        if isinstance(body, list):
            [outcome] = answer.json()
            yield path, (outcome["status"], outcome["type"].rpartition(":")[2])
        else:
            yield path, error_of(answer)


def test_the_lease_of_another_worker_is_lost_to_this_one(api, two):
    first, second, lease, task = two
    first.put(f"/api/runtime/leases/{lease}/artifacts/a", json={}).raise_for_status()
    assert {refusal for _, refusal in refusals_of(second, lease, task)} == {(409, "lease-lost")}
    assert first.post(f"/api/runtime/llm-tasks/{task}/heartbeat").status_code == 200
    assert len(api.get("/api/runtime/artifacts").json()) == 1


@pytest.mark.parametrize("end", ["complete", "release"])
def test_the_lease_of_another_worker_tells_nothing_when_it_is_over(two, end):
    """The answers that are given again to whoever repeats himself are for that one."""
    first, second, lease, task = two
    first.put(f"/api/runtime/leases/{lease}/artifacts/a", json={}).raise_for_status()
    body = [{"lease_id": lease, "status": "success", "output": "secret"}]
    assert first.post(f"/api/runtime/leases/{end}", json=body).json()[0]["ok"]
    refused = dict(refusals_of(second, lease, task))
    assert {status for status, _ in refused.values()} <= {404, 409}
    assert {refusal for path, refusal in refused.items() if lease in path or "leases" in path} == {(409, "lease-lost")}


def test_a_key_may_do_all_of_it_for_any_worker(api, two):
    _, _, lease, task = two
    assert api.post(f"/api/runtime/llm-tasks/{task}/heartbeat").status_code == 200
    assert api.put(f"/api/runtime/leases/{lease}/artifacts/a", content=b"x").status_code == 201
    assert api.post("/api/runtime/leases/release", json=[{"lease_id": lease}]).json()[0]["ok"]
    assert api.post("/api/runtime/workers", json={"name": "w2", "url": "http://127.0.0.1:9"}).status_code == 200


def test_what_a_worker_waits_for_ends_with_its_token(daemon, api, token, create):
    made = token("w1")
    with stranger(daemon, **{"X-Runtime-API-Key": made["secret"]}) as client, ThreadPoolExecutor() as pool:
        client.post("/api/runtime/workers", json={"name": "w1"}).raise_for_status()
        asked = {"worker_id": "w1", "wait_seconds": 30}
        waiting = pool.submit(client.post, "/api/runtime/leases/claim", json=asked)
        other = token("w1")  # that another one comes ends nothing
        eventually(lambda: "\nbloomd_waiting_claims 1" in api.get("/metrics").text)
        api.delete(f"/api/runtime/workers/w1/tokens/{made['id']}").raise_for_status()
        assert error_of(waiting.result(timeout=10)) == (401, "unauthorized")
        create()
        with stranger(daemon, **{"X-Runtime-API-Key": other["secret"]}) as again:
            assert len(again.post("/api/runtime/leases/claim", json=asked).json()["leases"]) == 1


def test_a_machine_becomes_a_worker_by_a_code(daemon, api):
    answer = api.post("/api/runtime/enrolments", json={"worker": "w 7"})
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    enrolment = answer.json()
    assert set(enrolment) == {"code", "worker", "expires_at"}
    with stranger(daemon) as machine, ThreadPoolExecutor(20) as pool:
        ask = [pool.submit(machine.post, "/api/runtime/enrolments/exchange", json={"code": enrolment["code"]})
               for _ in range(20)]  # fmt: skip
        answers = [each.result() for each in ask]
    assert sorted(each.status_code for each in answers) == [200] + [401] * 19
    [exchanged] = [each.json() for each in answers if each.status_code == 200]
    assert exchanged.keys() == {"worker", "token"}
    with stranger(daemon, **{"X-Runtime-API-Key": exchanged["token"]}) as worker:
        assert worker.post("/api/runtime/workers", json={"name": "w 7"}).status_code in (200, 201)
        assert worker.post("/api/runtime/workers", json={"name": "w 8"}).status_code == 403
    log = daemon.log.read_text()
    trail = api.get("/api/runtime/audit").text
    assert not any(secret in log + trail for secret in (enrolment["code"], exchanged["token"]))


@pytest.mark.parametrize("code", ["x", "bloome_" + "x" * 43, "ї", "'; DROP TABLE enrolments; --"])
def test_what_is_no_code_is_a_401(daemon, api, code):
    with stranger(daemon, **{"X-Forwarded-For": "198.51.100.1"}) as machine:
        answer = machine.post("/api/runtime/enrolments/exchange", json={"code": code})
    assert error_of(answer) == (401, "unauthorized")
    assert answer.headers["www-authenticate"]


def test_guessing_codes_is_limited_for_each_client(daemon, api):
    with stranger(daemon, **{"X-Forwarded-For": "198.51.100.2"}) as guesser:
        guess = {"code": "bloome_" + "x" * 43}
        statuses = [guesser.post("/api/runtime/enrolments/exchange", json=guess).status_code for _ in range(61)]
    assert (statuses[0], statuses[-1]) == (401, 429)
    with stranger(daemon, **{"X-Forwarded-For": "198.51.100.3"}) as other:
        assert other.post("/api/runtime/enrolments/exchange", json=guess).status_code == 401


def test_a_stranger_makes_and_sees_none(daemon, api, token):
    made = token("w1")
    with stranger(daemon, **{"X-Forwarded-For": "198.51.100.4"}) as machine:
        assert machine.post("/api/runtime/workers/w1/tokens").status_code == 401
        assert machine.get("/api/runtime/workers/w1/tokens").status_code == 401
        assert machine.delete(f"/api/runtime/workers/w1/tokens/{made['id']}").status_code == 401
        assert machine.post("/api/runtime/enrolments", json={"worker": "w1"}).status_code == 401
