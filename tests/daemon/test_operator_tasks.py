"""What a person does to tasks and workers on the command line: queue one, look, wait for its result, end it."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator

import psycopg
import pytest
from bloomd_process import BIN, KEY, Bloomd
from servers import PostgresServer, eventually

from bloomd.control.client import Client, Failed
from bloomd.control.codes import INVALID_PARAMS


@pytest.fixture(scope="module")
def daemon(postgres_server: PostgresServer, migrated: str) -> Iterator[Bloomd]:
    daemon = Bloomd(postgres_server.create_database(migrated), tasks__retry_delay=0.05)
    with daemon:
        yield daemon
        assert daemon.stop() == 0


@pytest.fixture
def ctl(daemon: Bloomd):
    """Run it; what it prints, when it exits as it should."""

    def run(*arguments: str, code: int = 0, says: str = "", **options) -> str:
        done = daemon.ctl(*arguments, **options)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert says in done.stderr
        return done.stdout.rstrip("\n")

    return run


@pytest.fixture(autouse=True)
def _nothing_is_queued(daemon: Bloomd) -> None:
    everything = {"filter": {"status": ["queued", "leased", "running"]}}
    daemon.http.post("/api/runtime/llm-tasks/cancel", json=everything).raise_for_status()


@pytest.fixture
def work(daemon: Bloomd, ctl):
    """Do the next task of a worker as somebody else would."""

    def work(name: str, output: str | None = "Hello", **said) -> dict:
        claim = {"worker_id": name, "wait_seconds": 20}
        [got] = daemon.http.post("/api/runtime/leases/claim", json=claim).raise_for_status().json()["leases"]
        completion = {"status": "success", "output": output, "lease_id": got["lease"]["id"], **said}
        daemon.http.post(f"/api/runtime/llm-tasks/{got['task']['id']}/complete", json=completion).raise_for_status()
        return got["task"]

    return work


@pytest.fixture
def sql(daemon: Bloomd):
    def run(statement: str, *parameters: object) -> None:
        with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
            connection.execute(statement, parameters)

    return run


def task(daemon: Bloomd, id: str) -> dict:
    return daemon.http.get(f"/api/runtime/llm-tasks/{id}").json()


def test_a_task_is_queued_with_all_that_was_said(daemon, ctl, tmp_path):
    ctl("worker", "add", "pinned")
    id = ctl(
        "task", "add", "Look at this", "--context", "c", "--agent", "a", "--label", "x", "--label", "y",
        "--priority", "7", "--pin", "pinned", "--format", "json", "--timeout", "60", "--hint", "README.md",
    )  # fmt: skip
    made = task(daemon, id)
    assert {
        "prompt": "Look at this", "context_id": "c", "agent_slug": "a", "labels": ["x", "y"], "priority": 7,
        "pinned_worker_id": "pinned", "desired_format": "json", "policy": {"timeout_sec": 60, "budget": 0},
        "context_hints": ["README.md"], "status": "queued",
    }.items() <= made.items()  # fmt: skip
    [entry] = daemon.http.get("/api/runtime/audit", params={"entity_id": id}).json()
    assert (entry["action"], entry["actor"]) == ("task.created", "root")
    file = tmp_path / "prompt"
    file.write_text("Ї from a file\n")
    assert task(daemon, ctl("task", "add", "-f", str(file)))["prompt"] == "Ї from a file\n"
    assert task(daemon, ctl("task", "add", "-", input="from a pipe"))["prompt"] == "from a pipe"


def test_what_is_asked_and_answered_is_in_neither_log(daemon, ctl):
    id = ctl("task", "add", "a prompt of nobody else's", "--pin", "nobody")
    with Client(str(daemon.socket), 10) as client:
        for completion in ({"status": "success", "output": "an answer of nobody else's"}, {"status": "success"}):
            with pytest.raises(Failed):
                client.call("task.complete", name=id, completion=completion | {"lease_id": "none"})
        with pytest.raises(Failed):
            client.call("task.add", tasks=[{"prompt": "a prompt of nobody else's", "priority": 10}])
    log = daemon.log.read_text()
    assert "task.add" in log
    assert id in log

    def failed(action):
        return daemon.http.get("/api/runtime/audit", params={"action": f"control.{action}"}).json()

    eventually(lambda: len(failed("task.complete")) == 2 and failed("task.add"))
    assert {entry["entity_id"] for entry in failed("task.complete")} == {id}
    assert "nobody else" not in log + str(failed("task.complete") + failed("task.add"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say the prompt once"),
        (("x", "-f", "y"), "say the prompt once"),
        (("-f", "/nowhere"), "cannot read /nowhere: No such file"),
        (("-",), "the prompt is empty"),
        (("x", "--priority", "10"), "a whole number from 0 to 9 is expected, not '10'"),
        (("x", "--timeout", "soon"), "a whole number from 1 to 3600"),
    ],
)
def test_what_makes_no_task(ctl, arguments, says):
    assert ctl("task", "add", *arguments, code=64, says=says, input="") == ""


def test_a_prompt_that_is_no_text(daemon, tmp_path):
    file = tmp_path / "prompt"
    file.write_bytes(b"\xff")
    done = daemon.ctl("task", "add", "-f", str(file))
    assert (done.returncode, "not UTF-8" in done.stderr) == (64, True)


def test_waiting_ends_with_the_result_as_it_is(daemon, ctl, work):
    ctl("worker", "add", "w1", "--label", "w1")
    output = "Ґанок\n" * 200_000  # several pieces
    thread = threading.Thread(target=work, args=("w1", output))
    thread.start()
    done = subprocess.run(
        [BIN / "bloomd-ctl", "-s", daemon.socket, "task", "add", "--wait", "--label", "w1", "Say it often"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    thread.join()
    assert (done.returncode, done.stdout.decode()) == (0, output)
    said = done.stderr.decode()
    id = said.partition("bloomd-ctl: task ")[2].split()[0]
    assert "completed" in said
    assert ctl("task", "result", id) == output.rstrip("\n")
    shown = json.loads(ctl("-o", "json", "task", "wait", id))
    assert (shown["task"]["status"], shown["result"]["output"]) == ("completed", None)
    assert [each["outcome"] for each in shown["history"]] == ["success"]


def test_waiting_for_one_that_fails(daemon, ctl, work):
    ctl("worker", "add", "w2", "--label", "w2")
    error = {"status": "error", "error_message": "no such model", "retryable": False}
    thread = threading.Thread(target=lambda: work("w2", None, **error))
    thread.start()
    assert ctl("task", "add", "--wait", "--label", "w2", "x", code=10, says="failed: no such model") == ""
    thread.join()


def test_how_it_ended_is_the_exit_code(ctl, sql):
    id = ctl("task", "add", "--label", "nobody has it", "x")
    ctl("task", "cancel", id)
    assert ctl("task", "wait", id, code=12, says="cancelled") == ""
    sql("UPDATE llm_tasks SET status = 'dead' WHERE id = %s", id)
    assert json.loads(ctl("-o", "json", "task", "wait", id, code=11))["task"]["id"] == id
    assert ctl("task", "wait", "nope", code=1, says="Task not found") == ""


def test_a_prompt_that_the_socket_does_not_take(daemon, ctl, tmp_path):
    file = tmp_path / "prompt"
    file.write_text("x" * (1 << 20))

    def known():
        return [each["id"] for each in daemon.http.get("/api/runtime/llm-tasks", params={"limit": 1000}).json()]

    before = known()
    assert ctl("task", "add", "-f", str(file), code=1, says="POST /api/runtime/llm-tasks") == ""
    ctl("task", "add", "-f", str(file), code=1, says="takes up to 1 MiB a call")
    assert known() == before


def test_ctrl_c_ends_only_the_waiting(daemon, ctl):
    id = ctl("task", "add", "--label", "nobody has it", "x")
    with subprocess.Popen(
        [BIN / "bloomd-ctl", "-s", daemon.socket, "task", "wait", id], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        assert process.stderr.readline() == "bloomd-ctl: queued\n"
        assert "nobody has it" in process.stderr.readline()  # the label, as `why` tells it
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert f"the task goes on: bloomd-ctl task show {id}" in process.stderr.read()
    assert task(daemon, id)["status"] == "queued"


def test_lists_filters_and_pages(ctl):
    ids = [ctl("task", "add", "--context", "pages", f"number {number}") for number in range(3)]
    first = ctl("task", "list", "--context", "pages", "--limit", "2")
    assert [line.split()[0] for line in first.splitlines()[1:3]] == [ids[2], ids[1]]
    cursor = first.rpartition("--cursor ")[2]
    second = ctl("task", "list", "--context", "pages", "--limit", "2", "--cursor", cursor)
    assert [line.split()[0] for line in second.splitlines()[1:]] == [ids[0]]
    assert ctl("task", "list", "--context", "pages", "--status", "failed") == "no task"
    assert ctl("task", "list", "--cursor", "x", code=1, says="cursor:") == ""


def test_tasks_are_ended_and_begun_again(daemon, ctl):
    one, two, three = (ctl("task", "add", "--context", "ends", f"{n}") for n in range(3))
    told = ctl("task", "cancel", one, "nope", two, code=1, says="nope: Task not found")
    assert told.splitlines() == [f"{one}  cancelled", f"{two}  cancelled"]
    assert ctl("task", "requeue", one) == f"{one}  queued"
    assert ctl("task", "requeue", one, code=1, says="Task status is 'queued'") == ""
    asked = ctl("task", "cancel", "--context", "ends", "--dry-run")
    assert asked == "2 tasks matched, nothing is changed"
    assert ctl("task", "cancel", "--context", "ends") == "2 tasks matched, 2 tasks changed"
    assert {task(daemon, id)["status"] for id in (one, two, three)} == {"cancelled"}
    ctl("task", "cancel", code=64, says="name the tasks to cancel, or a filter")
    ctl("task", "cancel", one, "--context", "ends", code=64, says="and not both")
    ctl("task", "cancel", one, "--dry-run", code=64, says="named need no counting")


def test_a_task_shows_its_attempts(ctl, work):
    ctl("worker", "add", "w3", "--label", "w3")
    id = ctl("task", "add", "--label", "w3", "--context", "Розмова", "Say hello")
    assert ctl("task", "result", id, code=1, says="the task is queued and has no result yet") == ""
    work("w3", metrics={"duration_ms": 1500, "tokens_used": 12})
    shown = ctl("task", "show", id)
    assert shown.startswith(f"{id}  completed\nprompt    Say hello\ncontext   Розмова\n")
    assert "1.5 s, 12 tokens" in " ".join(shown.split())
    assert "w3  success  after 0 s" in shown


def test_workers_come_and_go(daemon, ctl):
    added = ctl("worker", "add", "gpu-1", "--url", "http://127.0.0.1:9", "--label", "gpu", "--max-concurrency", "4")
    assert added == "gpu-1 is registered"
    assert ctl("worker", "add", "gpu-1") == "gpu-1 is known already; what was said is noted"
    worker = daemon.http.get("/api/runtime/workers/gpu-1").json()
    assert worker["url"] == "http://127.0.0.1:9"
    assert worker["capabilities"] == {"claude_cli": True, "max_concurrency": 4, "labels": ["gpu"]}
    [line] = [line for line in ctl("workers").splitlines() if line.startswith("gpu-1")]
    assert line.split()[1:3] == ["online", "0/4"]
    daemon.http.post("/api/runtime/workers", json={"name": "gpu-4", "status": "error"}).raise_for_status()
    assert [line.split()[0] for line in ctl("workers", "--status", "error").splitlines()[1:]] == ["gpu-4"]
    id = ctl("task", "add", "--pin", "gpu-1", "x")
    daemon.http.post(f"/api/runtime/llm-tasks/{id}/lease", json={}).raise_for_status()
    assert f"task {id} since" in ctl("worker", "show", "gpu-1")
    ctl("worker", "remove", "gpu-1", code=1, says="lease")
    assert ctl("worker", "remove", "gpu-1", "--force") == "gpu-1 is forgotten"
    assert task(daemon, id)["status"] in ("queued", "dead")
    ctl("worker", "show", "gpu-1", code=1, says="Worker not found")


def test_tokens_and_codes(daemon, ctl):
    token = ctl("worker", "token", "gpu-2", says="it is shown only this once")
    registering = {"headers": {"X-Runtime-API-Key": token}, "json": {"name": "gpu-2"}}
    assert daemon.http.post("/api/runtime/workers", **registering).status_code == 201
    id = ctl("worker", "token", "gpu-2", "--list").splitlines()[1].split()[0]
    assert ctl("worker", "token", "gpu-2", "--revoke", id) == f"{id} is a token no longer"
    assert daemon.http.post("/api/runtime/workers", **registering).status_code == 401
    code = ctl("worker", "enrol", "gpu-3", says="becomes gpu-3, once, until")
    made = daemon.http.post("/api/runtime/enrolments/exchange", json={"code": code}).json()
    assert made["worker"] == "gpu-3"
    for secret in (token, code, made["token"], KEY):
        assert secret not in daemon.log.read_text()


# Every operation of the API about tasks and workers, and what does the same over the socket.
SAME = {
    "POST /llm-tasks": "task.add",
    "GET /llm-tasks": "task.list",
    "GET /runs": "task.list",
    "GET /llm-tasks/agents": "task.agents",
    "GET /llm-tasks/{task_id}": "task.show",
    "GET /llm-tasks/{task_id}/explain": "why",
    "POST /llm-tasks/{task_id}/lease": "task.lease",
    "POST /llm-tasks/{task_id}/dispatch": "task.dispatch",
    "POST /llm-tasks/{task_id}/heartbeat": "task.heartbeat",
    "POST /llm-tasks/{task_id}/complete": "task.complete",
    "POST /llm-tasks/{task_id}/requeue": "task.requeue",
    "POST /llm-tasks/{task_id}/cancel": "task.cancel",
    "POST /llm-tasks/requeue": "tasks.requeue",
    "POST /llm-tasks/cancel": "tasks.cancel",
    "GET /workers": "worker.list",
    "POST /workers": "worker.add",
    "GET /workers/{worker_id}": "worker.show",
    "DELETE /workers/{worker_id}": "worker.remove",
    "POST /workers/{worker_id}/cordon": "worker.cordon",
    "POST /workers/{worker_id}/uncordon": "worker.uncordon",
    "POST /workers/{worker_id}/drain": "worker.drain",
    "GET /workers/{worker_id}/tokens": "worker.tokens",
    "POST /workers/{worker_id}/tokens": "worker.token.add",
    "DELETE /workers/{worker_id}/tokens/{token_id}": "worker.token.remove",
    "GET /workers/{worker_id}/agent-health": "worker.agent-health",
    "POST /workers/{worker_id}/agent-update": "worker.agent-update",
    "POST /workers/{worker_id}/agent-restart": "worker.agent-restart",
    "POST /workers/{worker_id}/agent-uninstall": "worker.agent-uninstall",
    "POST /enrolments": "worker.enrol",
}


def test_what_the_api_can_do_the_socket_can_do_too(daemon):
    paths = daemon.http.get("/api/schema").json()["paths"]
    ours = ("/llm-tasks", "/workers", "/runs", "/enrolments")
    operations = {
        f"{method.upper()} {path.removeprefix('/api/runtime')}"
        for path, item in paths.items()
        if path.removeprefix("/api/runtime").startswith(ours)
        for method in item
    }
    # By this one a machine gets its own token; whoever has the socket has no need of it.
    assert operations - {"POST /enrolments/exchange"} == set(SAME)
    with Client(str(daemon.socket), 10) as client:
        for method in {*SAME.values()}:
            with pytest.raises(Failed) as refused:
                client.call(method, nonsense=True)
            assert refused.value.code == INVALID_PARAMS, method  # and not that there is none of this name
