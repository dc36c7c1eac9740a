"""The routes of API keys, where `http.api_key` is set as well."""

import re

import httpx
import pytest
from servers import eventually


@pytest.fixture(scope="module")
def daemon(start_daemon):
    """Of its own: so many are refused here and elsewhere that the limit of failed attempts would be reached."""
    with start_daemon() as bloomd:
        yield bloomd


@pytest.fixture
def made(daemon, api):
    """The client, with no named keys before the test and none after it."""
    yield api
    for key in api.get("/api/runtime/keys").json():
        assert api.delete(f"/api/runtime/keys/{key['name']}").status_code == 200


def add(api, name):
    answer = api.post("/api/runtime/keys", json={"name": name})
    assert answer.status_code == 201, answer.text
    return answer.json()


def with_key(daemon, secret):
    return httpx.Client(base_url=daemon.url, headers={"X-Runtime-API-Key": secret}, timeout=30, trust_env=False)


def test_a_key_from_its_making_to_its_end(daemon, made):
    answer = made.post("/api/runtime/keys", json={"name": "ci"})
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    key = answer.json()
    assert set(key) == {"name", "secret", "created_at", "created_by"}
    assert re.fullmatch(r"bloom_[A-Za-z0-9_-]{43}", key["secret"])
    assert (key["name"], key["created_by"]) == ("ci", "api-key")
    listed = made.get("/api/runtime/keys")
    assert listed.json() == [
        {"name": "ci", "created_at": key["created_at"], "created_by": "api-key", "last_used_at": None}
    ]
    with with_key(daemon, key["secret"]) as ci:
        assert ci.post("/api/runtime/llm-tasks", json={"prompt": "x"}).status_code == 201
        removed = made.delete("/api/runtime/keys/ci")
        assert (removed.status_code, removed.json()) == (200, {"removed": True, "name": "ci", "authentication": "on"})
        assert ci.get("/api/runtime/stats").status_code == 401
    assert made.get("/api/runtime/keys").json() == []
    trail = made.get("/api/runtime/audit").json()
    told = [(entry["action"], entry["entity_id"], entry["actor"]) for entry in trail if entry["entity_type"] == "key"]
    assert told == [("key.removed", "ci", "api-key"), ("key.added", "ci", "api-key")]
    assert [entry["actor"] for entry in trail if entry["action"] == "task.created"] == ["ci"]
    assert key["secret"] not in str(trail) + daemon.log.read_text()


def test_a_stream_of_events_ends_with_its_key(daemon, made):
    key = add(made, "watcher")
    with with_key(daemon, key["secret"]) as watcher, watcher.stream("GET", "/api/runtime/events") as events:
        lines = events.iter_lines()
        assert next(lines) == ": bloomd"
        made.delete("/api/runtime/keys/watcher").raise_for_status()
        made.post("/api/runtime/llm-tasks", json={"prompt": "not for those who may not see it"}).raise_for_status()
        assert not any("task.created" in line for line in lines)


def test_two_keys_are_valid_at_once(daemon, made):
    old = add(made, "web-2024")
    with with_key(daemon, old["secret"]) as before:
        new = before.post("/api/runtime/keys", json={"name": "web-2025"}).json()
        assert new["created_by"] == "web-2024"
        with with_key(daemon, new["secret"]) as after:
            assert (before.get("/api/runtime/stats").status_code, after.get("/api/runtime/stats").status_code) == (
                200,
                200,
            )
            assert after.delete("/api/runtime/keys/web-2024").status_code == 200
            assert (before.get("/api/runtime/stats").status_code, after.get("/api/runtime/stats").status_code) == (
                401,
                200,
            )
    assert made.get("/api/runtime/stats").status_code == 200


def test_a_bearer_token_is_as_good(daemon, made):
    secret = add(made, "ci")["secret"]
    with httpx.Client(base_url=daemon.url, trust_env=False) as client:
        assert client.get("/api/runtime/stats", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert client.get("/api/runtime/stats", headers={"Authorization": f"Basic {secret}"}).status_code == 401


@pytest.mark.parametrize(
    "sent", [b"\xff\xfe", "ключ".encode(), b"\xd0bloom_", b"bloom_" + b"x" * 43, b"bloom_" + b"x" * 20_000]
)
def test_what_is_no_key_is_a_401(daemon, made, sent):
    add(made, "ci")
    with httpx.Client(base_url=daemon.url, trust_env=False) as client:
        answer = client.get("/api/runtime/stats", headers={b"X-Runtime-API-Key": sent})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "is required"),
        ({"name": ""}, "length >= 1"),
        ({"name": 7}, "Expected `str`"),
        ({"name": "a/b"}, "matching regex"),
        ({"name": "a\n"}, "matching regex"),
        ({"name": "x" * 65}, "length <= 64"),
        ({"name": "api-key"}, "means somebody else"),
        ({"name": "bloom_" + "x" * 43}, "looks like the secret"),
    ],
)
def test_names_that_are_refused(made, body, message):
    answer = made.post("/api/runtime/keys", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    [error] = answer.json()["errors"]
    assert error["field"] == "name"
    assert message in error["message"]
    assert made.get("/api/runtime/keys").json() == []


def test_names_that_are_taken_or_unknown(made):
    add(made, "ci")
    again = made.post("/api/runtime/keys", json={"name": "ci"})
    assert (again.status_code, again.json()["error"]) == (
        409,
        "There is a key named ci already; remove it first, or choose another name",
    )
    for path in ("other", "CI", "a%20b", "%d0%ba"):
        answer = made.delete(f"/api/runtime/keys/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    assert [key["name"] for key in made.get("/api/runtime/keys").json()] == ["ci"]


def test_a_secret_in_the_place_of_a_name_is_told_to_nobody(daemon, made):
    secret = add(made, "ci")["secret"]
    answer = made.delete(f"/api/runtime/keys/{secret}")
    assert (answer.status_code, secret in answer.text) == (404, False)
    eventually(lambda: "/api/runtime/keys/****" in daemon.log.read_text())
    assert secret not in daemon.log.read_text()


def test_the_list_is_in_pages(made):
    for number in range(3):
        add(made, f"k{number}")
    first = made.get("/api/runtime/keys", params={"limit": 2})
    second = made.get(first.links["next"]["url"])
    assert {key["name"] for key in [*first.json(), *second.json()]} == {"k0", "k1", "k2"}
    assert len(first.json()) == 2


def test_a_stranger_makes_no_key(daemon, made):
    with httpx.Client(base_url=daemon.url, trust_env=False) as stranger:
        assert stranger.post("/api/runtime/keys", json={"name": "mine"}).status_code == 401
        assert stranger.get("/api/runtime/keys").status_code == 401
        assert stranger.delete("/api/runtime/keys/ci").status_code == 401
    assert made.get("/api/runtime/keys").json() == []


def test_the_schema_has_the_keys(api):
    document = api.get("/api/schema").json()
    assert set(document["paths"]["/api/runtime/keys"]) == {"get", "post"}
    assert set(document["paths"]["/api/runtime/keys/{name}"]) == {"delete"}
    assert set(document["components"]["schemas"]["MadeKey"]["properties"]) == {
        "name", "secret", "created_at", "created_by",
    }  # fmt: skip
