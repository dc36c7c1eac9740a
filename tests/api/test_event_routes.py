"""The event stream over HTTP (contract, section 3)."""

import httpx
import pytest
from event_source import PATH, EventSource


def done(events):
    return [(event.type, event.data["action"], event.data["entity_id"]) for event in events]


def test_the_life_of_a_task_as_it_is_lived(api, create, register):
    with EventSource(api, types="task,worker") as source:
        register("w1")
        task = create()["id"]
        lease = api.post(f"/api/runtime/llm-tasks/{task}/lease").json()["lease"]["id"]
        api.post(f"/api/runtime/llm-tasks/{task}/heartbeat", json={"lease_id": lease})
        api.post(f"/api/runtime/llm-tasks/{task}/complete", json={"status": "success", "lease_id": lease})
        events = source.take(5)
    assert done(events) == [
        ("worker", "worker.registered", "w1"),
        ("task", "task.created", task),
        ("task", "task.leased", task),
        ("task", "task.running", task),
        ("task", "task.completed", task),
    ]
    trail = api.get("/api/runtime/audit").json()
    assert [event.data for event in reversed(events)] == [entry for entry in trail if entry["actor"] == "api-key"]


def test_an_entry_of_no_type_of_its_own_is_audit(api):
    with EventSource(api, entity_id="queue") as source:
        api.post("/api/runtime/queue", json={"paused": True})
        api.post("/api/runtime/queue", json={"paused": False})
        events = source.take(2)
    assert done(events) == [("audit", "queue.paused", "queue"), ("audit", "queue.resumed", "queue")]


def test_progress_is_told_and_has_no_id(api, create, register):
    register("w1")
    task = create()["id"]
    api.post(f"/api/runtime/llm-tasks/{task}/lease")
    with EventSource(api, entity_id=task) as source:
        api.post(f"/api/runtime/llm-tasks/{task}/heartbeat", json={"progress": 0.5})
        events = source.take(2)
        assert {event.data["action"] for event in events} == {"task.running", "task.progress"}
        [running] = [event for event in events if event.data["action"] == "task.running"]
        [progress] = [event for event in events if event.data["action"] == "task.progress"]
        assert progress.data["progress"] == 0.5
        assert isinstance(progress.data["timestamp"], int)
    with EventSource(api, last_id=running.id, entity_id=task) as source:
        api.post(f"/api/runtime/llm-tasks/{task}/cancel")
        assert done(source.take(1)) == [("task", "task.cancelled", task)]


def test_only_what_is_asked_for(api, create, register):
    with EventSource(api, types="worker,lease") as source, EventSource(api, entity_id="w2") as of_w2:
        create()
        register("w1")
        create()
        register("w2")
        assert [event.data["entity_id"] for event in source.take(2)] == ["w1", "w2"]
        assert [event.data["action"] for event in of_w2.take(1)] == ["worker.registered"]


@pytest.mark.parametrize("way", ["header", "query", "both"])
def test_it_goes_on_after_the_last_event_id(api, create, way):
    """The header counts: a browser sends it when it comes again, to the URL that it was given at first."""
    with EventSource(api, types="task") as source:
        tasks = [create()["id"] for _ in range(5)]
        first, second, *_ = source.take(5)
    header = second.id if way in ("header", "both") else None
    query = {} if way == "header" else {"last_event_id": first.id if way == "both" else second.id}
    with EventSource(api, last_id=header, types="task", **query) as source:
        assert [event.data["entity_id"] for event in source.take(3)] == tasks[2:]
        another = create()["id"]
        assert [event.data["entity_id"] for event in source.take(1)] == [another]


def test_a_reader_that_saw_nothing_yet_misses_nothing_either(api, create):
    create()
    with EventSource(api) as source:
        pass
    task = create()["id"]
    with EventSource(api, last_id=source.last_id, types="task") as again:
        assert [event.data["entity_id"] for event in again.take(1)] == [task]


def test_an_id_that_nobody_knows_begins_with_a_reset(api, create):
    create()  # of an empty trail nobody can say where it begins
    with EventSource(api, last_id="999999999999-1", types="worker") as source:
        [reset] = source.take(1)
        assert (reset.type, list(reset.data)) == ("reset", ["reason"])
    with EventSource(api, last_id=reset.id, types="task") as source:
        task = create()["id"]
        assert [event.data["entity_id"] for event in source.take(1)] == [task]


@pytest.mark.parametrize(
    ("query", "headers", "field"),
    [
        ({"types": "task,job"}, {}, "types"),
        ({"types": ""}, {}, "types"),
        ({"last_event_id": "seven"}, {}, "last_event_id"),
        ({}, {"Last-Event-ID": "7"}, "last_event_id"),
        ({}, {"Last-Event-ID": "7-99999999999999999999"}, "last_event_id"),
    ],
)
def test_what_cannot_be_asked(api, query, headers, field):
    answer = api.get(PATH, params=query, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_a_nul_is_refused(api):
    assert api.get(f"{PATH}?entity_id=a%00b").status_code == 400


def test_it_needs_the_key_like_all_else(daemon, api):
    with httpx.Client(base_url=daemon.url, trust_env=False) as stranger:
        assert stranger.get(PATH).status_code == 401
        assert stranger.get(PATH, headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_head_is_answered_and_ends(api):
    answer = api.head(PATH, timeout=5)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert api.head(f"{PATH}?types=job").status_code == 400
    assert api.post(PATH).status_code == 405


def test_a_connection_serves_other_requests_after_a_stream_was_refused(api):
    assert api.get(f"{PATH}?types=job").status_code == 400
    assert api.get("/api/runtime/stats").status_code == 200


def test_the_description_says_what_it_streams(api):
    operation = api.get("/api/schema").json()["paths"][PATH]["get"]
    assert list(operation["responses"]["200"]["content"]) == ["text/event-stream"]
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "types", "entity_id", "last_event_id", "Last-Event-ID", "pulse",
    }  # fmt: skip
