"""/api/schema says of each route what it takes, what it answers and how it may fail."""

import json

import pytest


@pytest.fixture
def document(api):
    return api.get("/api/schema").json()


@pytest.fixture
def operation(document):
    def operation(method, path):
        return document["paths"][path][method]

    return operation


def test_success_has_the_type_of_the_answer(operation):
    created = operation("post", "/api/runtime/workers")["responses"]
    assert [status for status in created if status < "400"] == ["201", "200"]
    for status in ("200", "201"):
        assert created[status]["content"] == {"application/json": {"schema": {"$ref": "#/components/schemas/Worker"}}}
        assert created[status]["headers"]["X-Request-Id"]["required"]
        assert "Link" not in created[status]["headers"]
    listed = operation("get", "/api/runtime/workers")["responses"]["200"]
    assert listed["content"]["application/json"]["schema"]["items"] == {"$ref": "#/components/schemas/Worker"}
    assert "Link" in listed["headers"]


def test_other_media_types(operation):
    def media(path):
        return {
            status: list(response.get("content", {}))
            for status, response in operation("get", path)["responses"].items()
            if status < "400"
        }

    assert media("/metrics") == {"200": ["text/plain", "application/openmetrics-text"]}
    assert media("/api/runtime/events") == {"200": ["text/event-stream"]}
    assert media("/api/runtime/artifacts/{artifact_id}/content") == {"200": ["*/*"], "206": ["*/*"], "304": []}
    assert media("/api/membridge/agents") == {"2XX": ["*/*"]}


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("get", "/api/runtime/health", {400, 403, 413, 429, 500, 503}),
        ("get", "/api/runtime/stats", {400, 401, 403, 413, 429, 500, 503}),
        ("get", "/api/runtime/llm-tasks/{task_id}", {400, 401, 403, 404, 413, 429, 500, 503}),
        ("post", "/api/runtime/llm-tasks", {400, 401, 403, 408, 413, 415, 429, 500, 503}),
        (
            "post", "/api/runtime/llm-tasks/{task_id}/complete",
            {400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503},
        ),
        (
            "put", "/api/runtime/leases/{lease_id}/artifacts/{name}",
            {400, 401, 403, 404, 408, 409, 413, 429, 500, 503},
        ),
        ("get", "/api/membridge/agents", {500, 502, 503}),
    ],
)  # fmt: skip
def test_failures(document, operation, method, path, statuses):
    failures = {
        int(status): response["$ref"].rpartition("/")[2]
        for status, response in operation(method, path)["responses"].items()
        if "$ref" in response
    }
    assert set(failures) == statuses
    for name in failures.values():
        response = document["components"]["responses"][name]
        assert list(response["content"]) == ["application/problem+json"]
    assert "Retry-After" in document["components"]["responses"]["TooManyRequests"]["headers"]


def test_bodies(operation):
    def body(path):
        described = operation("post", path)["requestBody"]
        return described["required"], described["content"]["application/json"]["schema"]

    one = {"$ref": "#/components/schemas/NewTask"}
    many = {"type": "array", "items": one, "minItems": 1, "maxItems": 500}
    assert body("/api/runtime/llm-tasks") == (True, {"anyOf": [one, many]})
    assert body("/api/runtime/llm-tasks/{task_id}/lease") == (False, {"$ref": "#/components/schemas/LeaseRequest"})
    assert body("/api/runtime/llm-tasks/{task_id}/cancel") == (False, {"type": "object"})
    required, completions = body("/api/runtime/leases/complete")
    assert (required, completions["items"]) == (True, {"$ref": "#/components/schemas/LeaseCompletion"})


def test_parameters(operation):
    status, *_, limit, cursor = operation("get", "/api/runtime/leases")["parameters"]
    assert status["schema"] == {"type": "string", "enum": ["active", "expired", "released", "failed"]}
    assert (limit["schema"]["minimum"], limit["schema"]["maximum"]) == (1, 1000)
    assert cursor["schema"]["format"] == "cursor"
    since = next(each for each in operation("get", "/api/runtime/audit")["parameters"] if each["name"] == "since")
    assert since["schema"]["minimum"] == 0


def test_patterns_are_those_of_json_schema(document):
    """Which knows neither `\\A` nor `\\Z`: it would take them for letters."""
    assert document["components"]["schemas"]["NewWorker"]["properties"]["name"]["pattern"].startswith("^")
    assert r"\\A" not in json.dumps(document)
    assert r"\\Z" not in json.dumps(document)


def test_keys(document, operation):
    key = [{"key": []}, {"bearer": []}]
    assert document["security"] == key
    without = {path for path, item in document["paths"].items() for each in item.values() if "security" in each}
    assert without == {
        "/metrics",
        "/ready",
        *(f"/api/runtime/{each}" for each in ("ready", "health", "test-connection", "enrolments/exchange", "session")),
        "/api/runtime/agent-install-script",  # for who has a code
    }
    assert operation("get", "/metrics")["security"] == [{}, *key]
    assert "401" in operation("get", "/metrics")["responses"]
