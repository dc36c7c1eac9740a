"""`bloomd dev`: everything on one machine by one command, and nothing left of it afterwards."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from bloomd_process import BIN
from servers import eventually, free_port

# What a developer may have set is not this test's affair.
OTHERS = ("DATABASE_URL", "RUNTIME_API_KEY", "PORT", "MEMBRIDGE_SERVER_URL", "MEMBRIDGE_ADMIN_KEY")
CLEAN = {name: value for name, value in os.environ.items() if name not in OTHERS}


class Dev:
    def __init__(self, directory: Path, *arguments: str, **environ: str) -> None:
        self.directory, self.port = directory, free_port()
        self.output = directory.with_suffix(".log")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [BIN / "bloomd", "dev", "--dir", directory, "--port", str(self.port), *arguments],
                stdout=output, stderr=subprocess.STDOUT, env=CLEAN | environ, start_new_session=True,
            )  # fmt: skip
        self.api = f"http://127.0.0.1:{self.port}/api/runtime"

    def ready(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        return "bloomd is ready" in self.output.read_text()

    def servers(self) -> list[int]:
        """The PostgreSQL processes that serve this directory."""
        data = str((self.directory / "postgres").resolve())
        lines = subprocess.run(["pgrep", "-af", data], capture_output=True, text=True, check=False).stdout.splitlines()
        return [int(line.split()[0]) for line in lines if "postgres -D" in line]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def dev() -> Iterator[Callable[..., Dev]]:
    directory = Path(tempfile.mkdtemp(prefix="bloomd-dev-", dir="/tmp"))
    started: list[Dev] = []

    def start(*arguments: str, **environ: str) -> Dev:
        started.append(Dev(directory / "d", *arguments, **environ))
        eventually(started[-1].ready)
        return started[-1]

    directory.chmod(0o755)
    yield start
    for each in started:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)
    for data in {(each.directory / "postgres").resolve() for each in started}:
        shutil.rmtree(data, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def test_ctrl_c_stops_everything_and_the_next_start_finds_its_data(dev):
    first = dev()
    task = httpx.post(f"{first.api}/llm-tasks", json={"prompt": "x"}).json()["id"]
    key = httpx.post(f"{first.api}/keys", json={"name": "olena"}).json()["secret"]
    page = httpx.post(f"{first.api}/session", json={"key": key}).cookies
    said = first.output.read_text()
    for what in (str(first.port), str(first.directory / "bloomd.sock"), "bloomd-ctl", f"curl {first.api}", "Ctrl-C"):
        assert what in said
    assert len(first.servers()) == 1
    assert first.end(signal.SIGINT) == 0
    assert first.servers() == []
    assert not (first.directory / "bloomd.sock").exists()
    second = dev()
    assert httpx.get(f"{second.api}/llm-tasks/{task}", cookies=page).json()["status"] == "queued"
    assert second.end(signal.SIGTERM) == 0


def test_kill_9_leaves_nothing_running_and_the_next_start_recovers(dev):
    first = dev()
    task = httpx.post(f"{first.api}/llm-tasks", json={"prompt": "x"}).json()["id"]
    first.end(signal.SIGKILL)
    eventually(lambda: first.servers() == [], seconds=10)
    second = dev()
    assert httpx.get(f"{second.api}/llm-tasks/{task}").json()["status"] == "queued"


def test_a_second_one_in_the_same_directory_is_refused(dev):
    first = dev()
    other = Dev(first.directory)
    assert other.process.wait(20) == 78
    assert f"another bloomd (pid {first.process.pid}) is running" in other.output.read_text()


def test_without_membridge_its_routes_say_502_and_auth_is_off(dev):
    running = dev("--no-membridge")
    assert httpx.get(running.api.replace("runtime", "membridge") + "/agents").status_code == 502
    assert "Membridge  none: --no-membridge" in running.output.read_text()
    [page] = re.findall(r"page       (\S+)", running.output.read_text())
    assert "BLOOM Runtime" in httpx.get(page).text


def test_a_membridge_is_served_also_when_its_usual_port_is_taken(dev, database):
    with ExitStack() as stack:
        with suppress(OSError):  # somebody else has it, which is as good
            stack.enter_context(socket.create_server(("127.0.0.1", 8000)))
        running = dev(DATABASE_URL=database, MEMBRIDGE_ADMIN_KEY="a-key-of-the-environment")
        [url] = re.findall(r"Membridge  (\S+), because port 8000 is taken", running.output.read_text())
        agent = {"name": "w1", "status": "online", "capabilities": {"claude_cli": True}}
        headers = {"X-MEMBRIDGE-ADMIN": "a-key-of-the-environment"}
        assert httpx.post(f"{url}/agents", json=agent, headers=headers).status_code == 201
        listed = httpx.get(running.api.replace("runtime", "membridge") + "/agents").json()
        assert [(each["name"], each["status"]) for each in listed] == [("w1", "online")]


def test_the_port_of_the_membridge_can_be_chosen(dev, database):
    port = free_port()
    running = dev("--membridge-port", str(port), DATABASE_URL=database)
    assert httpx.get(f"http://127.0.0.1:{port}/health").json()["service"] == "membridge-control-plane"
    assert f"Membridge  http://127.0.0.1:{port}\n" in running.output.read_text()


def test_a_hosted_sandbox_is_served_when_asked_for_and_warned_of(dev):
    running = dev("--bind", "0.0.0.0", "--allow-unauthenticated", "--allow-host", "sandbox.example")
    assert httpx.get(f"{running.api}/stats", headers={"Host": "sandbox.example"}).status_code == 200
    assert httpx.get(f"{running.api}/stats", headers={"Host": "other.example"}).status_code == 403
    assert "whoever reaches the port may do everything" in running.output.read_text()


def test_the_key_of_the_environment_counts(dev):
    running = dev(RUNTIME_API_KEY="a-key-of-the-environment")
    assert httpx.get(f"{running.api}/stats").status_code == 401
    with_key = {"headers": {"X-Runtime-API-Key": "a-key-of-the-environment"}}
    assert httpx.get(f"{running.api}/stats", **with_key).is_success
    assert "curl" not in running.output.read_text()
    httpx.post(f"{running.api}/workers/w1/tokens", **with_key).raise_for_status()
    running.end(signal.SIGTERM)
    without = dev()
    assert httpx.get(f"{without.api}/stats").status_code == 401
    said = without.output.read_text()
    assert "bloomd.sock key add " in said
    assert "curl" not in said


def test_beyond_loopback_without_a_key_is_refused():
    directory = Path(tempfile.mkdtemp(prefix="bloomd-dev-", dir="/tmp")) / "d"
    refused = Dev(directory, "--bind", "0.0.0.0")
    assert refused.process.wait(20) == 78
    assert "allow" in refused.output.read_text()


def test_a_database_of_its_own_is_used_when_it_is_named(dev, database):
    running = dev(DATABASE_URL=database)
    assert running.servers() == []
    assert httpx.post(f"{running.api}/llm-tasks", json={"prompt": "x"}).status_code == 201


@pytest.fixture
def path(tmp_path):
    """PATH with a `claude`."""
    program = tmp_path / "claude"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {Path(__file__).parents[1] / "fake_claude.py"} "$@"\n')
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def ctl(running, *arguments):
    command = [BIN / "bloomd-ctl", "-s", running.directory / "bloomd.sock", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def workers_of(running):
    """The processes of the worker beside it."""
    file = str(running.directory / "worker" / "worker.yaml")
    return subprocess.run(["pgrep", "-f", file], capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.parametrize("key", [{}, {"RUNTIME_API_KEY": "a-key-that-is-long-enough"}])
def test_with_a_worker_it_is_a_complete_system(dev, path, key):
    running = dev("--worker", PATH=path, SECRET="a secret", **key)
    done = ctl(running, "task", "add", "--wait", "Say hello")
    assert (done.returncode, done.stdout) == (0, "Say hello"), done.stderr
    assert [line.split()[:2] for line in ctl(running, "workers").stdout.splitlines()[1:]] == [["local", "online"]]
    token = running.directory / "worker" / "token"
    assert token.exists() == bool(key)
    assert not key or token.stat().st_mode & 0o777 == 0o600
    [worker] = workers_of(running)
    environ = Path(f"/proc/{worker}/environ").read_text().split("\0")
    assert {name for name, _, _ in (each.partition("=") for each in environ)} & {"RUNTIME_API_KEY", "SECRET"} == set()
    assert running.end(signal.SIGINT) == 0
    assert workers_of(running) == []


def test_the_worker_gets_a_token_when_there_is_a_first_key(dev, path):
    running = dev("--worker", PATH=path)
    assert ctl(running, "key", "add", "mine").returncode == 0
    assert ctl(running, "task", "add", "--wait", "Say hello").stdout == "Say hello"
    assert (running.directory / "worker" / "token").exists()


def test_the_worker_goes_with_a_daemon_that_is_killed(dev, path):
    first = dev("--worker", PATH=path)
    eventually(lambda: "local" in ctl(first, "workers").stdout)
    assert len(workers_of(first)) == 1
    first.end(signal.SIGKILL)
    eventually(lambda: workers_of(first) == [], seconds=15)


def test_without_a_claude_the_worker_says_so_and_all_else_runs(dev, tmp_path):
    running = dev("--worker", PATH=str(tmp_path))
    eventually(lambda: "failed" in ctl(running, "status").stdout)
    assert "install the Claude CLI" in running.output.read_text()
    assert ctl(running, "status").returncode == 1
    assert httpx.get(f"{running.api}/health").json()["status"] == "degraded"
