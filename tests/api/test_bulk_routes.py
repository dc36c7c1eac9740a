"""Bulk requeue and cancel over HTTP (contract, section 3)."""

import json

import psycopg
import pytest

ACTIONS = ["requeue", "cancel"]


def post(api, action, body=None):
    answer = api.post(f"/api/runtime/llm-tasks/{action}", **({} if body is None else {"json": body}))
    return answer.status_code, answer.json()


def statuses(api):
    return sorted(task["status"] for task in api.get("/api/runtime/llm-tasks").json())


def test_cancel_and_requeue(api, create, register):
    register(capabilities={"max_concurrency": 1})
    first, second, other = create(agent_slug="a"), create(agent_slug="a"), create(agent_slug="b")
    assert api.post(f"/api/runtime/llm-tasks/{first['id']}/lease").status_code == 201
    body = {"filter": {"agent_slug": "a", "status": ["queued", "leased"]}}
    assert post(api, "cancel", {**body, "dry_run": True}) == (200, {"matched": 2, "changed": 0})
    assert statuses(api) == ["leased", "queued", "queued"]
    assert post(api, "cancel", body) == (200, {"matched": 2, "changed": 2})
    assert statuses(api) == ["cancelled", "cancelled", "queued"]
    beat = api.post(f"/api/runtime/llm-tasks/{first['id']}/heartbeat")
    assert (beat.status_code, beat.json()["type"].rpartition(":")[2]) == (409, "cancelled")

    again = {"filter": {"status": "cancelled", "before": second["created_at"] + 1}}
    assert post(api, "requeue", {**again, "dry_run": True}) == (200, {"matched": 2, "changed": 0})
    assert post(api, "requeue", again) == (200, {"matched": 2, "changed": 2})
    assert statuses(api) == ["queued"] * 3
    assert post(api, "requeue", again) == (200, {"matched": 0, "changed": 0})

    entries = [entry for entry in api.get("/api/runtime/audit").json() if entry["action"].startswith("tasks.")]
    assert [(entry["action"], entry["entity_type"], json.loads(entry["detail"])) for entry in entries] == [
        ("tasks.requeued", "task", {"filter": again["filter"], "changed": 2}),
        ("tasks.cancelled", "task", {"filter": body["filter"], "changed": 2}),
    ]
    assert {entry["actor"] for entry in entries} == {"api-key"}
    assert api.get(f"/api/runtime/llm-tasks/{other['id']}").json()["updated_at"] == other["updated_at"]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("body", "error"),
    [
        (None, "filter: is required"),
        ({}, "filter: is required"),
        ([], "Expected `object`, got `array`"),
        ({"dry_run": True}, "filter: is required"),
        ({"filter": None}, "filter: Expected `object`, got `null`"),
        ({"filter": {}}, "filter: It needs a condition, or it would {action} everything: set one or more of `status`"),
        ({"filter": {"agent": "a"}}, "filter.agent: is unknown; there are status, agent_slug, context_id, worker_id"),
        ({"filter": {"status": "queued", "agent_slugs": "a"}}, "filter.agent_slugs: is unknown"),
        ({"filter": {"agent_slug": None}}, "filter.agent_slug: Expected `str`, got `null`"),
        ({"filter": {"status": None}}, "filter.status: Expected `str | array`, got `null`"),
        ({"filter": {"status": []}}, "filter.status: Expected `array` of length >= 1"),
        ({"filter": {"status": "waiting"}}, "filter.status: Invalid enum value 'waiting'"),
        ({"filter": {"status": "completed"}}, "filter: Tasks with status 'completed' cannot be {action}"),
        ({"filter": {"before": "yesterday"}}, "filter.before: Expected `int`, got `str`"),
        ({"filter": {"before": -1}}, "filter.before: Expected `int` >= 0"),
        ({"filter": {"agent_slug": "a\0"}}, "filter.agent_slug: a NUL character cannot be stored"),
        ({"filter": {"agent_slug": "a"}, "dryrun": True}, "dryrun: is unknown; there are filter, dry_run"),
        ({"filter": {"agent_slug": "a"}, "dry_run": "yes"}, "dry_run: Expected `bool`, got `str`"),
    ],
)
def test_refused_and_nothing_changed(api, daemon, create, action, body, error):
    task = create(agent_slug="a")
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        connection.execute("UPDATE llm_tasks SET status = %s", ["failed" if action == "requeue" else "queued"])
    status, problem = post(api, action, body)
    assert (status, problem["error"][: len(error.format(action=action))]) == (400, error.format(action=action))
    assert statuses(api) == ["failed" if action == "requeue" else "queued"]
    assert api.get(f"/api/runtime/llm-tasks/{task['id']}").json()["updated_at"] == task["updated_at"]


def test_a_status_that_it_cannot_apply_to(api):
    assert post(api, "cancel", {"filter": {"status": "failed"}})[1]["errors"] == [
        {
            "field": "filter",
            "message": "Tasks with status 'failed' cannot be cancelled, only 'queued', 'leased' or 'running'",
        }
    ]
    assert (
        "only 'failed', 'dead', 'cancelled' or 'queued'"
        in post(api, "requeue", {"filter": {"status": ["dead", "leased"]}})[1]["error"]
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_the_path_is_no_task(api, action):
    answer = api.get(f"/api/runtime/llm-tasks/{action}")
    assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, {"OPTIONS", "POST"})


def test_it_is_in_the_description(api):
    document = api.get("/api/schema").json()
    for action in ACTIONS:
        body = document["paths"][f"/api/runtime/llm-tasks/{action}"]["post"]["requestBody"]
        assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/BulkRequest"}
    assert set(document["components"]["schemas"]["TaskFilter"]["properties"]) == {
        "status", "agent_slug", "context_id", "worker_id", "before",
    }  # fmt: skip
