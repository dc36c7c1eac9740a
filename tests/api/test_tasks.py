"""Tasks over HTTP, as the clients in the field speak (contract, sections 2 and 3)."""

import re

import psycopg
import pytest
from servers import eventually

TASK_FIELDS = {
    "id", "context_id", "agent_slug", "prompt", "context_hints", "policy", "desired_format", "status", "created_at",
    "updated_at", "lease_id", "worker_id", "attempts", "max_attempts",
}  # fmt: skip
LEASE_FIELDS = {
    "id", "task_id", "worker_id", "started_at", "expires_at", "ttl_seconds", "status", "last_heartbeat", "context_id",
}  # fmt: skip


def post(api, path, body=None, **kwargs):
    answer = api.post(f"/api/runtime{path}", json=body if body is not None else {}, **kwargs)
    return answer.status_code, answer.json()


def test_a_whole_life(api, create, register):
    register("w1", status="online")
    task = create(context_id="c1", agent_slug="writer", policy={"timeout_sec": 60})
    assert set(task) >= TASK_FIELDS
    assert task["policy"] == {"timeout_sec": 60, "budget": 0}
    assert (task["status"], task["attempts"], task["max_attempts"], task["desired_format"]) == ("queued", 0, 3, "text")

    status, leased = post(api, f"/llm-tasks/{task['id']}/lease")
    assert (status, set(leased)) == (201, {"lease", "worker"})
    assert set(leased["lease"]) >= LEASE_FIELDS
    assert (leased["worker"]["id"], leased["worker"]["active_leases"]) == ("w1", 1)

    status, beat = post(api, f"/llm-tasks/{task['id']}/heartbeat")
    assert status == 200
    assert beat["expires_at"] == beat["lease"]["expires_at"]

    body = {"status": "success", "output": "hello", "error_message": None,
            "metrics": {"duration_ms": 5, "tokens_used": None}}  # fmt: skip
    status, done = post(api, f"/llm-tasks/{task['id']}/complete", body)
    assert (status, set(done)) == (200, {"task", "artifact", "result"})
    assert done["task"]["status"] == "completed"
    assert done["artifact"]["type"] == "LLM_RESULT"
    assert done["result"]["output"] == "hello"

    [artifact] = api.get("/api/runtime/artifacts", params={"task_id": task["id"]}).json()
    assert artifact == api.get(f"/api/runtime/artifacts/{artifact['id']}").json()
    content = api.get(f"/api/runtime/artifacts/{artifact['id']}/content")
    assert content.text == "hello"
    assert content.headers["content-disposition"].startswith("attachment")
    assert content.headers["content-security-policy"] == "sandbox"
    assert content.headers["etag"] == f'"{artifact["sha256"]}"'
    [lease] = api.get("/api/runtime/leases").json()
    listed = done["task"] | {"started_at": lease["started_at"], "ended_at": lease["ended_at"]}
    assert api.get("/api/runtime/runs").json() == api.get("/api/runtime/llm-tasks").json() == [listed]
    assert api.get("/api/runtime/stats").json()["tasks"]["by_status"].get("completed", 0) in (0, 1)


def test_an_agent_that_only_appends_a_path(api, create, register):
    """The lease is named in the path (contract, section 4, invariant 3); its heartbeat has an empty body."""
    register()
    task = create()
    lease = post(api, f"/llm-tasks/{task['id']}/lease")[1]["lease"]["id"]
    base = f"/l/{lease}/api/runtime/llm-tasks/{task['id']}"
    assert api.post(f"{base}/heartbeat").status_code == 200
    wrong = api.post(f"/l/other/api/runtime/llm-tasks/{task['id']}/heartbeat")
    assert wrong.status_code == 409
    assert wrong.json()["type"].endswith("lease-lost")
    assert api.post(f"{base}/complete", json={"status": "success"}).status_code == 200
    assert api.post(f"{base}/complete", json={"status": "error"}).json()["result"]["status"] == "success"


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/llm-tasks/nope/lease", {}, 404, "Task not found"),
        ("/llm-tasks/nope/heartbeat", {}, 404, "Task not found"),
        ("/llm-tasks/nope/complete", {"status": "success"}, 404, "Task not found"),
        ("/llm-tasks/{id}/lease", {}, 503, "No available worker with free capacity"),
        ("/llm-tasks/{id}/heartbeat", {}, 404, "No active lease for this task"),
        (
            "/llm-tasks/{id}/complete",
            {"status": "success"},
            409,
            "Task status is 'queued', expected 'leased' or 'running'",
        ),
        ("/llm-tasks/{id}/lease", {"ttl_seconds": 4}, 400, "ttl_seconds: Expected `int` >= 5"),
        ("/llm-tasks/{id}/lease", {"worker_id": "nobody"}, 503, "No available worker with free capacity"),
    ],
)
def test_refusals(api, create, path, body, status, error):
    answer = api.post(f"/api/runtime{path.format(id=create()['id'])}", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["error"]) == (status, error)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["detail"] == problem["error"]
    assert ("retry-after" in answer.headers) is (status == 503)
    assert problem["status"] == status


def test_every_error_of_a_body_at_once(api):
    status, problem = post(
        api, "/llm-tasks", {"policy": {"timeout_sec": 0, "budget": "x"}, "priority": 10, "labels": ["a", ""]}
    )
    assert status == 400
    assert {error["field"] for error in problem["errors"]} == {
        "prompt", "policy.timeout_sec", "policy.budget", "priority", "labels",
    }  # fmt: skip


def test_many_at_once_keep_their_order(api):
    status, made = post(api, "/llm-tasks", [{"prompt": f"p{n}"} for n in range(500)])
    assert status == 201
    assert [task["prompt"] for task in made] == [f"p{n}" for n in range(500)]
    assert post(api, "/llm-tasks", [{"prompt": "p"}] * 501)[0] == 400
    status, problem = post(api, "/llm-tasks", [{"prompt": "p"}, {"prompt": ""}])
    assert (status, problem["errors"][0]["field"]) == (400, "[1].prompt")


def test_an_idempotency_key_gives_the_first_task(api, create):
    first = create(idempotency_key="k")
    assert post(api, "/llm-tasks", {"prompt": "other", "idempotency_key": "k"}) == (200, first)


def test_pages_of_a_list(api):
    made = post(api, "/llm-tasks", [{"prompt": f"p{n}"} for n in range(25)])[1]
    seen, path, params = [], "/api/runtime/llm-tasks", {"limit": "10", "status": "queued"}
    while True:
        answer = api.get(path, params=params)
        seen += answer.json()
        link = re.fullmatch(r'<(.+)>; rel="next"', answer.headers.get("link", ""))
        if not link:
            break
        path, params = link[1], None
    assert [task["id"] for task in seen] == [task["id"] for task in reversed(made)]
    assert api.get("/api/runtime/llm-tasks", params={"cursor": "garbage"}).status_code == 400
    for bad in ({"limit": "0"}, {"limit": "1001"}, {"status": "lost"}):
        answer = api.get("/api/runtime/llm-tasks", params=bad)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")


def test_when_the_latest_attempt_began_and_ended(api, create, register):
    def times():
        [listed] = api.get("/api/runtime/llm-tasks").json()
        one = api.get(f"/api/runtime/llm-tasks/{task}").json()
        assert [listed[name] for name in ("started_at", "ended_at")] == [one["started_at"], one["ended_at"]]
        attempts = [(attempt["started_at"], attempt["ended_at"]) for attempt in one["history"]]
        assert (listed["started_at"], listed["ended_at"]) == (attempts[0] if attempts else (None, None))
        return listed["started_at"], listed["ended_at"]

    register()
    task = create()["id"]
    assert times() == (None, None)
    post(api, f"/llm-tasks/{task}/lease")
    first = times()
    assert first == (first[0], None)
    post(api, f"/llm-tasks/{task}/complete", {"status": "error", "error_message": "no"})
    assert times() >= (first[0], first[0])
    eventually(lambda: post(api, f"/llm-tasks/{task}/lease")[0] == 201, seconds=5)
    second = times()
    assert second[0] > first[0]
    assert second[1] is None


def test_the_result_of_the_latest_attempt_that_said_one(api, create, register):
    def result():
        return api.get(f"/api/runtime/llm-tasks/{task}").json()["result"]

    register()
    task = create()["id"]
    assert result() is None
    post(api, f"/llm-tasks/{task}/lease")
    said = post(api, f"/llm-tasks/{task}/complete", {"status": "error", "error_message": "no"})[1]["result"]
    assert result() == said | {"output_truncated": False}
    assert (said["output"], said["error_message"]) == (None, "no")
    eventually(lambda: post(api, f"/llm-tasks/{task}/lease")[0] == 201, seconds=5)
    assert result()["error_message"] == "no"
    metrics = {"duration_ms": 5, "tokens_used": 7, "cost_usd": 0.25}
    body = {"status": "success", "output": "x" * 99_000, "metrics": metrics}
    said = post(api, f"/llm-tasks/{task}/complete", body)[1]["result"]
    assert result() == said | {"output_truncated": False}
    assert result()["metrics"] == metrics


def test_of_a_long_output_the_beginning_is_shown(api, daemon, create, register):
    register()
    task = create()["id"]
    post(api, f"/llm-tasks/{task}/lease")
    post(api, f"/llm-tasks/{task}/complete", {"status": "success", "output": "short"})
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        for output, shown, truncated in [
            ("x" * 262_144, "x" * 262_144, False),
            ("x" * 262_145, "x" * 262_144, True),
            ("x" + "ї" * 131_072, "x" + "ї" * 131_071, True),
            ("", "", False),
        ]:
            connection.execute("UPDATE llm_results SET output = %s", [output])
            result = api.get(f"/api/runtime/llm-tasks/{task}").json()["result"]
            assert (result["output"], result["output_truncated"]) == (shown, truncated)


def test_tasks_of_a_time(api, create):
    made = [create(agent_slug=f"a{n % 2}") for n in range(4)]
    times = [task["created_at"] for task in made]

    def ids(**params):
        return {task["id"] for task in api.get("/api/runtime/llm-tasks", params=params).json()}

    for at in times:
        assert ids(created_after=at) == {task["id"] for task in made if task["created_at"] >= at}
        assert ids(created_before=at) == {task["id"] for task in made if task["created_at"] < at}
    late = {task["id"] for task in made if task["created_at"] >= times[1] and task["agent_slug"] == "a1"}
    assert ids(created_after=times[1], created_before=times[3] + 1, agent_slug="a1") == late
    assert ids(created_after=times[3] + 1) == set()
    assert api.get("/api/runtime/llm-tasks", params={"created_after": "yesterday"}).status_code == 400
    page = api.get("/api/runtime/llm-tasks", params={"created_before": times[3] + 1, "limit": 3})
    [first] = api.get(page.links["next"]["url"]).json()
    assert first["id"] == made[0]["id"]


def test_the_agents_that_there_are_tasks_for(api, create):
    assert api.get("/api/runtime/llm-tasks/agents").json() == []
    made = [create(agent_slug=slug) for slug in ("writer", "", "critic", "writer", "критик")]
    latest = {task["agent_slug"]: task["created_at"] for task in made if task["agent_slug"]}
    agents = api.get("/api/runtime/llm-tasks/agents").json()
    assert {agent["agent_slug"]: agent["latest_at"] for agent in agents} == latest
    assert len(agents) == 3
    post(api, "/llm-tasks", [{"prompt": "p", "agent_slug": f"a{n}"} for n in range(300)])
    assert len(api.get("/api/runtime/llm-tasks/agents").json()) == 200


def test_labels_and_pins_choose_the_worker(api, create, register):
    register("plain", capabilities={"max_concurrency": 4})
    register("gpu", capabilities={"max_concurrency": 1, "labels": ["gpu", "arm64"]})
    lease = post(api, f"/llm-tasks/{create(labels=['gpu'])['id']}/lease")[1]["lease"]
    assert lease["worker_id"] == "gpu"
    assert post(api, f"/llm-tasks/{create(labels=['gpu'])['id']}/lease")[0] == 503
    assert post(api, f"/llm-tasks/{create(labels=['tpu'])['id']}/lease")[0] == 503
    assert post(api, f"/llm-tasks/{create(pinned_worker_id='gpu')['id']}/lease")[0] == 503
    assert post(api, f"/llm-tasks/{create(pinned_worker_id='plain')['id']}/lease")[1]["worker"]["id"] == "plain"


def test_a_context_stays_with_its_worker(api, create, register):
    register("busy", capabilities={"max_concurrency": 4})
    register("idle", capabilities={"max_concurrency": 8})
    first = post(api, f"/llm-tasks/{create(context_id='c')['id']}/lease", {"worker_id": "busy"})[1]
    again = post(api, f"/llm-tasks/{create(context_id='c')['id']}/lease")[1]
    other = post(api, f"/llm-tasks/{create(context_id='d')['id']}/lease")[1]
    assert [each["worker"]["id"] for each in (first, again, other)] == ["busy", "busy", "idle"]


def test_the_sweeper_gives_an_expired_task_back(api, daemon, create, register):
    register()
    task = create()
    post(api, f"/llm-tasks/{task['id']}/lease", {"ttl_seconds": 5})
    post(api, f"/llm-tasks/{task['id']}/heartbeat")
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        connection.execute("UPDATE leases SET expires_at = 1")
    eventually(lambda: api.get(f"/api/runtime/llm-tasks/{task['id']}").json()["status"] == "queued", seconds=5)
    eventually(lambda: post(api, f"/llm-tasks/{task['id']}/lease")[0] == 201, seconds=5)
    statuses = [lease["status"] for lease in api.get("/api/runtime/leases").json()]
    assert statuses == ["active", "expired"]
    assert len(api.get("/api/runtime/leases", params={"status": "expired"}).json()) == 1


def test_requeue(api, create, register):
    register()
    task = create(max_attempts=1)
    post(api, f"/llm-tasks/{task['id']}/lease")
    assert post(api, f"/llm-tasks/{task['id']}/complete", {"status": "error"})[1]["task"]["status"] == "dead"
    status, again = post(api, f"/llm-tasks/{task['id']}/requeue")
    assert (status, again["status"], again["attempts"]) == (200, "queued", 0)
    assert post(api, f"/llm-tasks/{task['id']}/requeue")[0] == 409
