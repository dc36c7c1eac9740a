"""What an operator does to the queue over the socket: pause it, take a worker away, ask why, follow, hand out keys."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import pytest
from bloomd_process import BIN, Bloomd
from servers import DEADLINE_SECONDS, eventually

WORKER = {"name": "gpu-1", "capabilities": {"max_concurrency": 4}}


@pytest.fixture
def daemon(bloomd: Callable[..., Bloomd]) -> Bloomd:
    return bloomd().start()


def create(daemon: Bloomd) -> str:
    return daemon.http.post("/api/runtime/llm-tasks", json={"prompt": "x"}).raise_for_status().json()["id"]


def lease(daemon: Bloomd, task: str) -> int:
    return daemon.http.post(f"/api/runtime/llm-tasks/{task}/lease", json={"worker_id": "gpu-1"}).status_code


def complete(daemon: Bloomd, task: str) -> None:
    completion = {"status": "success", "output": "y"}
    daemon.http.post(f"/api/runtime/llm-tasks/{task}/complete", json=completion).raise_for_status()


def register(daemon: Bloomd) -> None:
    daemon.http.post("/api/runtime/workers", json=WORKER).raise_for_status()


def audited(daemon: Bloomd) -> list[tuple[str, str, str]]:
    """What was done over the socket, and by the rules on its behalf, the latest last."""
    entries = daemon.http.get("/api/runtime/audit", params={"limit": 1000}).json()
    mine = [entry for entry in entries if entry["actor"] == "root"]
    return [(entry["action"], entry["entity_id"], entry["actor"]) for entry in reversed(mine)]


@contextmanager
def running(daemon: Bloomd, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A `bloomd-ctl` that goes on for a while."""
    process = subprocess.Popen(
        [BIN / "bloomd-ctl", "-s", daemon.socket, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = threading.Timer(DEADLINE_SECONDS, process.kill)  # then whoever waits for a line gets none
    deadline.start()
    try:
        yield process
    finally:
        deadline.cancel()
        process.kill()
        process.communicate()


def line(stream: IO[str] | None) -> str:
    assert stream
    return stream.readline()


def test_a_paused_queue_hands_out_nothing_and_says_so_everywhere(daemon: Bloomd) -> None:
    register(daemon)
    task = create(daemon)
    done = daemon.ctl("pause", "--until", "+2h", "--reason", "quota used up")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the queue is paused until ")
    assert done.stdout.endswith(": quota used up\n")
    assert lease(daemon, task) == 503

    status = daemon.ctl("status").stdout
    assert "queue     paused until " in status
    assert "(quota used up), 1 queued" in status
    pause = daemon.status()["queue"]["pause"]
    assert pause["reason"] == "quota used up"
    assert abs(pause["until"] - time.time() - 7200) < 60
    assert daemon.status()["verdict"] == "ok"
    assert daemon.ctl("why", task).stdout.startswith("queue-paused  The queue is paused until ")

    assert daemon.ctl("pause").stdout == "the queue is paused until somebody resumes it\n"
    assert json.loads(daemon.ctl("-o", "json", "resume").stdout) == {"paused": False, "until": None, "reason": None}
    assert daemon.status()["queue"]["pause"] is None
    assert lease(daemon, task) == 201
    daemon.ctl("resume")
    assert audited(daemon) == [
        ("queue.paused", "queue", "root"),
        ("queue.paused", "queue", "root"),
        ("queue.resumed", "queue", "root"),
    ]


def test_a_worker_is_held_back_and_let_in_again(daemon: Bloomd) -> None:
    register(daemon)
    task = create(daemon)
    assert daemon.ctl("cordon", "gpu-1").stdout == "gpu-1 is cordoned: it holds no lease\n"
    assert "workers   1 of 1 online, 1 cordoned, 0 of 4 places taken" in daemon.ctl("status").stdout
    assert lease(daemon, task) == 503
    assert json.loads(daemon.ctl("-o", "json", "drain", "gpu-1").stdout)["draining"] is True
    assert daemon.ctl("uncordon", "gpu-1").stdout == "gpu-1 gets leases again\n"
    assert lease(daemon, task) == 201
    assert audited(daemon) == [
        ("worker.cordoned", "gpu-1", "root"),
        ("worker.draining", "gpu-1", "root"),
        ("worker.uncordoned", "gpu-1", "root"),
    ]


def test_what_the_rules_refuse_is_audited_by_the_socket(daemon: Bloomd) -> None:
    for command, words in (
        (("drain", "gpu-9"), "Worker not found"),
        (("why", "no-such-task"), "Task not found"),
        (("key", "add", "a/b"), "The name must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        (("key", "remove", "nobody"), "Key not found"),
    ):
        done = daemon.ctl(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"bloomd-ctl: {words}")
    eventually(lambda: len(audited(daemon)) == 3)
    assert audited(daemon) == [
        ("control.worker.drain", "gpu-9", "root"),
        ("control.key.add", "a/b", "root"),
        ("control.key.remove", "nobody", "root"),
    ]


def test_draining_waits_until_the_last_lease_has_ended(daemon: Bloomd) -> None:
    register(daemon)
    tasks = [create(daemon) for _ in range(2)]
    assert [lease(daemon, task) for task in tasks] == [201, 201]
    with running(daemon, "drain", "gpu-1", "--wait") as waiting:
        assert line(waiting.stdout) == "gpu-1 is draining: 2 leases left\n"
        complete(daemon, tasks[0])
        assert line(waiting.stdout) == "gpu-1 is draining: 1 lease left\n"
        assert waiting.poll() is None
        complete(daemon, tasks[1])
        assert line(waiting.stdout) == "gpu-1 is drained: it holds no lease\n"
        assert waiting.wait(10) == 0
    with running(daemon, "drain", "gpu-1", "--wait") as waiting:
        assert waiting.wait(10) == 0


def test_pausing_waits_until_no_task_is_leased(daemon: Bloomd) -> None:
    register(daemon)
    tasks = [create(daemon) for _ in range(2)]
    assert lease(daemon, tasks[0]) == 201
    with running(daemon, "pause", "--reason", "upgrade", "--wait", "60") as waiting:
        assert line(waiting.stdout) == "the queue is paused until somebody resumes it: upgrade\n"
        assert line(waiting.stdout) == "1 lease left\n"
        assert lease(daemon, tasks[1]) != 201
        complete(daemon, tasks[0])
        assert line(waiting.stdout) == "no task is leased\n"
        assert waiting.wait(10) == 0
    assert "paused" in daemon.ctl("status").stdout


def test_a_key_is_made_listed_and_removed(daemon: Bloomd) -> None:
    made = daemon.ctl("key", "add", "ci")
    secret = made.stdout.strip()
    assert (made.returncode, secret.startswith("bloom_"), secret in made.stderr) == (0, True, False)
    headers = {"X-Runtime-API-Key": secret}
    assert daemon.http.get("/api/runtime/stats", headers=headers).status_code == 200
    assert [row.split()[0] for row in daemon.ctl("key", "list").stdout.splitlines()] == ["name", "ci"]
    assert json.loads(daemon.ctl("-o", "json", "key", "list").stdout)["keys"][0]["created_by"] == "root"
    assert "There is a key named ci already" in daemon.ctl("key", "add", "ci").stderr
    assert daemon.ctl("key", "remove", "ci").stdout == "ci is a key no longer\n"
    assert daemon.http.get("/api/runtime/stats", headers=headers).status_code == 401
    eventually(lambda: len(audited(daemon)) == 3)
    assert {action for action, *_ in audited(daemon)} == {"key.added", "control.key.add", "key.removed"}
    assert secret not in daemon.log.read_text()


def test_who_removes_the_last_key_is_told_that_the_api_is_open(bloomd: Callable[..., Bloomd]) -> None:
    daemon = bloomd(http__api_key=None).start()
    daemon.ctl("key", "add", "ci")
    assert daemon.http.get("/api/runtime/stats").status_code == 401
    assert "whoever reaches the API may now do everything" in daemon.ctl("key", "remove", "ci").stdout
    assert daemon.http.get("/api/runtime/stats").status_code == 200


def test_events_are_followed_across_a_restart_of_the_daemon(daemon: Bloomd) -> None:
    with running(daemon, "-o", "json", "events", "--types", "task", "--after", "0-0") as following:
        tasks = [create(daemon) for _ in range(3)]
        assert [json.loads(line(following.stdout))["entity_id"] for _ in tasks] == tasks
        assert daemon.stop() == 0
        assert line(following.stderr) == "bloomd-ctl: bloomd stops; waiting for its return\n"
        daemon.start()
        assert line(following.stderr) == "bloomd-ctl: bloomd is there again\n"
        missed = create(daemon)
        event = json.loads(line(following.stdout))
        assert (event["entity_id"], event["type"], event["data"]["action"]) == (missed, "task", "task.created")
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 130
        assert (line(following.stdout), line(following.stderr)) == ("", "\n")


def test_events_begin_after_the_one_that_is_named(daemon: Bloomd) -> None:
    tasks = [create(daemon) for _ in range(2)]
    with running(daemon, "-o", "json", "events", "--types", "task", "--after", "0-0") as following:
        first = json.loads(line(following.stdout))
    assert first["entity_id"] == tasks[0]
    with running(daemon, "-o", "json", "events", "--types", "task", "--after", first["id"]) as following:
        assert json.loads(line(following.stdout))["entity_id"] == tasks[1]


def test_an_event_is_a_line(daemon: Bloomd) -> None:
    task = create(daemon)
    with running(daemon, "events", "--types", "task", "--after", "0-0") as following:
        assert line(following.stdout).split()[1:4] == ["task.created", task, "api-key"]


def test_events_that_cannot_be_followed_are_an_error(daemon: Bloomd) -> None:
    done = daemon.ctl("events", "--after", "yesterday")
    assert (done.returncode, done.stdout) == (1, "")
    assert "id of an event" in done.stderr
    done = daemon.ctl("events", "--types", "task,tusk")
    assert (
        done.stderr == "bloomd-ctl: no events are of type tusk; there are task, lease, worker, probe, service, audit\n"
    )
    daemon.ctl("stop", "database")
    assert daemon.ctl("events").returncode == 1
    daemon.stop()
    assert daemon.ctl("events").returncode == 3
