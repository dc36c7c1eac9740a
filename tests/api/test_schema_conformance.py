"""The API is what /api/schema says: schemathesis asks for everything there, rightly and wrongly, and compares."""

import json
from pathlib import Path

import httpx
import pytest
import trio
from agent_peer import agent_peer
from bloomd_process import BIN, KEY, Bloomd
from peers import membridge_peer
from prometheus_client.parser import text_string_to_metric_families
from servers import PostgresServer

from bloomd.http.install.package import REQUIREMENTS, WHEEL

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")

# It never ends; tests/api/test_event_routes.py has it.
STREAM = "/api/runtime/events"

# Membridge alone knows what this takes; tests/daemon/test_membridge.py knows, too.
PROMOTION = "/api/membridge/projects/{canonical_id}/leadership/select"

# Some requests that the description allows are refused all the same, and why.
JUDGED = {
    "/api/runtime/config": "something has to be set, and a key belongs to a URL",
    "/api/runtime/queue": "a pause does not end in the past",
    "/api/runtime/llm-tasks/requeue": "there is no requeueing from every status",
    "/api/runtime/llm-tasks/cancel": "there is no cancelling from every status",
    "/api/runtime/agent-install-script": "a worker has to be named, and the one that the code is for",
    PROMOTION: "Membridge judges it",
    **dict.fromkeys(
        [f"/api/runtime/projects/{{project_id}}/{each}" for each in ("clone", "sync-memory")],
        "there has to be such a node",
    ),
}

ALLOWED = ["2xx", "3xx", "401", "403", "404", "409", "429", "502", "503"]

CONFIGURATION = """
hooks = {hooks}
suppress-health-check = ["all"]
headers = {{ X-Runtime-API-Key = {key} }}

[phases.stateful]
enabled = false  # tests/api/test_lifecycle_machine.py knows better what may follow what

# What an answer has told is in no request, so that a run is like another, and leases in use stay so.
[phases.coverage.extra-data-sources]
responses = false

[phases.fuzzing.extra-data-sources]
responses = false

[generation]
deterministic = true
database = "none"
max-examples = 12
allow-x00 = false  # a NUL is a 400 wherever it stands, which would have to be said of every string

[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "502", "503"]
positive_data_acceptance.expected-statuses = {allowed}

[output.sanitization]
enabled = false  # so that the command that it prints for a failure can be run
"""

JUDGED_OPERATION = """
[[operations]]
include-path = {path}
checks.positive_data_acceptance.expected-statuses = {allowed}
"""

# Each has a task and its lease for itself, which no other request ends.
OF_LEASES = [
    "/api/runtime/llm-tasks/{task_id}/heartbeat",
    "/api/runtime/leases/{lease_id}/artifacts/{name}",
    "/l/{lease_id}/api/runtime/llm-tasks/{task_id}/heartbeat",
    "/l/{lease_id}/api/runtime/llm-tasks/{task_id}/complete",
]

OPERATION_OF_LEASE = """
[[operations]]
include-path = {path}

[operations.parameters]
"path.lease_id" = {{ dictionary = "lease_id_{number}" }}
"path.task_id" = {{ dictionary = "task_id_{number}" }}
"""

# These workers have an agent, and no others; without one there is nothing to ask.
OF_AGENTS = [
    f"/api/runtime/workers/{{worker_id}}/agent-{each}" for each in ("health", "update", "restart", "uninstall")
]

OPERATION_OF_AGENT = """
[[operations]]
include-path = {path}
checks.positive_data_acceptance.expected-statuses = {allowed}

[operations.parameters]
"path.worker_id" = {{ dictionary = "agent_id" }}
"""

# These tasks are queued, and nothing else touches them; a worker without a URL cannot be pushed to.
DISPATCH = "/api/runtime/llm-tasks/{task_id}/dispatch"

OPERATION_OF_DISPATCH = """
[[operations]]
include-path = {path}
checks.positive_data_acceptance.expected-statuses = {allowed}

[operations.parameters]
"path.task_id" = {{ dictionary = "task_id_to_dispatch", probability = 0.9 }}
"body.worker_id" = {{ dictionary = "agent_id", probability = 0.9 }}
"""

# What is removed is nothing that others look at.
REMOVAL_OF_TOKEN = """
[[operations]]
include-name = "DELETE /api/runtime/workers/{worker_id}/tokens/{token_id}"

[operations.parameters]
"path.worker_id" = { dictionary = "holder_id", probability = 0.9 }
"path.token_id" = { dictionary = "token_id", probability = 0.9 }
"""

REMOVAL_OF_PROJECT = """
[[operations]]
include-name = "DELETE /api/runtime/projects/{project_id}"

[operations.parameters]
"path.project_id" = { dictionary = "project_id_to_remove" }
"""

# A service that nothing else here is about.
RESTART = """
[[operations]]
include-name = "POST /api/runtime/services/restart"

[operations.parameters]
"body.name" = { dictionary = "service", probability = 0.9 }
"""

SIGN_IN = """
[[operations]]
include-name = "POST /api/runtime/session"

[operations.parameters]
"body.key" = { dictionary = "api_key", probability = 0.7 }
"""


def populate(api: httpx.Client, agent_url: str) -> dict[str, list[str]]:
    """Tasks in all states and what belongs to them; the values of path parameters under which there is something."""

    def post(path, body=None):
        answer = api.post(f"/api/runtime{path}", json=body or {})
        assert answer.is_success, answer.text
        return answer.json()

    workers = [post("/workers", {"name": f"w{n}", "capabilities": {"max_concurrency": 32}})["id"] for n in range(8)]
    agents = [post("/workers", {"name": f"a{n}", "url": agent_url})["id"] for n in range(4)]
    body = {"name": "bloom", "repo_url": "https://git.example.org/bloom.git"}
    projects = [post("/projects", body)["id"] for _ in range(24)]
    tasks = [each["id"] for each in post("/llm-tasks", [{"prompt": "Say hello", "context_id": "one"}] * 60)]
    post("/llm-tasks", [{"prompt": "Say hello", "context_id": "of many"}] * 10)
    running, finished, cancelled = tasks[:40], tasks[40:48], tasks[48:52]
    leases = [post(f"/llm-tasks/{id}/lease", {"ttl_seconds": 86400})["lease"]["id"] for id in running + finished]
    done = [post(f"/llm-tasks/{id}/complete", {"status": "success", "output": "Hello"}) for id in finished]
    for id in cancelled:
        post(f"/llm-tasks/{id}/cancel")
    pushed = [each["id"] for each in post("/llm-tasks", [{"prompt": "Say hello"}] * 60)]
    post(f"/llm-tasks/{pushed[0]}/dispatch")
    return {
        "worker_id": workers,
        "agent_id": agents,
        "task_id_to_dispatch": pushed,
        "project_id": projects[:4],
        "project_id_to_remove": projects[4:],
        "task_id": tasks[len(OF_LEASES) :],
        "lease_id": leases[len(OF_LEASES) :],
        **{f"task_id_{number}": [tasks[number]] for number in range(len(OF_LEASES))},
        **{f"lease_id_{number}": [leases[number]] for number in range(len(OF_LEASES))},
        "holder_id": ["holder"],
        "token_id": [post("/workers/holder/tokens")["id"] for _ in range(20)],
        "code": [post("/enrolments", {"worker": "w0"})["code"] for _ in range(40)],
        "filename": [WHEEL, REQUIREMENTS],
        "artifact_id": [each["artifact"]["id"] for each in done],
        "name": [post("/keys", {"name": f"k{n}"})["name"] for n in range(20)],
        "service": ["retention"],
        "api_key": [KEY],
        "key": ["membridge_server_url", "admin_key"],
        "repo_url": [body["repo_url"]],
        "canonical_id": ["0123456789abcdef"],
    }


def configuration(known: dict[str, list[str]]) -> str:
    """Of schemathesis, which is to take such values often."""
    toml = json.dumps
    in_path = (
        "worker_id",
        "project_id",
        "task_id",
        "lease_id",
        "artifact_id",
        "name",
        "key",
        "canonical_id",
        "filename",
    )
    in_body = ("worker_id", "code", "repo_url", "membridge_server_url", "admin_key", "membridge_admin_key")
    bindings = {f"path.{name}": name for name in in_path} | {f"body.{name}": name for name in in_body}
    bindings |= {"body.[*].lease_id": "lease_id", "body.node_id": "agent_id"}
    return "".join([
        CONFIGURATION.format(hooks=toml(str(HOOKS)), key=toml(KEY), allowed=toml(ALLOWED)),
        "\n[dictionaries]\n",
        *(f"{name} = {{ values = {toml(values)} }}\n" for name, values in known.items()),
        "\n[parameters]\n",
        *(f'"{place}" = {{ dictionary = "{name}", probability = 0.7 }}\n' for place, name in bindings.items()),
        *(JUDGED_OPERATION.format(path=toml(path), allowed=toml([*ALLOWED, "400", "422"])) for path in JUDGED),
        *(OPERATION_OF_LEASE.format(path=toml(path), number=number) for number, path in enumerate(OF_LEASES)),
        *(OPERATION_OF_AGENT.format(path=toml(path), allowed=toml([*ALLOWED, "400"])) for path in OF_AGENTS),
        OPERATION_OF_DISPATCH.format(path=toml(DISPATCH), allowed=toml([*ALLOWED, "400"])),
        REMOVAL_OF_TOKEN,
        REMOVAL_OF_PROJECT,
        RESTART,
        SIGN_IN,
    ])  # fmt: skip


def succeeded(api: httpx.Client) -> set[tuple[str, str]]:
    """The operations, by method and path, that were answered with success."""
    families = text_string_to_metric_families(api.get("/metrics").text)
    [requests] = [each for each in families if each.name == "bloomd_http_requests"]
    labels = [each.labels for each in requests.samples]
    return {(each["method"], each["route"]) for each in labels if each["status"].startswith("2")}


@pytest.mark.slow
async def test_the_api_is_as_described(postgres_server: PostgresServer, migrated: str, tmp_path: Path):
    url = postgres_server.create_database(migrated)
    async with membridge_peer() as peer, agent_peer() as agent:
        bloomd = Bloomd(url, membridge__server_url=peer.url, membridge__admin_key=KEY, http__public_url=peer.url)
        with bloomd:
            membridge = {"membridge_server_url": [peer.url], "admin_key": [KEY], "membridge_admin_key": [KEY]}
            known = await trio.to_thread.run_sync(populate, bloomd.http, agent.url) | membridge
            (tmp_path / "schemathesis.toml").write_text(configuration(known))
            done = await trio.run_process(
                [BIN / "schemathesis", "run", f"{bloomd.url}/api/schema", "--exclude-path", STREAM,
                 "--continue-on-failure", "--no-color"],
                capture_stdout=True, capture_stderr=True, check=False, cwd=tmp_path,
            )  # fmt: skip
            assert done.returncode == 0, (done.stdout + done.stderr).decode()
            paths = bloomd.http.get("/api/schema").json()["paths"]
            operations = {(method.upper(), path) for path, item in paths.items() for method in item}
            assert operations - succeeded(bloomd.http) == {("GET", STREAM), ("POST", PROMOTION)}
